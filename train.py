"""Train one arm, test it once, keep the run in MLflow: `python train.py --optimizer meta`."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from experiment.options import HELP
from experiment.process import importing, script

if TYPE_CHECKING:
    from experiment.run import Run


def main(args: list[str] | None = None) -> None:
    """Train as the command line says, and print the result; exit with status 1 if the run diverged."""
    given = sys.argv[1:] if args is None else args
    if given[:1] in (["--help"], ["-h"]):
        print(HELP)
        return
    # late: the help does not wait for torch
    with importing():
        from experiment.run import train

    run = train(given)
    # of several processes, the first one prints
    if run.trainer.is_global_zero:
        report(run)
    if run.diverged:
        sys.exit(1)


def report(run: "Run") -> None:
    """Print what came out of a run, and where to see it."""
    from mlflow.exceptions import MlflowException

    from tracking.links import how_to_see
    from tracking.store import client

    if run.diverged:
        print(run.diverged, file=sys.stderr)
    if not run.model.reads_lr and any(word.split("=")[0] == "--model.lr" for word in run.line.options):
        print("--model.lr is not read: this arm finds its rate before the first step", file=sys.stderr)
    metrics = dict(run.test_metrics)
    # without a server the rest is printed all the same
    with suppress(MlflowException):
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


if __name__ == "__main__":
    script(main)
