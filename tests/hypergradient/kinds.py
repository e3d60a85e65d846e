"""Networks and optimizers that are difficult to copy: one list."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from tests.hypergradient.optimizers import SUPPORTED, Factory
from tests.hypergradient.problem import network


class Layers(nn.Module):
    """Two layers, and what a subclass does between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 8).double(), nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x).tanh()))  # type: ignore[no-any-return]

    def between(self, x: Tensor) -> Tensor:
        return x


class KeepsState(Layers):
    """Has what cannot be copied (a lock, an activation with its graph), a hook of a gradient, attributes that each call
    changes, which its result depends on, a checkpoint, and dropout that draws in evaluation mode too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.calls, self.seen, self.noted = threading.Lock(), 0, list[float](), dict[str, float]()
        self.called = [0]
        self.first.weight.register_hook(self.halve)

    def halve(self, gradient: Tensor) -> Tensor:
        self.called[0] += 1
        return gradient / 2

    def between(self, x: Tensor) -> Tensor:
        with self.lock:
            self.activation = x
        self.calls += 1
        self.seen.append(x.mean().item())
        self.noted[str(self.calls)] = self.seen[-1]
        x = x / (1 + 0.1 * len(self.seen) + 0.01 * len(self.noted) + self.calls)
        return dropout(checkpoint(torch.tanh, x, use_reentrant=False), 0.5, training=True)


class SharesWeights(Layers):
    """Has a recurrent layer, two that share their weights, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True).double()
        self.one, self.other, self.unused = (nn.Linear(8, 8).double() for _ in range(3))
        self.other.weight = self.one.weight

    def between(self, x: Tensor) -> Tensor:
        x = self.lstm(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1]
        return self.other(self.one(x).tanh())  # type: ignore[no-any-return]


class Normalizes(Layers):
    """Has BatchNorm, a frozen one too, dropout, and a buffer that each call replaces."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen, self.dropout = nn.BatchNorm1d(8).double(), nn.BatchNorm1d(8).double(), nn.Dropout()
        self.frozen.eval()
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.dropout(self.norm(self.frozen(x - self.mean)))  # type: ignore[no-any-return]


def changed(change: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    """Make a network whose first layer is changed."""

    def make() -> nn.Module:
        net = Layers()
        change(net.first)
        return net

    return make


@dataclass(frozen=True)
class Kind:
    """Makes a network, and an optimizer of its parameters."""

    network: Callable[[], nn.Module] = network
    factory: Factory = SUPPORTED["Adam"]


KINDS: dict[str, Kind] = {
    **{name: Kind(factory=factory) for name, factory in SUPPORTED.items()},
    "fused Adam": Kind(factory=lambda params: torch.optim.Adam(params, lr=0.02, fused=True)),
    "fused SGD": Kind(factory=lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9, fused=True)),
    "frozen layer": Kind(changed(lambda layer: layer.requires_grad_(False))),
    "old weight_norm": Kind(changed(nn.utils.weight_norm)),
    "new weight_norm": Kind(changed(nn.utils.parametrizations.weight_norm)),
    "torch.compile": Kind(lambda: torch.compile(network(), backend="aot_eager")),  # type: ignore[arg-type, return-value]
    **{kind.__name__: Kind(kind) for kind in Layers.__subclasses__()},
}


def attributes(net: nn.Module) -> list[dict[str, Any]]:
    """What modules keep that is neither a weight nor a buffer."""
    kept = int, float, list, dict, Tensor
    return [
        {name: value for name, value in vars(module).items() if name[0] != "_" and isinstance(value, kept)}
        for module in net.modules()
    ]
