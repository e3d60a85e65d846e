"""A base class of callbacks that average weights. Only this module imports `lightning` or `pytorch_lightning`.

It does not import the rule, so that an edit of the rule does not retrain arms that only average.
"""

from typing import TYPE_CHECKING, Any

from hypergradient.sets import Average

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    # the Trainer of one package calls hooks by name, so also those of the other's callbacks
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError:
        from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["Callback", "LightningModule", "ReturnsAverage", "Trainer"]

# callbacks that average the weights; subclasses included
AVERAGES = {"ReturnsAverage", "WeightAveraging", "StochasticWeightAveraging"}


class ReturnsAverage(Callback):
    """Base class of callbacks that validate, save and return averaged weights.

    In a checkpoint, `state_dict` is the average; `current` has the weights of the run, to resume from.

    Attributes:
        restored: the average in the checkpoint from which a fit resumes.
    """

    restored: Average | None = None
    averages = True

    @property
    def average(self) -> Average | None:
        """The average; None before training, and where the weights are not averaged."""
        return self.restored

    def refuse_other_weights(self, trainer: Trainer) -> None:
        """Raise a ValueError if another callback would save or return weights other than the validated ones."""
        name = type(self).__name__
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise ValueError(f"{name} averages the weights: ModelCheckpoint(save_weights_only=True) would save others.")
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is not self and AVERAGES & {base.__name__ for base in type(other).__mro__}:
                raise ValueError(f"{name} averages the weights, and so does {type(other).__name__}: use one of them.")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange the module's weights and the average: before and after a validation."""
        if self.average and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.average.exchange()

    on_validation_end = on_validation_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the module's weights, if the error occurred in a validation."""
        if self.average and self.average.exchanged:
            self.average.exchange()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        if self.average and not self.average.exchanged:
            device = pl_module.device
            self.average.exchange()
            # Lightning has moved the module off the GPU by now
            pl_module.to(device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as `state_dict`, and the weights of the run as `current`."""
        if average := self.average:
            own = checkpoint["state_dict"]
            average.exchange()
            other = pl_module.state_dict()
            average.exchange()
            checkpoint["state_dict"], checkpoint["current"] = (own, other) if average.exchanged else (other, own)
            checkpoint["exact"] = average.state_dict()["exact"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the weights of the run to resume a fit; other uses load the average."""
        if self.averages and trainer.state.fn == "fit" and "current" in checkpoint:
            self.restored = Average(pl_module, [p for p in pl_module.parameters() if p.requires_grad])
            self.restored.take_exact(checkpoint["exact"])
            pl_module.load_state_dict(checkpoint["current"], strict=pl_module.strict_loading)
