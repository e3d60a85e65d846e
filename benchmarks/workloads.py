"""The networks and batches that a step is measured on, and the rates that all candidates share."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_modules import ConvNet

Batch = tuple[Tensor, Tensor]
LR, META_LR = 1e-3, 1e-2  # log α ← log α - META_LR · h, the cheapest meta-optimizer, for ours and for all peers


class Encoder(nn.Module):
    """One Transformer encoder layer over 16 tokens of 64 features, then their mean and 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 16, 64) -> (batch, 10)."""
        logits: Tensor = self.head(self.layer(x).mean(1))
        return logits


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def loss(network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """Return the mean cross-entropy, 0-d."""
    x, y = batch
    return cross_entropy(network(x), y)


@dataclass(frozen=True)
class Workload:
    """A network, and the shape of its batches."""

    make: Callable[[], nn.Module]
    batch: int
    shape: tuple[int, ...]

    def build(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Batch, Batch]:
        """Return the network, a training batch and a validation batch."""
        torch.manual_seed(0)
        network = self.make().to(dtype)
        x, look_x = (torch.randn(self.batch, *self.shape, dtype=dtype) for _ in range(2))
        y, look_y = (torch.randint(10, (self.batch,)) for _ in range(2))
        return network, (x, y), (look_x, look_y)


WORKLOADS = {
    "MLP 40-100-10, batch 128": Workload(lambda: mlp(40, 100, 10), 128, (40,)),
    "MLP 784-1024-1024-10, batch 256": Workload(lambda: mlp(784, 1024, 1024, 10), 256, (784,)),
    "ConvNet of mnist1d, batch 128": Workload(ConvNet, 128, (40,)),
    "Transformer layer, batch 64": Workload(Encoder, 64, (16, 64)),
}
