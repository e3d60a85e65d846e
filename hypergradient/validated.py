"""Hooks of a Lightning callback whose average takes the place of the weights wherever they are looked at.

No import of Lightning: a Trainer of `lightning` or of `pytorch_lightning` calls hooks by their names.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hypergradient.average import Average
from hypergradient.copies import load_state


class ValidatesAverage:
    """Base of a callback that validates, saves and returns an average; what training goes on with lies beside it.

    Attributes:
        current: the weights of the last step, when the fit is over.
        loaded: the average of the checkpoint that the fit goes on from, until training starts.
    """

    current: Mapping[str, Any] = MappingProxyType({})
    loaded: Mapping[str, Any] = MappingProxyType({})

    @property
    def running(self) -> Average | None:
        """The average; None before training, and where there is none."""
        raise NotImplementedError

    @property
    def averages(self) -> bool:
        """Whether there is to be one."""
        return True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Validate the average."""
        self._swap(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Go on with the weights."""
        self._swap(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the module its weights back, if it was validating the average."""
        if self.running and self.running.swapped:
            self.running.swap()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the average into the module."""
        if self.running:
            self.current = copy.deepcopy(pl_module.state_dict())
            self.running.put()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the average into the module, where the run was over when it went on: then no training starts."""
        if self.loaded:
            self.current = copy.deepcopy(pl_module.state_dict())
            load_state(pl_module, self.loaded)
            self.loaded = {}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the average as the module's weights, and beside it those that training goes on with."""
        if self.loaded:  # training has not started again
            checkpoint["state_dict"], checkpoint["current"] = dict(self.loaded), checkpoint["state_dict"]
        elif self.current:  # the fit is over: the module has the average, or what was made of it
            checkpoint["current"] = self.current
        elif self.running:
            checkpoint["state_dict"], checkpoint["current"] = self.running.states()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with the weights; elsewhere the checkpoint's average is what is wanted."""
        if self.averages and trainer.state.fn == "fit" and "current" in checkpoint:
            self.loaded = dict(checkpoint["state_dict"])
            load_state(pl_module, checkpoint["current"])

    def begin(self) -> None:
        """Forget another fit's weights: training starts."""
        self.current = self.loaded = {}

    def _swap(self, trainer: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.running:
            self.running.swap()
