"""The networks of the comparison. Inputs are (batch, inputs) float32, outputs (batch, classes)."""

import math
from functools import lru_cache
from itertools import pairwise
from typing import Literal, cast

import torch
from mnist1d.data import get_dataset_args, make_dataset
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class MLP(nn.Sequential):
    """An MLP with ReLU, 40-100-10 by default.

    Args:
        inputs: number of inputs.
        hidden: units of a hidden layer.
        classes: number of outputs; 1 for a regression.
        layers: number of hidden layers; 0 for logistic regression.
        norm: None, "layer" or "batch": the normalization before the ReLU of each hidden layer.
        dropout: the fraction of each hidden layer that is dropped.
    """

    def __init__(
        self,
        inputs: int = 40,
        hidden: int = 100,
        classes: int = 10,
        layers: int = 1,
        norm: Literal["layer", "batch"] | None = None,
        dropout: float = 0.0,
    ) -> None:
        for name, value, least in (("hidden", hidden, 1), ("layers", layers, 0), ("classes", classes, 1)):
            if value < least:
                raise ValueError(f"--model.network.{name} must be {least} or more, got {value}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"--model.network.dropout must be 0 or more and below 1, got {dropout}.")
        parts: list[nn.Module] = []
        for layer in range(layers):
            parts.append(nn.Linear(hidden if layer else inputs, hidden))
            if norm:
                parts.append({"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}[norm](hidden))
            parts.append(nn.ReLU())
            if dropout:
                parts.append(nn.Dropout(dropout))
        super().__init__(*parts, nn.Linear(hidden if layers else inputs, classes))


class ConvNet(nn.Sequential):
    """Three convolutions of stride 2 over the 40 points, as in the mnist1d paper; norm: BatchNorm before each ReLU."""

    def __init__(self, channels: int = 25, classes: int = 10, norm: bool = False) -> None:
        parts: list[nn.Module] = [nn.Unflatten(1, (1, -1))]
        for inputs, width in ((1, 5), (channels, 3), (channels, 3)):
            parts.append(nn.Conv1d(inputs, channels, width, stride=2, padding=1))
            if norm:
                parts.append(nn.BatchNorm1d(channels))
            parts.append(nn.ReLU())
        super().__init__(*parts, nn.Flatten(), nn.Linear(5 * channels, classes))


class GRU(nn.Module):
    """A bidirectional GRU over the 40 points, and a linear layer on all its outputs, as in the mnist1d paper."""

    def __init__(self, hidden: int = 6, points: int = 40, classes: int = 10) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, hidden, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * hidden * points, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, classes)."""
        states, _ = self.recurrent(x.unsqueeze(2))
        return self.output(states.flatten(1))  # type: ignore[no-any-return]


class PostLayerNorm(nn.Module):
    """A residual MLP with LayerNorm after each addition, as in the first Transformers: it trains badly without warm-up.

    width: width of the residual stream; the branches are twice as wide.
    """

    def __init__(self, inputs: int = 40, width: int = 48, blocks: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(inputs, width), nn.Linear(width, classes)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(blocks)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, classes)."""
        state = self.enter(x)
        for branch, norm in zip(self.branches, self.norms, strict=True):
            state = norm(state + branch(state))
        return self.leave(state)  # type: ignore[no-any-return]


class Autoencoder(nn.Sequential):
    """An autoencoder with ReLU: inputs-128-16-128-inputs."""

    def __init__(self, inputs: int = 64) -> None:
        sizes = [inputs, 128, 16, 128, inputs]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        super().__init__(*layers[:-1])


class LSTM(nn.Module):
    """An LSTM over (batch, points, inputs), whose last state gives one value: (batch, 1)."""

    def __init__(self, inputs: int = 2, hidden: int = 64) -> None:
        super().__init__()
        self.recurrent, self.output = nn.LSTM(inputs, hidden, batch_first=True), nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values."""
        states, _ = self.recurrent(x)
        return self.output(states[:, -1])  # type: ignore[no-any-return]


class PoissonNetwork(nn.Module):
    """A physics-informed network (Raissi et al. 2019): x -> -u''(x) / k², where u = x (1 - x) N(x), N an MLP with tanh.

    The target is sin(k x), k = 3 π. The derivatives are propagated forward, layer by layer.
    """

    def __init__(self, hidden: int = 32, layers: int = 3, waves: int = 3) -> None:
        super().__init__()
        sizes = [1, *[hidden] * layers, 1]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.scale = (math.pi * waves) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """Return -u'' / k², (batch, 1), at x, (batch, 1)."""
        value, slope, bend = x, torch.ones_like(x), torch.zeros_like(x)
        for number, linear in enumerate(cast(list[nn.Linear], self.linears)):
            if number:
                value = value.tanh()
                rise = 1 - value.square()
                slope, bend = rise * slope, rise * bend - 2 * value * rise * slope.square()
            value, slope, bend = linear(value), slope @ linear.weight.T, bend @ linear.weight.T
        return (2 * value - 2 * (1 - 2 * x) * slope - x * (1 - x) * bend) / self.scale


class TrainedConvNet(ConvNet):
    """A ConvNet pretrained on the first five digits of other samples, with a new last layer for all ten."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(_trained() | {name: p for name, p in self.state_dict().items() if name.startswith("8.")})


@lru_cache
def _trained() -> dict[str, Tensor]:
    """Train for 600 steps, in about two seconds, on a seed that no data module uses."""
    args = get_dataset_args()
    args.seed = 1
    with isolate_rng():
        torch.manual_seed(0)
        made = make_dataset(args)
        x, y = torch.tensor(made["x"]).float(), torch.tensor(made["y"])
        x, y = x[y < 5], y[y < 5]
        network = ConvNet()
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(600):
            batch = torch.randint(len(y), (128,))
            optimizer.zero_grad()
            cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.state_dict()
