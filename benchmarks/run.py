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
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks import raw
from data import MNIST1DDataModule
from experiment.presets import QUIET, ROOT
from experiment.training import train
from lightning_modules import MLP
from tracking.logger import Tracker

LR, SHORT, LONG = 3e-3, 25, 100  # epochs of 32 steps; the difference of the two is free of what a run costs once


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


def theirs(arm: str, epochs: int) -> float:
    """Train by the raw loop and return the test loss."""
    return (raw.adam(epochs, LR) if arm == "adam" else raw.meta(epochs)).test_loss


class Bare(LightningModule):
    """The arm `adam` with nothing around it: what Lightning alone costs."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        x, y = batch["train"]
        return cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build Adam."""
        return torch.optim.Adam(self.parameters(), lr=LR)


def bare(epochs: int) -> None:
    """Train by a Trainer without logger, callback and validation, on the project's own loader."""
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **off)
    trainer.fit(Bare(), datamodule=MNIST1DDataModule())


def tracking(steps: int = 3_000) -> float:
    """Return the CPU milliseconds a step that three values a step cost on their way into MLflow."""
    tracker = Tracker()

    def log() -> None:
        for step in range(steps):
            tracker.log_metrics({"lr": 1 / (1 + step), "hypergradient": -step, "lookahead_loss": step / 7}, step)
        tracker.finalize()

    return 1000 * cpu_seconds(log)[0] / steps


def whole_runs(rounds: int = 5) -> dict[str, Any]:
    """Measure runs of both, interleaved; the CPU time of a step is from the difference of a long and a short run.

    Raises:
        AssertionError: the two do not end at the same test loss, so that something else would be timed.
    """
    torch.set_num_threads(1)
    results = {}
    for arm in ("adam", "meta"):
        ours(arm, 1), theirs(arm, 1)  # imports, data
        steps, ratios = [], []
        for _ in range(rounds):
            seconds = {}
            for epochs in (SHORT, LONG):
                seconds["raw", epochs], raw_loss = cpu_seconds(partial(theirs, arm, epochs))
                seconds["ours", epochs], our_loss = cpu_seconds(partial(ours, arm, epochs))
                seconds["bare", epochs] = cpu_seconds(partial(bare, epochs))[0]
                if abs(our_loss - raw_loss) > 1e-6:
                    raise AssertionError(f"{arm}, {epochs} epochs: {our_loss} is not the raw loop's {raw_loss}")
            count = raw.PER_EPOCH * (LONG - SHORT)
            step = {who: (seconds[who, LONG] - seconds[who, SHORT]) / count for who in ("raw", "bare", "ours")}
            steps.append(step)
            ratios.append(step["ours"] / step["raw"])
        results[arm] = {
            f"{who} milliseconds a step": 1000 * float(np.median([step[who] for step in steps])) for who in steps[0]
        } | {"ratio a step": float(np.median(ratios)), "spread": float(np.ptp(ratios)) / 2}
    return results


STARTS = {
    "`train.py --help`": ["train.py", "--help"],
    "`train.py --print_config`": ["train.py", "--print_config"],
    "`train.py`, one step": ["train.py", "--optimizer", "adam", "--trainer.max_steps=1", QUIET],
}


def starts(rounds: int = 3) -> dict[str, float]:
    """Return the CPU seconds of a fresh process, the median of some rounds."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
        return {
            name: float(np.median([_start(args, environment) for _ in range(rounds)])) for name, args in STARTS.items()
        }


def _start(args: list[str], environment: dict[str, str]) -> float:
    code = "import resource,subprocess,sys; subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL);"
    code += "u=resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime+u.ru_stime)"
    command = [sys.executable, "-c", code, sys.executable, *args]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)
