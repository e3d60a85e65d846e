"""The networks of the comparison."""

from torch import nn


class MLP(nn.Sequential):
    """40-100-10 with ReLU by default: (batch, inputs) float32 -> (batch, classes) logits."""

    def __init__(self, inputs: int = 40, hidden: int = 100, classes: int = 10) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
