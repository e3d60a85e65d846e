"""Measure commands: start-up, runs against a raw loop, logging, a whole experiment, growth over many steps or runs."""

import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import optuna
import psutil
from pytorch_lightning import Callback, Trainer

import tune
from benchmarks import raw
from benchmarks.measure import QUIET, ROOT, Step, cpu_seconds, ratio, time_a_call
from benchmarks.step import MLPS, meta, mlp
from callbacks import TailAverage
from data import MNIST1DDataModule
from experiment.run import train
from lightning_modules import MLP, MetaModule, SupervisedModule
from tracking.logger import Tracker

IMPORTS = "import gc; gc.disable(); import pytorch_lightning.cli, mlflow; mlflow.MlflowClient().create_run('0')"
STARTS = {
    "`import torch`": ["-c", "import torch"],
    "`import pytorch_lightning.cli`": ["-c", "import pytorch_lightning.cli"],
    "both and MLflow, no garbage collected, and a run in its store": ["-c", IMPORTS],
    "`train.py --help`": ["train.py", "--help"],
    "`train.py`, one step": ["train.py", "--optimizer", "adam", "--trainer.max_steps=1", QUIET],
}


def starts(quick: bool) -> dict[str, dict[str, float]]:
    """Return the CPU seconds of each command in a new process, the median of interleaved rounds."""

    def start(args: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
        rounds = [{name: start(args) for name, args in STARTS.items()} for _ in range(1 if quick else 3)]
    return {"CPU seconds": {name: float(np.median([found[name] for found in rounds])) for name in STARTS}}


LR = 3e-3
ARMS: dict[str, raw.Make] = {"adam": partial(raw.Adam, lr=LR), "meta": raw.Meta}


def by_raw_loop(arm: str, epochs: int) -> float:
    """Train with the raw loop and return the test loss."""
    return raw.run(ARMS[arm], epochs).test_loss


def by_train(arm: str, epochs: int, *options: str) -> float:
    """Train with `train.py` and return the test loss."""
    rate = [f"--model.lr={LR}"] if arm == "adam" and not options else []
    run = train(["--optimizer", arm, *rate, *options, QUIET, f"--trainer.max_epochs={epochs}"])
    return run.test_metrics["test/loss"]


def by_trainer(arm: str, epochs: int) -> None:
    """Train the arm's module with a Trainer without logger, checkpoints and progress bar."""
    callbacks: list[Callback] = [] if arm == "adam" else [TailAverage()]
    module = SupervisedModule(MLP(), LR) if arm == "adam" else MetaModule(MLP())
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    off |= {"accelerator": "cpu", "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, **off)
    trainer.fit(module, datamodule=MNIST1DDataModule(batch_size=raw.BATCH))


WAYS: dict[str, Callable[[str, int], Any]] = {
    "train.py": by_train,
    "bare Lightning": by_trainer,
    "the raw loop": by_raw_loop,
}


def runs(quick: bool) -> dict[str, Any]:
    """Measure, for each arm, the CPU time of a step in three ways, and the ratio of `train.py` to each.

    The difference between a long and a short run excludes fixed costs. Each round measures all three.

    Raises:
        RuntimeError: `train.py` and the raw loop have different test losses, so their times cannot be compared.
    """
    rounds, short, long = (1, 1, 3) if quick else (7, 10, 40)
    found: dict[str, Any] = {}
    for arm in ARMS:
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for call in WAYS.values():
            # imports, data
            call(arm, 1)
        for _ in range(rounds):
            ends = {}
            for way, call in WAYS.items():
                before, _ = cpu_seconds(partial(call, arm, short))
                after, ends[way] = cpu_seconds(partial(call, arm, long))
                seconds[way].append((after - before) / raw.PER_EPOCH / (long - short))
            if ends["train.py"] != ends["the raw loop"]:
                raise RuntimeError(f"{arm}: train.py ends at {ends['train.py']}, raw at {ends['the raw loop']}.")
        found[f"`{arm}`"] = {
            way: {"ratio": ratio(seconds, "train.py", way), "ms": 1000 * float(np.median(seconds[way]))} for way in WAYS
        }
    return found


def tracking(quick: bool) -> dict[str, dict[str, float]]:
    """Return the CPU milliseconds per step to log three values to MLflow, in every step and in every 16th."""
    steps, found = 320 if quick else 3_200, {}
    for title, every in {"in each step": 1, "in each 16th": 16}.items():
        tracker = Tracker()
        # the first use creates the run
        _ = tracker.run_id
        began = time.process_time()
        for step in range(0, steps, every):
            tracker.log_metrics(dict.fromkeys(("lr", "hypergradient", "lookahead_loss"), 1 / (1 + step)), step)
        tracker.finalize()
        found[title] = 1000 * (time.process_time() - began) / steps
    return {"ms a step": found}


def experiment(quick: bool) -> dict[str, dict[str, float]]:
    """Measure 20 tuning trials of Adam and a run of each of four arms, against a plain script that does the same.

    Raises:
        RuntimeError: the arms that are not tuned have different test losses, so the times cannot be compared.
    """
    trials, epochs, seed = (2, 2, 1) if quick else (20, 50, 1)

    def script() -> list[float]:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=5))
        for _ in range(trials):
            trial = study.ask()
            lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
            loss = raw.run(partial(raw.Adam, lr=lr), epochs).validation[-1][0]
            study.tell(trial, loss if math.isfinite(loss) else math.inf)
        lr = study.best_params["lr"]
        arms = (raw.Meta, raw.OneStep, partial(raw.Adam, lr=lr), partial(raw.Adam, lr=lr, cosine=True))
        return [raw.run(arm, epochs, seed).test_loss for arm in arms]

    def commands() -> list[float]:
        # a seed other than 0, so that tune.py does not write to configs/tuned/
        options = ["--trials", str(trials), "--seed", str(seed), f"--trainer.max_epochs={epochs}"]
        lr = tune.main(["--optimizer", "adam", *options]).best_params["model.lr"]
        arms = {"meta": [], "meta_onestep": [], "adam": [f"--model.lr={lr}"], "cosine": [f"--model.lr={lr}"]}
        return [by_train(arm, epochs, f"--seed_everything={seed}", *rate) for arm, rate in arms.items()]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    their_seconds, theirs = cpu_seconds(script)
    our_seconds, ours = cpu_seconds(commands)
    if max(abs(a - b) for a, b in zip(ours[:2], theirs[:2], strict=True)) > 1e-4:
        raise RuntimeError(f"Not the same experiment: the commands end at {ours}, the script at {theirs}.")
    seconds = {"plain script": their_seconds, "ours, one core": our_seconds, "ratio": our_seconds / their_seconds}
    return {"CPU seconds": seconds}


PARTS = 5


def growth(quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Return the CPU time per step or run in each fifth of a long series, and the memory after it."""
    seeds = count()

    def run() -> None:
        options = ["--trainer.max_epochs=1", "--data.batch_size=400", f"--seed_everything={next(seeds)}"]
        train(["--optimizer", "meta", *options, QUIET])

    def course(work: Step, total: int) -> dict[str, dict[str, float]]:
        rows = {}
        for part in range(1, PARTS + 1):
            milliseconds = 1000 * time_a_call(work, total // PARTS)
            rows[f"fifth {part}"] = {"ms": milliseconds, "MiB": psutil.Process().memory_info().rss / 2**20}
        return rows

    steps, runs = (100, 5) if quick else (200_000, 500)
    step = meta(mlp(next(iter(MLPS))))
    return {f"{steps:,} adapted steps": course(step, steps), f"{runs} runs": course(run, runs)}
