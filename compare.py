"""Train every arm on every seed, and set them side by side: `python compare.py --seeds 5`."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

import train
from options import ARMS, HEADLINE, QUIET, ROOT, parse_sweep, positive, sweep_parser
from plots import line_figure
from tables import conditions, paired_table
from tracking import client, how_to_see, open_experiment, parent_run
from workers import CORES, each, worker_pool

RESULTS = ROOT / "results"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"
CEILING = 3.0  # of a loss in a figure: above it a run has failed, by how much is no matter


@dataclass(frozen=True)
class Job:
    """One run: what it is called in the results, its arm, its seed, the draw of its data, its other options."""

    label: str
    arm: str
    seed: int
    draw: int = 0
    lr: float | None = None
    options: tuple[str, ...] = ()

    def args(self) -> list[str]:
        """Return the command line of `train.py`."""
        draw = [f"--data.draw={self.draw}"] if self.draw else []
        lr = [] if self.lr is None else [f"--model.lr={self.lr}"]
        return ["--optimizer", self.arm, *self.options, *draw, *lr, f"--seed_everything={self.seed}", QUIET]


def run(job: Job) -> str | None:
    """Train, unless MLflow has the run, and return its id."""
    return train.main(job.args(), reuse=True).run_id


def run_all(jobs: Sequence[Job], pool: Executor | None = None, name: str = "compare") -> pd.DataFrame:
    """Train what MLflow does not have yet and return a row a run, in the order of the jobs, with what MLflow holds."""
    ids: dict[int, str] = {}
    with tqdm(total=len(jobs), desc=name, unit="run") as bar:
        for number, run_id in each(run, jobs, pool):
            ids[number] = run_id
            bar.set_postfix_str(f"{jobs[number].label}, seed {jobs[number].seed}")
            bar.update()
    facts = [{"arm": job.label, "seed": job.seed, "draw": job.draw, "start_lr": job.lr} for job in jobs]
    return pd.DataFrame([facts[number] | {"run_id": ids[number]} | read_run(ids[number]) for number in sorted(ids)])


def read_run(run_id: str) -> dict[str, Any]:
    """Return a run's figures; a run that diverged has an infinite loss and no accuracy."""
    run = client().get_run(run_id)
    metrics, params, info = run.data.metrics, run.data.params, run.info
    lrs = [point.value for point in client().get_metric_history(run_id, "lr")]
    if "search/passes" in metrics:
        passes = 1 + metrics["search/passes"] / len(lrs)
    elif "hypergradient" in metrics:
        looks = len(client().get_metric_history(run_id, "hypergradient")) / len(lrs)
        passes = 1 + looks * int(params["data.val_batch_size"]) / int(params["data.batch_size"])
    else:
        passes = 1.0
    return {
        "test_loss": metrics.get("test/loss", math.inf),
        "test_accuracy": metrics.get("test/accuracy", metrics.get("test/r2", math.nan)),
        "val_loss": metrics.get("val/loss", math.inf),
        "final_lr": metrics["lr"],
        "passes": passes,
        "seconds": (info.end_time - info.start_time) / 1000,
        "commit": run.data.tags.get("mlflow.source.git.commit", "")[:7],
        "val_losses": [point.value for point in client().get_metric_history(run_id, "val/loss")],
        "lrs": lrs,
    }


def draw_courses(runs: pd.DataFrame, folder: Path) -> None:
    """Draw validation loss against epoch and rate against step: mean and 95 % interval over runs, one line an arm."""
    for column, x, y, log, name in [
        ("val_losses", "epoch", "validation loss", False, "comparison.png"),
        ("lrs", "step", "learning rate", True, "lr_evolution.png"),
    ]:
        curves = {}
        for arm, histories in runs.groupby("arm", sort=False)[column]:
            points = min(map(len, histories))  # a run that diverged has fewer
            curves[str(arm)] = (range(1, points + 1), [history[:points] for history in histories])
        line_figure({arm: curve for arm, curve in curves.items() if curve[0]}, x, y, log).savefig(folder / name)


