"""Skip steps whose gradients are not finite, before they reach the weights or the optimizer's state."""

import math
from typing import Any

from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class NotFiniteError(RuntimeError):
    """Too many steps in a row were not finite. The message says where this began and what to check.

    Example:
        >>> import torch
        >>> from hypergradient import RateAdapter
        >>> network = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(network.parameters())
        >>> loss = lambda network, batch: network(batch).mean()
        >>> adapter = RateAdapter(optimizer, network, loss, [torch.ones(4, 2)], 100, patience=2)
        >>> for _ in range(2):
        ...     adapter.loss(torch.full((4, 2), torch.inf)).backward()
        ...     optimizer.step()
        Traceback (most recent call last):
        hypergradient.finite.NotFiniteError: 2 steps in a row were skipped, from step 1 on: ...
    """


class FiniteSteps:
    """Counts the steps of an optimizer, and skips those whose gradients are not finite.

    Attributes:
        steps, skipped: numbers of all steps and of skipped ones. in_a_row: steps skipped since the last finite one.
        began: the first of these.
    """

    def __init__(self, optimizer: Optimizer, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"patience must be 1 or more, got {patience}.")
        self.optimizer, self.patience = optimizer, patience
        self.steps = self.skipped = self.in_a_row = self.began = 0

    def check(self) -> bool:
        """Return whether the gradients of the next step are finite; if not, delete them, so that the step does nothing.

        Raises:
            ValueError: the gradients are sparse.
            NotFiniteError: `patience` steps were skipped, either in a row or as more than half of all steps.
        """
        self.steps += 1
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if any(gradient.is_sparse for gradient in gradients):
            raise ValueError("Sparse gradients are not supported: use Embedding(sparse=False).")
        if bool(get_total_norm([g for g in gradients if g.numel()], math.inf).isfinite()):
            self.in_a_row = 0
            return True
        self.optimizer.zero_grad(set_to_none=True)
        if getattr(self.optimizer, "found_inf", None) is not None:
            # a GradScaler skips the step itself, and lowers its scale
            return False
        self.began = self.began if self.in_a_row else self.steps
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        most = self.skipped >= self.patience and 2 * self.skipped > self.steps
        if most or self.in_a_row >= self.patience:
            which = f"{self.skipped} of {self.steps} steps were skipped"
            if self.in_a_row >= self.patience:
                which = f"{self.in_a_row} steps in a row were skipped, from step {self.began} on"
            raise NotFiniteError(
                f"{which}: their gradients are not finite. Check their batches, lower the optimizer's lr, or clip the "
                "gradients."
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, to resume from."""
        return {name: value for name, value in vars(self).items() if name not in ("optimizer", "patience")}
