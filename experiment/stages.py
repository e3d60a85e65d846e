"""The stages of the results, which `stages.yaml` lists: from what is to be trained to a data frame with a row a run."""

import shlex
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from optuna.trial import FrozenTrial
from tqdm import tqdm

from experiment.jobs import Job, run_all
from experiment.objective import options
from experiment.presets import RESULTS, ROOT, tuned_file
from experiment.tuning import Tuning, tune
from experiment.workers import each
from tracking.store import client

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).with_suffix(".yaml")).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Scale:
    """How much of everything: seeds and data seeds, trials that tuning takes; where it goes; the workers."""

    seeds: int
    data_seeds: int
    trials: int
    output: Path
    pool: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Study:
    """What `tune.py` is told."""

    arm: str
    options: tuple[str, ...]
    trials: int
    seed: int


@dataclass(frozen=True)
class Cell:
    """What is trained on every seed: a row and a column of a stage, on a data seed. See `stages.yaml`."""

    row: str
    column: str
    data_seed: int
    arm: str
    lr: float | None = None
    options: tuple[str, ...] = ()
    study: Study | None = None
    of: int | None = None
    part: str = ""

    @property
    def label(self) -> str:
        """What its runs are called; a colon would make a mapping of it on the command line."""
        return f"{self.row}, {self.column}" if self.column else self.row

    def job(self, seed: int, studies: dict[Study, list[FrozenTrial]]) -> Job:
        """Return a run of it."""
        trials = studies[self.study][: self.of] if self.study else []  # in the order in which they were proposed
        best = min(trials, key=lambda trial: float("inf") if trial.value is None else trial.value, default=None)
        found = tuple(option for option in options(best.params if best else {}) if self.part in option)
        return Job(self.label, self.arm, seed, self.data_seed, self.lr, (*self.options, *found))


def cells(stage: dict[str, Any], scale: Scale) -> list[Cell]:
    """Return every cell of a stage."""
    data_seeds = range(min(scale.data_seeds, stage.get("data_seeds", scale.data_seeds)))
    grid = product(data_seeds, stage["rows"].items(), stage.get("columns", {"": {}}).items())
    return [
        cell(row, column, data_seed, scale, {"arm": row[0], **row[1], **column[1]})
        for data_seed, row, column in grid
        if column[0] in row[1].get("only", [column[0]])
    ]


def cell(row: tuple[str, Any], column: tuple[str, Any], data_seed: int, scale: Scale, said: dict[str, Any]) -> Cell:
    """Return one; `said` is what row and column say together."""
    given = [*row[1].get("options", []), *column[1].get("options", [])]
    given = [str(ROOT / word) if word.endswith(".yaml") else word for word in given]
    study = None
    if tunes := said.get("tune"):
        seeded = [f"--data.seed={data_seed}"] if data_seed else []
        arm = said["arm"] if tunes is True else tunes
        study = Study(arm, (*seeded, *given), said.get("trials", scale.trials), said.get("seed", 0))
    fields = {name: said[name] for name in ("arm", "lr", "of", "part") if name in said}
    return Cell(row[0], column[0], data_seed, options=tuple(given), study=study, **fields)


def run_stage(name: str, scale: Scale) -> pd.DataFrame:
    """Tune, and train what MLflow does not have yet."""
    stage = STAGES[name]
    every = cells(stage, scale)
    studies = tune_all(list(dict.fromkeys(cell.study for cell in every if cell.study)), scale)
    seeds = range(1, 1 + min(scale.seeds, stage.get("seeds", scale.seeds)))
    grid = list(product(every, seeds))
    read = any(word in stage for word in ("courses", "sensitivity", "replay")) or "rates" in stage.get("table", [])
    runs = run_all([cell.job(seed, studies) for cell, seed in grid], scale.pool, name, read)
    runs = runs.assign(row=[cell.row for cell, _ in grid], column=[cell.column for cell, _ in grid])
    if source := stage.get("replay"):
        runs = pd.concat([runs, run_all(replays(runs[runs.arm == source]), scale.pool, "replay")], ignore_index=True)
    return runs


def replays(runs: pd.DataFrame) -> list[Job]:
    """Return jobs that replay the schedules which the runs found."""
    jobs = []
    for row in runs.itertuples():
        path = client().download_artifacts(str(row.run_id), "schedule.csv")
        jobs.append(
            Job("replay", "replay", int(row.seed), int(row.data_seed), options=(f"--model.schedule.path={path}",))
        )
    return jobs


def tune_all(studies: list[Study], scale: Scale) -> dict[Study, list[FrozenTrial]]:
    """Run the studies; where the published results are made, an arm's own goes into the file that the arm reads."""
    found = {}
    with tqdm(total=len(studies), desc="tune", unit="study") as bar:
        for number, (trials, text) in each(tune_one, studies, scale.pool):
            study = studies[number]
            found[study] = trials
            file = tuned_file(study.arm)
            if file and scale.output == RESULTS and not (study.options or study.seed):
                file.write_text(text)
            bar.update()
    return found


def tune_one(study: Study) -> tuple[list[FrozenTrial], str]:
    """Run one study to its end; return its trials, and its best values as a configuration file."""
    seed = ["--seed", str(study.seed)] if study.seed else []
    command = ["--optimizer", study.arm, "--trials", str(study.trials), *seed, *study.options]
    tuning = Tuning(study.arm, study.options, trials=study.trials, seed=study.seed)
    tuned = tune(tuning, f"python tune.py {shlex.join(command)}")
    return tuned.trials, tuned.text
