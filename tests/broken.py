"""Data and networks of a user's own that cannot be trained, or hardly: named on the command line by the tests."""

import torch
from torch import Tensor, nn

from data.tensors import Samples, TensorDataModule
from lightning_modules import MLP, SupervisedModule


class Broken(TensorDataModule):
    """200 samples of each part, with one fault."""

    def __init__(self, fault: str, batch_size: int = 10, val_batch_size: int = 10) -> None:
        super().__init__(batch_size, val_batch_size, 200, 200)
        self.fault = fault

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """Spoil one of them."""
        draw = torch.Generator().manual_seed(0)
        train, val, test = ([torch.randn(200, 40, generator=draw), torch.arange(200) % 10] for _ in range(3))
        match self.fault:
            case "empty":
                train = [train[0][:0], train[1][:0]]
            case "no-test":
                test = [test[0][:0], test[1][:0]]
            case "mismatch":
                train[1] = train[1][:-1]
            case "float64-targets":
                train[1] = train[1].double()
            case "nan":
                train[0][3] = torch.nan
            case "integer-inputs":
                train[0] = train[0].long()
            case "classes":
                train[1] = train[1] + 10
            case "wide":
                train[0] = train[0].repeat(1, 2)
        (a, b), (c, d), (e, f) = train, val, test
        return (a, b), (c, d), (e, f)


class Frozen(MLP):
    """Nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Detached(MLP):
    """Cuts its outputs off from its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Detach."""
        return nn.Sequential.forward(self, x).detach()  # type: ignore[no-any-return, no-untyped-call]


class Lazy(nn.Sequential):
    """Does not know its shapes yet."""

    def __init__(self) -> None:
        super().__init__(nn.LazyLinear(10))


class Blind(MLP):
    """Not finite in evaluation mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Spoil what validation sees."""
        spoilt = 1.0 if self.training else torch.nan
        return spoilt * nn.Sequential.forward(self, x)  # type: ignore[no-any-return, no-untyped-call]


class Unreduced(SupervisedModule):
    """A loss a sample."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Forget the mean."""
        return super().loss(batch).repeat(2)
