"""The networks of the comparison. Inputs are (batch, inputs) float32, outputs (batch, classes)."""

from typing import Literal

from torch import Tensor, nn


class MLP(nn.Sequential):
    """An MLP with ReLU, 40-100-10 by default.

    Args:
        inputs: of a sample.
        hidden: units of a hidden layer.
        classes: outputs; 1 for a regression.
        layers: hidden layers; 0 for logistic regression.
        norm: None, "layer" or "batch": what stands before the ReLU of each hidden layer.
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
    """A bidirectional GRU over the 40 points, its outputs at all of them read by one layer, as in the mnist1d paper."""

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

    width: of the residual stream; the branches are twice as wide.
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
