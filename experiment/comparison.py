"""Arms × seeds × data seeds × starting rates: trained where missing, set side by side."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
from pytorch_lightning.callbacks import Timer

from callbacks import Trajectory
from experiment.drawing import draw, keep_courses
from experiment.jobs import Job, run_all, share
from experiment.presets import QUIET, preset
from experiment.process import end
from experiment.sweep import alone, require_shared, sweep_name
from experiment.training import train
from experiment.workers import worker_pool
from reporting.curves import COURSES
from reporting.tables import conditions, legend, paired_table
from tracking.runs import parent_run
from tracking.store import client, open_experiment


@dataclass(frozen=True)
class Comparison:
    """What is compared; the options of `compare.py`. `arguments` go on to every run."""

    optimizers: list[str]
    seeds: int
    data_seeds: int
    initial_lrs: list[float | None]
    arguments: tuple[str, ...]
    workers: int
    storage: str | None
    output: Path

    @property
    def base(self) -> str:
        """The arm that the others are compared with: `meta`, or the first."""
        arms = [Path(arm).stem for arm in self.optimizers]
        return "meta" if "meta" in arms else arms[0]

    @property
    def jobs(self) -> list[Job]:
        """Every run of it."""
        grid = product(range(self.data_seeds), range(1, self.seeds + 1), self.optimizers, self.initial_lrs)
        return [Job(Path(arm).stem, arm, seed, data_seed, lr, self.arguments) for data_seed, seed, arm, lr in grid]


def compare(comparison: Comparison, command: str) -> tuple[pd.DataFrame, str, str]:
    """Train what is missing, read everything back from MLflow, write the figures, the table and the raw numbers.

    Returns the runs, the table, and the run in MLflow that holds it all.

    Raises:
        SystemExit: status 2 where the arguments are wrong.
    """
    require_shared(comparison.storage)
    open_experiment()
    text, digests = plan(comparison)
    print(text)
    facts = [comparison.seeds, comparison.data_seeds, comparison.initial_lrs]
    sweep = sweep_name("compare", [*digests, str(facts)])
    tags = {"mlflow.note.content": f"`{command}`"}
    with alone(sweep, comparison.storage), parent_run("compare", sweep, tags) as parent:
        jobs = [replace(job, parent=parent) for job in comparison.jobs]
        if comparison.storage:
            share(comparison.storage, sweep, jobs, comparison.workers)
        with worker_pool(comparison.workers) as pool:
            runs = run_all(jobs, pool)
        about = f"{' '.join(comparison.arguments) or 'mnist1d'}; "
        base = comparison.base
        rows, base = by_start(runs, base) if len(comparison.initial_lrs) > 1 else (runs, base)
        shown = paired_table(rows, base)
        table = f"{shown}\n\n{conditions(runs, command)}{legend(shown)}\n"
        keep_courses(runs, comparison.output)
        keep(runs, table, comparison.output, parent, about)
    return runs, table, parent


def by_start(runs: pd.DataFrame, base: str) -> tuple[pd.DataFrame, str]:
    """Return the runs with an arm for each starting rate, and the one that the others are compared with."""
    named = [f"{arm} from {lr:g}" for arm, lr in zip(runs.arm, runs.start_lr, strict=True)]
    return runs.assign(arm=named), f"{base} from {runs.start_lr.iloc[0]:g}"


def plan(comparison: Comparison) -> tuple[str, list[str]]:
    """Refuse wrong options; return how many runs there will be and how long that takes, and each arm's digest.

    The time is estimated from an epoch of each arm.
    """
    seconds, digests = [], []
    for arm in comparison.optimizers:
        timer = Timer()
        options = [*preset(arm), QUIET, "--trainer.fast_dev_run=32", *comparison.arguments]
        run = train(options, callbacks=[timer])
        steps = max(run.command.trainer.max_epochs or 1, 1) * len(iter(run.datamodule.train_dataloader()))
        if seed := run.command.data.init_args.get("seed", 0):
            end(f"error: the data seed is {seed} by the options or the files given; here it is --data-seeds", 2)
        if run.command.trainer.get("limit_test_batches") == 0:
            end("error: --trainer.limit_test_batches=0 leaves nothing to compare", 2)
        if not any(isinstance(callback, Trajectory) for callback in run.trainer.callbacks):  # type: ignore[attr-defined]
            end("error: --trainer.callbacks: a comparison needs callbacks.Trajectory; add others by callbacks+=", 2)
        seconds.append(timer.time_elapsed("train") * steps / max(1, run.trainer.global_step))
        digests.append(run.digest)
    runs = len(comparison.jobs)
    minutes = runs * sum(seconds) / len(seconds) / comparison.workers / 60
    arms = ", ".join(Path(name).stem for name in comparison.optimizers)
    return f"{runs} runs of {arms}; about {minutes:.1f} minutes, less for what MLflow has already", digests


def keep(runs: pd.DataFrame, text: str, folder: Path, parent: str, about: str) -> None:
    """Write table, raw numbers and, where there are courses, figures; put everything into the parent run."""
    runs.drop(columns=[*COURSES, "trained_on"], errors="ignore").to_csv(folder / "results.csv", index=False)
    (folder / "table.md").write_text(text, encoding="utf-8")
    written = ["results.csv", "table.md"]
    if (folder / "courses.csv").exists():
        written += ["courses.csv", *draw(folder, about)]
    client().set_tag(parent, "mlflow.note.content", text)  # the description that the UI shows
    for name in written:  # the folder may hold what is not of this comparison
        client().log_artifact(parent, str(folder / name))
