"""Rivals whose packages keep a part of their state where torch's `state_dict()` does not look: here a run resumes."""

from collections.abc import Iterable
from typing import Any

import torch
from mechanic_pytorch import mechanize
from momo import MomoAdam
from torch import Tensor, nn

KEPT = "_mechanic"  # where Mechanic keeps its state, some of it by parameter


class Momo(MomoAdam):  # type: ignore[misc]
    """MoMo-Adam (Schaipp et al. 2024, arXiv 2305.07583): Polyak's step from the loss so far; its rate is a cap.

    Args:
        params: the network's.
        lr: the cap.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-2) -> None:
        super().__init__(params, lr=lr)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged loss and the number of steps too."""
        state: dict[str, Any] = super().state_dict()
        return state | {"momo": (self.loss_avg, self._number_steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        super().load_state_dict(state_dict)
        self.loss_avg, self._number_steps = state_dict["momo"]


class Mechanic(mechanize(torch.optim.AdamW)):  # type: ignore[misc]
    """Mechanic (Cutkosky et al. 2023, arXiv 2306.00144) around AdamW: a factor on all that AdamW did so far.

    Args:
        params: the network's.
        lr: of AdamW, in units of what Mechanic learns.
        weight_decay: of AdamW.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """Return its state with parameters by number, as torch does with its own."""
        state: dict[str, Any] = super().state_dict()
        number = {p: index for index, p in enumerate(self._params())}
        own = {number.get(name, name): value for name, value in state["state"].pop(KEPT, {}).items()}
        return state | {"mechanic": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        super().load_state_dict(state_dict)
        if own := state_dict["mechanic"]:
            params = dict(enumerate(self._params()))
            self.state[KEPT] = {params.get(name, name): value for name, value in own.items()}

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]
