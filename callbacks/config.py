"""The configuration of a run and digests of its data, logged with the run."""

from typing import Any

import yaml
from jsonargparse import Namespace
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import Dataset, DatasetInput, InputTag
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import MLFlowLogger


class LogInputs(SaveConfigCallback):
    """Log the whole configuration as `config.yaml`, what defines the run as MLflow params, and digests of the data."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        # with MLflow on SQL there is no such directory
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send configuration and params to MLflow; another logger gets nothing."""
        if not isinstance(trainer.logger, MLFlowLogger):
            return
        text = self.parser.dump(self.config, skip_none=False)
        trainer.logger.experiment.log_text(trainer.logger.run_id, text, "config.yaml")
        config = yaml.safe_load(text)
        params = flat("model", config["model"]) | flat("data", config["data"])
        params |= {"seed": config["seed_everything"], "max_epochs": config["trainer"]["max_epochs"]}
        trainer.logger.log_hyperparams(params)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send name, shape and digest of the training, the validation and the test samples to MLflow."""
        # its work is done, and Lightning would call it some six times a step
        own = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [callback for callback in own if callback is not self]  # type: ignore[attr-defined]
        if not isinstance(trainer.logger, MLFlowLogger) or not trainer.is_global_zero:
            return
        module = trainer.datamodule  # type: ignore[attr-defined]
        inputs = []
        for part, context in {"train": "training", "val": "validation", "test": "testing"}.items():
            x, y = (tensor.numpy() for tensor in getattr(module, part))
            name = f"{type(module).__name__.removesuffix('DataModule')} {part}"
            facts = from_numpy(x, targets=y, name=name).to_dict()
            inputs.append(DatasetInput(Dataset(**facts), [InputTag("mlflow.data.context", context)]))
        trainer.logger.experiment.log_inputs(str(trainer.logger.run_id), datasets=inputs)


def flat(name: str, value: Any) -> dict[str, Any]:
    """Return {"model.lr": 0.001, "model.optimizer": "torch.optim.Adam", ...}: a class stands under its own name."""
    if not isinstance(value, dict):
        return {} if value is None else {name: value}
    children = value.get("init_args", {}) if "class_path" in value else value
    here = {name: value["class_path"]} if "class_path" in value else {}
    inner = [flat(f"{name}.{child}", leaf) for child, leaf in children.items()]
    return here | {key: leaf for leaves in inner for key, leaf in leaves.items()}
