"""Train the runs of a grid, rows × columns × data seeds × seeds, that MLflow does not have; return a data frame."""

import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial
from tqdm import tqdm

from experiment.options import QUIET, RESULTS, TUNED, arm_options
from experiment.parallel import processes
from experiment.run import look_up, train
from experiment.tuning import Tuned, Tuning, loss, options, report, tune
from reporting.curves import read_schedule
from tracking.store import StoreError, client, tracking_uri

Grid = Mapping[str, Any]
"""A stage in the format described in `stages.yaml`."""


@dataclass(frozen=True)
class Scale:
    """The size of a comparison, the workers that train it, and the output folder.

    Args:
        seeds: number of seeds, 1 to `seeds`.
        data_seeds: number of data seeds, from 0.
        trials: number of trials per study.
        workers: number of processes.
        cluster: address of a Dask scheduler, used instead of local processes.
        output: folder of the tables and figures.
        retrain: whether to train runs again that are in the store.
    """

    seeds: int
    data_seeds: int
    trials: int = 20
    workers: int = 1
    cluster: str | None = None
    output: Path = RESULTS
    retrain: bool = False

    def __post_init__(self) -> None:
        """Refuse a cluster without a tracking server."""
        if self.cluster and tracking_uri().startswith("sqlite"):
            raise StoreError("--cluster: machines that share runs need one tracking server: set MLFLOW_TRACKING_URI.")


@dataclass(frozen=True)
class Run:
    """One run of a grid.

    `method` is its column or ladder; `rate` the rate on the ladder, before the row scales it; `study` the tuning study
    that its options come from, restricted to those whose name contains `part`.
    """

    label: str
    row: str
    column: str
    data_seed: int
    seed: int
    arm: str
    method: str
    rate: float | None = None
    lr: float | None = None
    options: tuple[str, ...] = ()
    study: Tuning | None = None
    part: str = ""


def runs_of(grid: Grid, scale: Scale) -> list[Run]:
    """Return all runs of a grid, before tuning."""
    data_seeds = range(min(scale.data_seeds, grid.get("data_seeds", scale.data_seeds)))
    seeds = range(1, 1 + min(scale.seeds, grid.get("seeds", scale.seeds)))
    rows, columns, runs = grid["rows"], columns_of(grid), []
    for data_seed, seed, row, column in product(data_seeds, seeds, rows, columns):
        cell, study = _merge(rows[row], columns[column], {"arm": row, "method": column}, grid.get("sgd", ())), None
        if tunes := cell.get("tune"):
            given = (*[f"--data.seed={data_seed}"] * (data_seed > 0), *cell["options"])
            search = dict(word.partition("=")[::2] for word in cell["search"]) if "search" in cell else None
            arm = cell["arm"] if tunes is True else tunes
            study = Tuning(arm, given, search, scale.trials)
        fields = {name: cell[name] for name in ("arm", "method", "rate", "lr", "options", "part") if name in cell}
        # without a colon, which YAML would read as a mapping
        label = f"{row}, {column}" if column else row
        runs.append(Run(label, row, column, data_seed, seed, study=study, **fields))
    return runs


def columns_of(grid: Grid) -> dict[str, Mapping[str, Any]]:
    """Return the columns of a grid, with one for each rate of each ladder, such as "cosine 0.001"."""
    ladders = grid.get("ladders", {})
    steps = {
        f"{name} {rate:g}": {**ladders[name], "method": name, "lr": rate, "rate": rate}
        for name, rate in product(ladders, grid.get("rates", ()))
    }
    return {**grid.get("columns", {}), **steps} or {"": {}}


def _merge(row: Any, column: Any, names: dict[str, Any], sgd: Sequence[str]) -> dict[str, Any]:
    """Merge a row and a column; on a ladder, add the options `sgd` to the rows that ask for them."""
    options = (*row.get("options", ()), *column.get("options", ()))
    cell = {**names, **row, **column, "options": options}
    if "rate" in cell and cell.get("sgd"):
        # rounded: 10 * 3e-4 is 0.0029999999999999996
        cell |= {"options": (*options, *sgd), "lr": round(10 * cell["rate"], 12)}
    return cell


