"""Call functions once before and once after each `step()` of an optimizer, in any loop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer


class AroundStep:
    """Calls `before` when the gradients of a step are computed, and `after` when the step is done.

    Nested steps, such as the call of a base class's step, count as one. If `before`, the step or `after` raises an
    error, `abandon` is called, at the latest before the next step.
    """

    def __init__(
        self, optimizer: Optimizer, before: Callable[[], None], after: Callable[[], None], abandon: Callable[[], None]
    ) -> None:
        self.before, self.after, self._abandon = before, after, abandon
        self.depth, self.in_closure = 0, False
        self.hooks = [
            optimizer.register_step_pre_hook(torch.compiler.disable(self._enter)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._leave)),
        ]

    def between_steps(self) -> None:
        """Abandon an unfinished step, unless its closure is running."""
        if self.depth and not self.in_closure:
            self.abandon()

    def abandon(self) -> None:
        """End a step that raised an error."""
        self.depth, self.in_closure = 0, False
        self._abandon()

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.pop("closure", None) or (args[1] if len(args) > 1 else None)
        if self.depth and closure and not isinstance(closure, _Closure):
            # not a nested step: the previous one raised an error
            self.abandon()
        self.depth += 1
        if closure is None:
            if self.depth == 1:
                with self.abandoning():
                    self.before()
            return None
        return (args[0], _Closure(self, closure) if self.depth == 1 else closure), kwargs

    def _leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            with self.abandoning():
                self.after()

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Abandon the step if the block raises an error."""
        try:
            yield
        except BaseException:
            self.abandon()
            raise


class _Closure:
    """The closure of a step, followed by `before`: the closure computes the gradients."""

    def __init__(self, around: AroundStep, closure: Callable[[], Any]) -> None:
        self.around, self.closure = around, closure

    def __call__(self) -> Any:
        with self.around.abandoning():
            self.around.in_closure = True
            loss = self.closure()
            self.around.in_closure = False
            self.around.before()
        return loss
