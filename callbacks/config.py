"""Log the configuration of a run."""

from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import MLFlowLogger


class LogInputs(SaveConfigCallback):
    """Logs the configuration as `config.yaml`, and the options that define the run as MLflow params.

    given: the configuration without the run's name and tags, which its checkpoints hold as `config`.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, given: dict[str, Any] | None = None) -> None:
        # a SQL store of MLflow has no log directory
        super().__init__(parser, config, save_to_log_dir=False)
        self.given = given

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, so that a checkpoint alone can be resumed and tested."""
        checkpoint["config"] = self.given

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log to MLflow; other loggers get nothing."""
        if not isinstance(trainer.logger, MLFlowLogger):
            return
        client, run_id = trainer.logger.experiment, str(trainer.logger.run_id)
        client.log_text(run_id, self.parser.dump(self.config, skip_none=False), "config.yaml")
        # model.network.class_path and model.network.init_args.hidden become model.network and model.network.hidden
        named = {
            name.replace(".init_args", "").removesuffix(".class_path"): value
            for name, value in vars(self.config.as_flat()).items()
            if name.startswith(("model.", "data.")) and value is not None
        }
        lengths = {"seed": self.config.seed_everything, "max_epochs": self.config.trainer.max_epochs}
        trainer.logger.log_hyperparams(named | lengths)
