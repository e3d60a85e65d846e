"""What came out of a run, as MLflow knows it: a model with a signature, what a search tried."""

import copy
import math
import sys
from typing import cast

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger
from torch import nn

from reporting.curves import line
from reporting.figures import line_figure


class LogModel(Callback):
    """Keep the trained network as an MLflow model: `mlflow.pyfunc.load_model("runs:/RUN/model").predict(x)`.

    As an exported graph (torch's .pt2), not as a pickle: loading it runs no code of the file, and needs none of ours.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, with a signature and an example of the input, (1, ...) float32."""
        if not isinstance(trainer.logger, MLFlowLogger) or not trainer.is_global_zero:
            return
        try:
            self._log(trainer, pl_module)
        except (MlflowException, OSError) as error:  # without its text, which may hold a password
            print(
                f"--log-model: the store did not take the model ({type(error).__name__}). The run's checkpoint has "
                "the weights.",
                file=sys.stderr,
            )

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = copy.deepcopy(cast(nn.Module, pl_module.network)).float().cpu().eval()
        example = trainer.datamodule.val[0][:2]  # type: ignore[attr-defined]  # one alone would be taken for the shape
        with torch.no_grad():
            signature = infer_signature(example.numpy(), network(example).numpy())
        logger = cast(MLFlowLogger, trainer.logger)
        mlflow.set_tracking_uri(logger._tracking_uri)
        with mlflow.start_run(run_id=logger.run_id):
            mlflow.pytorch.log_model(
                network,
                name="model",
                signature=signature,
                input_example=example.numpy(),
                pip_requirements=[f"torch=={torch.__version__}"],
                serialization_format="pt2",
            )
        logger.experiment.update_run(str(logger.run_id), "RUNNING")  # `start_run` ended it, and its test follows


class LogSearch(Callback):
    """Keep what a search before the run tried, as a table (`search.json`) and a figure (`search.png`)."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log once, after the search: the module's `tried`, of which each has a rate, a length and a loss."""
        tried = pd.DataFrame(getattr(pl_module, "tried", []))
        if trainer.current_epoch or not isinstance(trainer.logger, MLFlowLogger) or tried.empty:
            return
        tried = tried.sort_values(["times", "lr"])
        lines = [
            line(f"stretches {times} × as long", "val_loss", own.lr, own.val_loss.clip(upper=2 * tried.val_loss.min()))
            for times, own in tried.groupby("times")
        ]
        axes = {"xlabel": "learning rate tried", "ylabel": "validation loss", "xscale": "log"}
        figure = line_figure(pd.concat(lines), "losses more than twice the best are drawn there", "o", **axes)
        client, run_id = trainer.logger.experiment, str(trainer.logger.run_id)
        client.log_table(run_id, tried.replace(math.inf, None), "search.json")
        client.log_figure(run_id, figure, "search.png")
