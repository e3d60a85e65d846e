"""What is printed of a run when it is over."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from tracking.links import how_to_see
from tracking.store import client

if TYPE_CHECKING:
    from experiment.training import Run


def report(run: "Run") -> None:
    """Print what came out, and where it is to be seen; of several processes, the first one does."""
    if not run.trainer.is_global_zero:
        return
    if run.diverged:
        print(run.diverged, file=sys.stderr)
    metrics = dict(run.test_metrics)
    with suppress(MlflowException):  # a server that has gone away; the rest is printed all the same
        metrics = client().get_run(run.run_id).data.metrics if run.run_id else metrics
    names = [name for name in ("val/loss", "test/loss", "test/accuracy", "test/r2") if name in metrics]
    if names and not run.diverged:
        print(", ".join(f"{name} {metrics[name]:.4f}" for name in names))
    if "lr" in metrics:
        print(f"the learning rate ended at {metrics['lr']:.3g}")
    if path := getattr(run.trainer.checkpoint_callback, "best_model_path", None):
        print(f"checkpoint  {path}")
    if run.run_id and run.tracker:
        print(f"MLflow run  {run.run_id}")
        print(f"see it      {how_to_see(str(run.tracker.experiment_id), run.run_id)}")
