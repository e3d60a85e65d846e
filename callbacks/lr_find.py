"""Lightning's learning rate finder, used as its documentation recommends: a baseline."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder

from callbacks.divergence import DivergenceError


class FindLearningRate(LearningRateFinder):
    """Raises the rate over 100 steps, and starts again at the rate where the training loss fell most steeply.

    Optimizer and schedule are rebuilt, so that a schedule peaks at that rate. The steps count in the module's `passes`.
    A run that resumes from a checkpoint keeps its rate. If no rate is found, the run has diverged.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rate."""
        if trainer.ckpt_path:
            return
        given, loop = dict(pl_module.hparams), trainer.fit_loop
        # -1: as many epochs as the search needs
        epochs, loop.max_epochs = loop.max_epochs, -1
        super().on_fit_start(trainer, pl_module)
        loop.max_epochs = epochs
        # the rate found is not part of the configuration
        pl_module.hparams.update(given)
        # None in a fast_dev_run
        if self.optimal_lr is not None:
            if self.optimal_lr.suggestion() is None:
                raise DivergenceError("lr_find found no learning rate: the loss is not finite.")
            trainer.strategy.setup_optimizers(trainer)
            steps = len(self.optimal_lr.results["lr"])
            pl_module.passes = getattr(pl_module, "passes", 0.0) + steps  # type: ignore[assignment]
