"""Lightning's learning rate finder before the run: a rival of `meta`, as its users run it."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder


class FindLearningRate(LearningRateFinder):
    """Raise the rate over 100 steps, take it where the training loss falls most steeply, and start anew at that rate.

    Optimizer and schedule are built again, so a schedule whose peak is the rate has the one found. What the steps cost
    counts in the module's `passes`. A run that goes on from a checkpoint has its rate.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rate."""
        if trainer.ckpt_path:
            return
        typed = dict(pl_module.hparams)
        super().on_fit_start(trainer, pl_module)
        pl_module.hparams.update(typed)  # the rate that was found is not the configuration's
        if self.optimal_lr is not None:  # none in a fast_dev_run
            trainer.strategy.setup_optimizers(trainer)
            taken = len(self.optimal_lr.results["lr"])
            pl_module.passes = getattr(pl_module, "passes", 0.0) + taken  # type: ignore[assignment]
