"""Losses and batches that are hard to evaluate twice: one list, each compared with the loop without the adapter."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torchmetrics import CatMetric, MeanMetric

from tests.hypergradient.problem import batch, loss
from tests.hypergradient.problem import network as layers

Batches = Iterable[Any]


@dataclass
class Case:
    """Makes training and validation batches, and a network; says what the loss is and what the user gives in addition.

    warns: whether the user is told that batches are taken whole.
    """

    loss: Callable[[Any, Any], Tensor] = loss
    batches: Callable[[], tuple[Batches, Batches]] = lambda: pairs(lambda x, y: (x, y))
    network: Callable[[], nn.Module] = layers
    options: dict[str, Any] = field(default_factory=dict)
    warns: bool = False


def pairs(make: Callable[[Tensor, Tensor], Any]) -> tuple[list[Any], list[Any]]:
    """Batches that are made once and used in each epoch."""
    train, val = ([make(*batch(number)) for number in numbers] for numbers in (range(6), range(1000, 1003)))
    return train, val


class Fresh(list[Any]):
    """Batches that are made again in each epoch, as loaders do."""

    def __iter__(self) -> Iterator[Any]:
        return iter(copy.deepcopy(self[:]))


def fresh(make: Callable[[Tensor, Tensor], Any]) -> tuple[Batches, Batches]:
    train, val = pairs(make)
    return Fresh(train), val


def pops(net: nn.Module, data: Any) -> Tensor:
    data = data if isinstance(data, dict) else vars(data)
    y = data.pop("labels")
    return cross_entropy(net(data.pop("x")), y)


def writes(net: nn.Module, data: Any) -> Tensor:
    data[0].mul_(0.9)[:, 0] = data[0].mean()
    data[1].fill_(1) if len(data) == 2 and data[1][0] == 2 else data[1].sub_(0)
    return cross_entropy(net(data[0]), data[1])


class Random(nn.Module):
    """Draws from every stream that it can reach, as augmentations in a training step do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.generator, self.drawn = layers(), torch.Generator().manual_seed(0), 0.0

    def forward(self, x: Tensor) -> Tensor:
        # an odd number of normal ones: NumPy keeps the other one of a pair
        scale = random.random() + numpy.random.randn() / 9 + float(torch.rand(())) + random.gauss(0, 0.1)
        return self.layers(x * scale)  # type: ignore[no-any-return]


class Augmented(Dataset[Any]):
    """Draws from the streams outside of torch for each sample."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = batch(index, 1)
        return x[0] * random.random() + numpy.random.rand(), y[0]


def shared_generator() -> tuple[Batches, Batches]:
    generator = torch.Generator().manual_seed(0)
    made = [DataLoader(Augmented(), 16, shuffle=True, generator=generator) for _ in range(2)]
    return made[0], made[1]


class Notes(nn.Module):
    """Keeps metrics, and containers in containers under names of any kind, on which its result depends."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.mean, self.all = layers(), MeanMetric(), CatMetric()
        self._seen, self.nested, self._deep = list[float](), {"a": {"b": list[float]()}}, [[0]]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        self.mean.update(out.detach())
        # with its graph, as a user forgets to detach it
        self.all.update(out.mean())
        self._seen.append(1.0)
        self.nested["a"]["b"].append(1.0)
        self._deep[0][0] += 1
        times = len(self._seen) + len(self.nested["a"]["b"]) + self._deep[0][0] + len(self.all.value)
        return out / (1 + 0.01 * times + 0.1 * float(self.mean.compute()))


class Bounded(nn.Module):
    """Has embeddings that each forward pass makes shorter, in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.last = nn.Embedding(40, 8, max_norm=0.5).double(), nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rows((x[:, 0] * 9).long() % 40))  # type: ignore[no-any-return]


class Checkpointed(nn.Module):
    """Computes its first layer again in the backward pass, in the old way."""

    def __init__(self, old: bool = True) -> None:
        super().__init__()
        self.layers, self.old = layers(), old

    def forward(self, x: Tensor) -> Tensor:
        if not self.old:
            return self.layers(x)  # type: ignore[no-any-return]
        hidden = checkpoint(self.layers[:2], x.requires_grad_(), use_reentrant=True)
        return self.layers[2](hidden)  # type: ignore[no-any-return]


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.weight).abs()


def masked(net: nn.Module, data: Any) -> Tensor:
    x, mask, y = data
    return cross_entropy(net(x @ mask), y)


def graph(net: nn.Module, data: Any) -> Tensor:
    x, edges, y = (data.x, data.edges, data.y) if isinstance(data, SimpleNamespace) else data
    return cross_entropy(net(x.index_add(0, edges[0], x[edges[1]])), y)


def two_views(net: nn.Module, data: Any) -> Tensor:
    one, other = net(data["views"]).chunk(2)
    return cross_entropy(one @ other.T, torch.arange(len(one)))


def time_major(net: nn.Module, x: Tensor) -> Tensor:
    # (T, N, 5): what comes next, so that time cannot be cut
    next_ones: Tensor = (net(x[:-1]) - x[1:, :, :3]).square()
    return next_ones.mean() + x[20].mean()


EDGES = torch.arange(32).view(2, 16)
CASES: dict[str, Case] = {
    "pops from a dictionary": Case(pops, lambda: fresh(lambda x, y: {"x": x, "labels": y})),
    "pops from an object": Case(pops, lambda: fresh(lambda x, y: SimpleNamespace(x=x, labels=y)), warns=True),
    "writes into a tuple": Case(writes),
    "writes into a list": Case(writes, lambda: pairs(lambda x, y: [x, y])),
    "validates on the training batches": Case(writes, lambda: 2 * (pairs(lambda x, y: (x, y))[0],)),
    "a mask": Case(masked, lambda: pairs(lambda x, y: (x, torch.eye(5, dtype=x.dtype), y)), warns=True),
    "a graph": Case(graph, lambda: pairs(lambda x, y: (x, EDGES, y)), warns=True),
    "an object": Case(graph, lambda: pairs(lambda x, y: SimpleNamespace(x=x, edges=EDGES, y=y)), warns=True),
    "two views": Case(
        two_views,
        lambda: pairs(lambda x, _: {"views": torch.cat([x, x + 0.1])}),
        options={"cut": lambda data, part: {"views": torch.cat([v[: int(part * 32)] for v in data["views"].chunk(2)])}},
    ),
    "time first": Case(
        time_major,
        lambda: pairs(lambda x, _: x.expand(24, 32, 5).contiguous()),
        options={"cut": lambda x, part: x[:, : int(part * x.shape[1])]},
    ),
    "words": Case(
        lambda net, data: cross_entropy(net(data["x"]), torch.tensor([len(word) for word in data["words"][0]])),
        lambda: pairs(lambda x, y: {"x": x, "words": [tuple("a" * int(n) for n in y)], "name": "kept"}),
    ),
    "random numbers of the loss": Case(network=Random),
    "random numbers of loaders": Case(batches=lambda: 2 * (DataLoader(Augmented(), 16, shuffle=True),)),
    "a shared generator": Case(batches=shared_generator),
    "metrics and nested containers": Case(network=Notes),
    "Embedding(max_norm)": Case(network=Bounded),
    "checkpoint(use_reentrant=True)": Case(network=Checkpointed),
    "complex weights": Case(network=Complex),
}
