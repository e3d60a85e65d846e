"""What is done around each `step()` of an optimizer, whatever loop calls it."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from hypergradient.copies import unwrapped


class NotFiniteError(RuntimeError):
    """Too many steps in a row were not finite. The message says where it began, and what to look at."""


class StepHooks:
    """Base of what adapts an optimizer's rate from inside its `step()`. `remove()` ends that.

    A second one on the same optimizer takes the place of the first. A step whose gradients are not finite is skipped
    whole: the optimizer's state stays clean. Where a step fails, the optimizer has its own rates again before its next
    step, and in what is saved.

    Args:
        optimizer: any that `check_supported` takes, wrapped by Accelerate, Fabric or Lightning or not; schedulers,
            clipping and scalers around it go on as they were.
        patience: so many steps in a row may be not finite; they are skipped and counted.

    Attributes:
        steps, skipped: how many there were.

    Raises:
        ValueError: patience is out of range.
        NotFiniteError: from `optimizer.step()`, when patience is over.
    """

    def __init__(self, optimizer: Optimizer, patience: int) -> None:
        self.require("patience is 1 or more", patience >= 1, patience)
        self.optimizer, self.patience = unwrapped(optimizer), patience
        self.steps = self.skipped = self.in_a_row = self.began = 0
        self.rates: list[float] | None = None  # the optimizer's own, while it steps at others

    def attach(self) -> None:
        """Begin."""
        optimizer, name = self.optimizer, type(self).__name__
        if older := getattr(optimizer, "rate_adapter", None):
            found = type(older).__name__
            warnings.warn(f"This optimizer has a {found}: it is removed, the new {name} begins anew.", stacklevel=3)
            older.remove()
        self._hooks = (
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._after)),
            optimizer.register_state_dict_pre_hook(lambda _: self.restore()),
        )
        optimizer.rate_adapter = self  # type: ignore[attr-defined]

    def remove(self) -> None:
        """End: the optimizer steps at its own rate again."""
        self.restore()
        for hook in self._hooks:
            hook.remove()
        if getattr(self.optimizer, "rate_adapter", None) is self:
            del self.optimizer.rate_adapter

    last: Mapping[str, float | torch.Tensor]  # what was seen last

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Do what comes before the step, when the gradients are there."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Do what comes after it."""
        raise NotImplementedError

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.pop("closure", None) or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare()
            return None

        def closed() -> Any:  # the gradients come from the closure: what is to be done with them follows it
            loss = closure()
            self._prepare()
            return loss

        return (args[0], closed), kwargs

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._finish()

    def restore(self) -> None:
        """Give the optimizer its own rates: a schedule goes on from them."""
        for group, rate in zip(self.optimizer.param_groups, self.rates or (), strict=False):
            group["lr"] = rate
        self.rates = None

    def drop_unless_finite(self) -> bool:
        """Count the step; drop its gradients where they are not finite, and return whether they are.

        Raises:
            NotFiniteError: they were not, and patience is over.
            ValueError: they are sparse.
        """
        self.steps += 1
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if any(gradient.is_sparse for gradient in gradients):
            raise ValueError(f"{type(self).__name__}: sparse gradients cannot be adapted: use Embedding(sparse=False).")
        filled = [gradient for gradient in gradients if gradient.numel()]
        finite = bool(get_total_norm(filled, math.inf).isfinite())  # of none it is 0
        if not finite:  # without gradients the step does nothing
            self.optimizer.zero_grad(set_to_none=True)
            if getattr(self.optimizer, "found_inf", None) is None:  # else a scaler knows, and tries a smaller scale
                self.skip("the gradients are")
        return finite

    def skip(self, what: str) -> None:
        """Count a step that was not finite.

        Raises:
            NotFiniteError: patience is over.
        """
        self.began = self.began if self.in_a_row else self.steps
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.patience:
            raise NotFiniteError(
                f"{self.in_a_row} steps in a row were skipped, from step {self.began} on: {what} "
                "not finite. Look at the batches there, lower the optimizer's lr, or clip the gradients."
            )

    def require_loss(self, loss: Any, name: str) -> torch.Tensor:
        """Return the loss that the function of that name returned.

        Raises:
            TypeError: it is no number that depends on weights.
        """
        if isinstance(loss, torch.Tensor) and not loss.dim() and loss.requires_grad:
            return loss
        found = f"{tuple(loss.shape)}, detached or not" if isinstance(loss, torch.Tensor) else type(loss).__name__
        adapter = type(self).__name__
        raise TypeError(f"{adapter}: {name} must return the mean loss, 0-d, that backward() takes, got {found}.")

    def require(self, what: str, true: bool, got: object) -> None:
        """Raise a ValueError unless it is true."""
        if not true:
            raise ValueError(f"{type(self).__name__}: {what}, got {got}.")