def draw_sensitivity(runs: pd.DataFrame, folder: Path) -> None:
    """Draw the final test loss against the starting rate, one line an arm."""
    curves = {}
    for arm, own in runs.groupby("arm", sort=False):
        losses = own.pivot(index=["draw", "seed"], columns="start_lr", values="test_loss").clip(upper=CEILING)
        curves[str(arm)] = (list(losses.columns), losses.to_numpy())
    figure = line_figure(curves, "learning rate at the start", "test loss after the last epoch", log_x=True)
    figure.savefig(folder / "lr_sensitivity.png")


def write_between_markers(text: str, path: Path, begin: str = BEGIN, end: str = END) -> None:
    """Put the text between the two markers of a file."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(before + begin + text + end + rest.split(end)[1], encoding="utf-8")


def keep(runs: pd.DataFrame, text: str, folder: Path, parent: str) -> None:
    """Write table and raw numbers beside the figures, and everything into the parent run."""
    runs.drop(columns=["val_losses", "lrs"]).to_csv(folder / "results.csv", index=False)
    (folder / "table.md").write_text(text, encoding="utf-8")
    client().set_tag(parent, "mlflow.note.content", text)  # the description that the UI shows
    for file in [*folder.glob("*.png"), folder / "results.csv", folder / "table.md"]:
        client().log_artifact(parent, str(file))


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the comparison, and the rest, which goes on to every run."""
    parser = sweep_parser("compare.py", __doc__)
    parser.add_argument("--seeds", type=positive, default=5, help="runs an arm: seeds 1 ... SEEDS (tuning took 0)")
    parser.add_argument("--draws", type=positive, default=1, help="draws of the data: 0, the published, ... DRAWS - 1")
    parser.add_argument("--optimizers", nargs="+", choices=ARMS, default=HEADLINE, metavar="ARM", help=" ".join(ARMS))
    parser.add_argument("--initial-lrs", nargs="+", type=float, metavar="LR", help="run every arm from each of these")
    parser.add_argument("--workers", type=positive, default=CORES, help="processes (default: the cores)")
    parser.add_argument("--output", type=Path, default=RESULTS / "compare", help="folder (default: results/compare)")
    own, rest = parse_sweep(parser, args)
    own.optimizers = list(dict.fromkeys(own.optimizers))  # each once
    return own, rest


def main(args: list[str] | None = None) -> pd.DataFrame:
    """Train what is missing, read everything back from MLflow, write the figures, the table and the raw numbers.

    Raises:
        SystemExit: status 2 where the arguments are wrong.
    """
    own, rest = parse(args)
    command = f"python compare.py {shlex.join(sys.argv[1:] if args is None else args)}"
    experiment = open_experiment()
    for arm in own.optimizers:
        train.main(["--optimizer", arm, QUIET, "--trainer.fast_dev_run=true", *rest])  # refuses wrong options at once
    grid = product(range(own.draws), range(1, own.seeds + 1), own.optimizers, own.initial_lrs or [None])
    jobs = [Job(arm, arm, seed, draw, lr, tuple(rest)) for draw, seed, arm, lr in grid]
    with parent_run("compare", {"mlflow.note.content": f"`{command}`"}) as parent:
        with worker_pool(own.workers) as pool:
            runs = run_all(jobs, pool)
        own.output.mkdir(parents=True, exist_ok=True)
        if own.initial_lrs:
            draw_sensitivity(runs, own.output)
        draw_courses(runs, own.output)
        text = f"{paired_table(runs)}\n\n{conditions(runs, command)}\n"
        keep(runs, text, own.output, parent)
    print(f"{text}\nwritten to  {own.output}\nsee it      {how_to_see(experiment, parent)}")
    return runs


if __name__ == "__main__":
    train.script(main)
