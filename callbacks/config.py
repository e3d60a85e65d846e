"""The configuration of a run, logged with the run."""

from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import MLFlowLogger


class LogInputs(SaveConfigCallback):
    """Log the configuration as `config.yaml`, and what defines the run as MLflow params.

    given: the configuration before the run was named and tagged, which its checkpoints hold as `config`.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, given: dict[str, Any] | None = None) -> None:
        # with MLflow on SQL there is no such directory
        super().__init__(parser, config, save_to_log_dir=False)
        self.given = given

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration, so that a checkpoint alone can be resumed and tested."""
        checkpoint["config"] = self.given

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send them to MLflow; another logger gets nothing."""
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
