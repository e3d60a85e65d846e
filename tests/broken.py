"""Invalid data modules and networks, which the tests name on the command line."""

import torch
from torch import Tensor, nn

from data.tensors import Samples, TensorDataModule
from lightning_modules import MLP, SupervisedModule


class Broken(TensorDataModule):
    """200 samples of each part, with a fault."""

    def __init__(self, fault: str, batch_size: int = 10, val_batch_size: int = 10) -> None:
        super().__init__(batch_size, val_batch_size, 200, 200)
        self.fault = fault

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Spoil them."""
        x, y = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 10
        spoilt = {
            "none": (x, y),
            "empty": (x[:0], y[:0]),
            "mismatch": (x, y[:-1]),
            "float64-targets": (x, y.double()),
            "nan": (x.log(), y),
            "integer-inputs": (x.long(), y),
            "classes": (x, y + 10),
            "wide": (x.repeat(1, 2), y),
            "last-label": (x, torch.cat([y[:-1], torch.tensor([10])])),
            "no-label": (x, torch.cat([y[:-1], torch.tensor([-100])])),
            "values": (x, x[:, 0]),
        }
        return (spoilt[self.fault],) * 3


class Frozen(MLP):
    """Nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Pair(nn.LSTM):
    """Two outputs: states, and the last ones."""

    def __init__(self) -> None:
        super().__init__(40, 10)


class Unreduced(SupervisedModule):
    """A loss a sample."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Forget the mean."""
        return super().loss(batch).repeat(2)


class Lazy(SupervisedModule):
    """Leaves out the second half of each epoch."""

    def on_train_batch_start(self, batch: object, batch_idx: int) -> int:
        """End the epoch, by -1."""
        return -1 if 2 * batch_idx >= self.trainer.num_training_batches else 0
