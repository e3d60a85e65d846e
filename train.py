"""Train one arm, test it once, store the run in MLflow: `python train.py --optimizer meta`."""

import sys

from experiment.options import one_run
from experiment.process import importing, script


def main(args: list[str] | None = None) -> None:
    """Run the command line and print the result; exit with status 1 if the run diverged."""
    given = sys.argv[1:] if args is None else args
    if given[:1] in (["--help"], ["-h"]):
        one_run().print_help()
        return
    with importing():
        from callbacks.trajectory import schedule_file
        from experiment.run import train
        from reporting.curves import read_schedule
        from tracking.links import how_to_see

    run = train(given)
    # of several processes, only the first prints
    if run.trainer.is_global_zero:
        names = [name for name in ("val/loss", "test/loss", "test/accuracy", "test/r2") if name in run.metrics]
        if names and not run.diverged:
            print(", ".join(f"{name} {run.metrics[name]:.4f}" for name in names))
        file, tab = schedule_file(run.trainer), ""
        if file and file.exists():
            tab = "" if run.diverged else "/artifacts/trajectory.png"
            print(f"the learning rate ended at {read_schedule(file)['lrs'][-1]:.3g}")
        if path := getattr(run.trainer.checkpoint_callback, "best_model_path", None):
            print(f"checkpoint  {path}")
        if run.run_id and run.tracker:
            print(f"MLflow run  {run.run_id}")
            print(f"see it      {how_to_see(str(run.tracker.experiment_id), run.run_id, tab)}")
    if run.diverged:
        sys.exit(f"train.py: {run.diverged}")


if __name__ == "__main__":
    script(main)