def run_grid(grid: Grid, scale: Scale, parent: str, courses: bool = True) -> pd.DataFrame:
    """Tune, train the runs that MLflow does not have, print their number, and return one row of results per run.

    courses: whether to include the values of each step, which takes five times as long to read.
    """
    runs = runs_of(grid, scale)
    # keyed by their text: a Tuning contains a dictionary, so it is not hashable
    studies = {str(run.study): run.study for run in runs if run.study}
    tasks = [(study, scale.retrain) for study in studies.values()]
    tuned: dict[str, Tuned] = dict(zip(studies, _all(_tune, tasks, scale, "study"), strict=True))
    for name, study in studies.items():
        file = TUNED.get(study.optimizer)
        if file and scale.output == RESULTS and study == Tuning(study.optimizer, trials=study.trials):
            file.write_text(tuned[name].text, encoding="utf-8")
    if studies:
        report("trials", sum(study.trials for study in studies.values()), sum(found.stored for found in tuned.values()))
    lines, samples = [_line(run, tuned[str(run.study)].trials if run.study else []) for run in runs], dict[str, str]()
    known = [look_up(line, samples) for line in tqdm(lines, desc="look up", unit="run", leave=False)]
    # keyed by their tags: runs with equal tags are trained once
    keys = [str(tags) for tags, _ in known]
    ids = {key: run_id for key, (_, run_id) in zip(keys, known, strict=True) if run_id and not scale.retrain}
    missing = {
        key: (line, tags["code"], parent, scale.retrain)
        for key, line, (tags, _) in zip(keys, lines, known, strict=True)
        if key not in ids
    }
    report("runs", len(set(keys)), len(ids))
    ids |= zip(missing, _all(_train, list(missing.values()), scale, "run"), strict=True)
    return pd.DataFrame(
        {
            **{"arm": run.label, "row": run.row, "column": run.column, "seed": run.seed, "data_seed": run.data_seed},
            **{"method": run.method, "rate": run.rate, "start_lr": run.lr, "run_id": run_id},
            **read_run(run_id, courses),
        }
        for run, run_id in zip(runs, map(ids.__getitem__, keys), strict=True)
    )


def _all(call: Any, tasks: Sequence[Any], scale: Scale, unit: str) -> list[Any]:
    """Call `call` for every task, with a progress bar; return the results in the order of the tasks."""
    if not tasks:
        return []
    done = dict(tqdm(processes(call, tasks, scale.workers, scale.cluster), total=len(tasks), unit=unit))
    return [done[number] for number in range(len(tasks))]


def _tune(task: tuple[Tuning, bool]) -> Tuned:
    study, retrain = task
    seed = ["--seed", str(study.seed)] if study.seed else []
    search = ["--search", *(f"{option}={values}" for option, values in study.search.items())] if study.search else []
    words = ["--optimizer", study.optimizer, "--trials", str(study.trials), *seed, *study.arguments, *search]
    return tune(study, f"python tune.py {shlex.join(words)}", retrain)


def _line(run: Run, trials: list[FrozenTrial]) -> list[str]:
    """Return the command line of a run, with the best options of its study's `trials`."""
    tuned = options(min(trials, key=loss).params) if trials else ()
    lr = [] if run.lr is None else [f"--model.lr={run.lr}"]
    seeds = [f"--data.seed={run.data_seed}"] * (run.data_seed > 0) + [f"--seed_everything={run.seed}"]
    name = f"--trainer.logger.run_name={run.label} seed {run.seed}"
    given = [*run.options, *(word for word in tuned if run.part in word), *lr, *seeds, name, QUIET]
    return [*arm_options(run.arm), *given]


def _train(task: tuple[list[str], str, str, bool]) -> str:
    line, code, parent, retrain = task
    run = train(line, {"mlflow.parentRunId": parent}, reuse=not retrain, code=code)
    if run.run_id is None:
        raise StoreError(f"{shlex.join(line)} stored no run: does a file set fast_dev_run or another logger?")
    return run.run_id


def read_run(run_id: str, courses: bool = True) -> dict[str, Any]:
    """Return a run's results; a run that diverged has an infinite loss and no accuracy.

    courses: whether to include its `schedule.csv`: rate, hypergradient and decay of each step.
    """
    run = client().get_run(run_id)
    metrics, info = run.data.metrics, run.info
    dirty = " with uncommitted changes" if run.data.tags.get("mlflow.source.git.dirty") == "true" else ""
    # a run that failed before its first step has no schedule
    seen: dict[str, list[float]] = {"lrs": [math.nan], "hypergradients": [], "decays": []} if courses else {}
    if courses and any(artifact.path == "schedule.csv" for artifact in client().list_artifacts(run_id)):
        with tempfile.TemporaryDirectory() as folder:
            seen = read_schedule(Path(client().download_artifacts(run_id, "schedule.csv", folder)))
    return {
        "test_loss": _finite(metrics.get("test/loss")),
        "test_accuracy": metrics.get("test/accuracy", metrics.get("test/r2", math.nan)),
        "val_loss": _finite(metrics.get("val/loss")),
        "final_lr": seen["lrs"][-1] if courses else metrics.get("lr", math.nan),
        "passes": float(run.data.tags.get("passes", math.nan)),
        "seconds": (info.end_time - info.start_time) / 1000,
        "trained_on": run.data.tags.get("trained_on", "an unknown machine"),
        "commit": run.data.tags.get("mlflow.source.git.commit", "unknown")[:7] + dirty,
        "code": run.data.tags.get("code", ""),
        "val_losses": [point.value for point in client().get_metric_history(run_id, "val/loss")],
    } | seen


def _finite(loss: float | None) -> float:
    """Return the loss, or infinity if it is missing or NaN, which pandas would leave out of a mean."""
    return loss if loss is not None and math.isfinite(loss) else math.inf
