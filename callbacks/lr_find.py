"""Lightning's learning rate finder before the run: a rival of `meta`, used as its documentation says."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder

from callbacks.divergence import DivergenceError


class FindLearningRate(LearningRateFinder):
    """Raise the rate over 100 steps, take it where the training loss falls most steeply, and start over at that rate.

    Optimizer and schedule are built again, so that a schedule peaks at the rate found. The cost of the steps counts in
    the module's `passes`. A run that resumes from a checkpoint has its rate. Without a result the run has diverged.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rate."""
        if trainer.ckpt_path:
            return
        given, loop = dict(pl_module.hparams), trainer.fit_loop
        # as many epochs as the search needs
        epochs, loop.max_epochs = loop.max_epochs, -1
        super().on_fit_start(trainer, pl_module)
        loop.max_epochs = epochs
        # the rate that was found does not belong to the configuration
        pl_module.hparams.update(given)
        # none in a fast_dev_run
        if self.optimal_lr is not None:
            if self.optimal_lr.suggestion() is None:
                raise DivergenceError("lr_find found no learning rate: the loss is not finite.")
            trainer.strategy.setup_optimizers(trainer)
            steps = len(self.optimal_lr.results["lr"])
            pl_module.passes = getattr(pl_module, "passes", 0.0) + steps  # type: ignore[assignment]
