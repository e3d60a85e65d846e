"""Two small tasks of another kind, from scikit-learn: nothing is downloaded."""

import torch
from torch import Tensor

from data.tensors import Samples, TensorDataModule


class DigitsDataModule(TensorDataModule):
    """scikit-learn's 1,797 bundled digits: 1,000 to train on, 300 to validate, 497 to test.

    x (samples, 64) float32 in 0 ... 1, y (samples,) int64. `seed` shuffles them before they are cut.
    """

    def __init__(
        self, batch_size: int = 64, val_batch_size: int = 128, train_on_validation: bool = False, seed: int = 0
    ) -> None:
        super().__init__(batch_size, val_batch_size, train_on_validation, 1_000, 300)
        self.seed = seed

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Read them from the package."""
        from sklearn.datasets import load_digits  # late: other tasks do not wait for it

        pixels, digits = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels / 16).float(), torch.tensor(digits)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(self.seed))
        return _cut(x[order], y[order], 1_000, 300)


class FriedmanDataModule(TensorDataModule):
    """Friedman's first regression problem (1991), noisy: 1,000 training, 500 validation and 2,500 test samples.

    x (samples, 20) float32, five of the inputs matter; y (samples,) float32. Both standardised: the noise alone makes a
    mean squared error of about 0.27.
    """

    def __init__(
        self, batch_size: int = 64, val_batch_size: int = 128, train_on_validation: bool = False, seed: int = 0
    ) -> None:
        super().__init__(batch_size, val_batch_size, train_on_validation, 1_000, 500)
        self.seed = seed

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Generate them."""
        from sklearn.datasets import make_friedman1  # late: other tasks do not wait for it

        inputs, values = make_friedman1(4_000, n_features=20, noise=3.0, random_state=self.seed)
        x, y = torch.tensor((inputs - 0.5) * 12**0.5).float(), torch.tensor(values).float()
        return _cut(x, (y - y[:1_000].mean()) / y[:1_000].std(), 1_000, 500)


def _cut(x: Tensor, y: Tensor, train: int, val: int) -> tuple[Samples, Samples, Samples]:
    (a, b, c), (d, e, f) = (tensor.split([train, val, len(y) - train - val]) for tensor in (x, y))
    return (a, d), (b, e), (c, f)
