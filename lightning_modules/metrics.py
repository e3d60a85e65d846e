"""R² in float64, which torchmetrics computes in float32."""

from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class R2(Metric):
    """R² = 1 - Σ (y - ŷ)² / Σ (y - ȳ)² over all samples, of all batches and processes, in float64.

    ȳ is the mean of each output, so that several outputs are weighted by their variance. `torchmetrics.R2Score`
    subtracts sums of squares in the targets' precision: in float32, at a mean of 2,000, it returned .48 instead of .58.
    """

    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("outputs", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch. targets: (batch, ...); outputs: as many values."""
        self.outputs.append(outputs.reshape(targets.shape).double())
        self.targets.append(targets.double())

    def compute(self) -> Any:
        """Return R², 0-d float64."""
        outputs, targets = dim_zero_cat(self.outputs), dim_zero_cat(self.targets)
        return 1 - (targets - outputs).square().sum() / (targets - targets.mean(0)).square().sum()
