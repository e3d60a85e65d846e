"""What a run was trained on and what came out, as MLflow knows them: dataset digests, a model with a signature."""

from typing import Any

import mlflow
import torch
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.models import infer_signature
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger


class LogDataset(Callback):
    """Keep name, shape and digest of the training, the validation and the test samples as inputs of the run."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send them, if the logger is MLflow's."""
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


class LogModel(Callback):
    """Keep the trained network as an MLflow model: `mlflow.pyfunc.load_model("runs:/RUN/model").predict(x)`.

    As an exported graph (torch's .pt2), not as a pickle: loading it runs no code of the file, and needs none of ours.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, with a signature and an example of the input, (1, ...) float32."""
        if not isinstance(trainer.logger, MLFlowLogger) or not trainer.is_global_zero:
            return
        network: Any = pl_module.network
        network.cpu().eval()
        example = trainer.datamodule.val[0][:2]  # type: ignore[attr-defined]  # one alone would be taken for the shape
        with torch.no_grad():
            signature = infer_signature(example.numpy(), network(example).numpy())
        mlflow.set_tracking_uri(trainer.logger._tracking_uri)
        with mlflow.start_run(run_id=trainer.logger.run_id):
            mlflow.pytorch.log_model(
                network,
                name="model",
                signature=signature,
                input_example=example.numpy(),
                pip_requirements=[f"torch=={torch.__version__}"],
                serialization_format="pt2",
            )
