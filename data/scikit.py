"""Small tasks from scikit-learn; nothing is downloaded."""

import torch

from data.tensors import Samples, TensorDataModule, require


class DigitsDataModule(TensorDataModule):
    """scikit-learn's 1,797 bundled digits: 1,000 to train on, 300 to validate, 497 to test.

    x (samples, 64) float32 in 0 ... 1, y (samples,) int64, or x again. `seed` shuffles them before they are cut.

    Args:
        batch_size: training samples per step.
        val_batch_size: validation samples per step, for a look.
        seed: the seed of the order.
        reconstruct: whether the targets are the inputs, for an autoencoder, instead of the digits.
    """

    def __init__(
        self, batch_size: int = 64, val_batch_size: int = 128, seed: int = 0, reconstruct: bool = False
    ) -> None:
        super().__init__(batch_size, val_batch_size, 1_000, 300, seed)
        self.reconstruct = reconstruct

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Read the samples from the package."""
        # not at the top: other tasks need not wait for the import
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels / 16).float(), torch.tensor(digits)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(self.seed))
        return self.cut(x[order], x[order] if self.reconstruct else y[order])


class DiabetesDataModule(TensorDataModule):
    """scikit-learn's bundled diabetes table: 242 patients to train on, 100 to validate, 100 to test.

    x (samples, 10) float32, y (samples,) float32, both standardised. `seed` shuffles the patients before they are cut.
    """

    def __init__(self, batch_size: int = 32, val_batch_size: int = 100, seed: int = 0) -> None:
        super().__init__(batch_size, val_batch_size, 242, 100, seed)

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Read the samples from the package."""
        # not at the top: other tasks need not wait for the import
        from sklearn.datasets import load_diabetes

        table, values = load_diabetes(return_X_y=True)
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(self.seed))
        x, y = torch.tensor(table / table.std(0)).float()[order], torch.tensor(values).float()[order]
        train = y[: self.sizes[0]]
        return self.cut(x, (y - train.mean()) / train.std())


class FriedmanDataModule(TensorDataModule):
    """Friedman's first regression problem (1991): training samples, 500 to validate, 2,500 to test.

    x (samples, features) float32, of which five features matter; y (samples,) float32. Both are standardised: a noise
    of 3 alone causes a mean squared error of about 0.27, a noise of 1 about 0.04.

    Args:
        batch_size: training samples per step.
        val_batch_size: validation samples per step, for a look.
        seed: the seed of the generator.
        train: the number of training samples.
        features: the number of features, five or more.
        noise: the standard deviation of the noise that is added to the values.
    """

    def __init__(
        self,
        batch_size: int = 64,
        val_batch_size: int = 128,
        seed: int = 0,
        train: int = 1_000,
        features: int = 20,
        noise: float = 3.0,
    ) -> None:
        require("train", train, 2, 1_000_000)
        require("features", features, 5, 10_000)
        super().__init__(batch_size, val_batch_size, train, 500, seed)
        self.features, self.noise = features, noise

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Generate the samples."""
        # not at the top: other tasks need not wait for the import
        from sklearn.datasets import make_friedman1

        size = self.sizes[0]
        inputs, values = make_friedman1(
            size + 3_000, n_features=self.features, noise=self.noise, random_state=self.seed
        )
        x, y = torch.tensor((inputs - 0.5) * 12**0.5).float(), torch.tensor(values).float()
        return self.cut(x, (y - y[:size].mean()) / y[:size].std())
