"""What a whole run costs beside a raw PyTorch loop of the same arithmetic, and what a start costs."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks import raw
from benchmarks.measure import ratio
from callbacks import TailAverage
from callbacks.trajectory import needed
from data import MNIST1DDataModule
from experiment.presets import QUIET, ROOT
from experiment.training import train
from lightning_modules import MLP, MetaModule, SupervisedModule
from tracking.logger import Tracker

LR, SHORT, LONG = 3e-3, 10, 40  # epochs of 32 steps; the difference of the two is free of what a run costs once


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def ours(arm: str, epochs: int) -> float:
    """Train by `train.py` and return the test loss."""
    rate = [f"--model.lr={LR}"] if arm == "adam" else []
    cli = train(["--optimizer", arm, *rate, QUIET, f"--trainer.max_epochs={epochs}"])
    return cli.test_metrics["test/loss"]


ARMS: dict[str, raw.Make] = {"adam": partial(raw.Adam, lr=LR), "meta": raw.Meta}


def theirs(arm: str, epochs: int) -> float:
    """Train by the raw loop and return the test loss."""
    return raw.run(ARMS[arm], epochs).test_loss


class Bare(LightningModule):
    """The steps of a raw arm in a LightningModule: manual optimization, and nothing around it."""

    def __init__(self, make: raw.Make, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.arm = make(MLP(), steps)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Take the step, and return the loss."""
        return self.arm.step(batch["train"], batch["val"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy."""
        loss, accuracy = raw.evaluate(self.arm.result, batch)
        self.log_dict({"val/loss": loss, "val/accuracy": accuracy}, prog_bar=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> None:
        """Leave it to the arm."""


def arithmetic(arm: str, epochs: int) -> None:
    """Train the raw loop's steps by a bare Trainer: Lightning gets a loss, and makes no step itself."""
    _fit(Bare(ARMS[arm], epochs * raw.PER_EPOCH), epochs)


def bare(arm: str, epochs: int) -> None:
    """Train the arm's own module by a bare Trainer, with its average of the weights where it has one."""
    if arm == "adam":
        _fit(SupervisedModule(MLP(), LR), epochs)
    else:
        _fit(MetaModule(MLP()), epochs, TailAverage())


def _fit(module: LightningModule, epochs: int, *callbacks: Callback) -> None:
    """Train without logger and other callbacks, with the project's own loader and validation."""
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    off |= {"accelerator": "cpu", "enable_model_summary": False, "num_sanity_val_steps": 0}
    data = MNIST1DDataModule(batch_size=raw.BATCH)
    Trainer(max_epochs=epochs, callbacks=list(callbacks), **off).fit(module, datamodule=data)


def tracking(hold: int, steps: int = 3_000) -> float:
    """Return the CPU milliseconds a step of three values on their way into MLflow, each new in every `hold`-th step."""
    tracker = Tracker()
    assert tracker.run_id  # makes the run: before it there is nothing to send to
    names = ("lr", "hypergradient", "lookahead_loss")
    points = [(step, dict.fromkeys(names, 1.0 / (1 + step // hold))) for step in range(steps)]

    def log() -> None:
        for start in range(0, steps, raw.PER_EPOCH):
            for step, seen in needed(points[start : start + raw.PER_EPOCH]):
                tracker.log_metrics(seen, step)
        tracker.finalize()

    return 1000 * cpu_seconds(log)[0] / steps


def whole_runs(rounds: int = 7) -> dict[str, Any]:
    """Measure runs of all four, interleaved; the CPU time of a step is from the difference of a long and a short run.

    Raises:
        AssertionError: ours and raw do not end at the same test loss, so that something else would be timed.
    """
    torch.set_num_threads(1)
    return {arm: _whole_run(arm, rounds) for arm in ARMS}


def _whole_run(arm: str, rounds: int) -> dict[str, Any]:
    calls: dict[str, Callable[[str, int], Any]] = {"raw": theirs, "arithmetic": arithmetic, "bare": bare, "ours": ours}
    steps: dict[str, list[float]] = {who: [] for who in calls}
    for call in calls.values():
        call(arm, 1)  # imports, data
    for _ in range(rounds):
        of = {(who, epochs): cpu_seconds(partial(calls[who], arm, epochs)) for epochs in (SHORT, LONG) for who in calls}
        if of["ours", LONG][1] != of["raw", LONG][1]:
            raise AssertionError(f"{arm}: {of['ours', LONG][1]} is not the raw loop's {of['raw', LONG][1]}")
        for who, seconds in steps.items():
            seconds.append((of[who, LONG][0] - of[who, SHORT][0]) / raw.PER_EPOCH / (LONG - SHORT))
    ratios = {f"ours / {who}": ratio(steps, "ours", who) for who in ("bare", "arithmetic", "raw")}
    return {who: 1000 * float(np.median(seconds)) for who, seconds in steps.items()} | ratios


IMPORTS = "import gc; gc.disable(); import pytorch_lightning.cli, mlflow; mlflow.MlflowClient().create_run('0')"
STARTS = {
    "`import torch`": ["-c", "import torch"],
    "`import pytorch_lightning.cli`": ["-c", "import pytorch_lightning.cli"],
    "both and MLflow, no garbage collected, and a run in its store": ["-c", IMPORTS],
    "`train.py --help`": ["train.py", "--help"],
    "`train.py --print_config`": ["train.py", "--print_config"],
    "`train.py`, one step": ["train.py", "--optimizer", "adam", "--trainer.max_steps=1", QUIET],
}


def starts(rounds: int = 3) -> dict[str, float]:
    """Return the CPU seconds of a fresh process, the median of some rounds, which interleave the commands."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
        seconds = [{name: _start(args, environment) for name, args in STARTS.items()} for _ in range(rounds)]
    return {name: float(np.median([found[name] for found in seconds])) for name in STARTS}


def _start(args: list[str], environment: dict[str, str]) -> float:
    code = "import resource,subprocess,sys; subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL);"
    code += "u=resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime+u.ru_stime)"
    command = [sys.executable, "-c", code, sys.executable, *args]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)
