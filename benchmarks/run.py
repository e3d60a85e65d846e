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

import train
from benchmarks import raw
from options import QUIET, ROOT

LR, SHORT, LONG = 3e-3, 25, 100  # epochs of 32 steps; the difference of the two is free of what a run costs once


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def ours(arm: str, epochs: int) -> float:
    """Train by `train.py` and return the test loss."""
    rate = [f"--model.lr={LR}"] if arm == "adam" else []
    cli = train.main(["--optimizer", arm, *rate, QUIET, f"--trainer.max_epochs={epochs}"])
    return cli.test_metrics["test/loss"]


def theirs(arm: str, epochs: int) -> float:
    """Train by the raw loop and return the test loss."""
    return (raw.adam(epochs, LR) if arm == "adam" else raw.meta(epochs)).test_loss


def whole_runs(rounds: int = 3) -> dict[str, Any]:
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
                if abs(our_loss - raw_loss) > 1e-6:
                    raise AssertionError(f"{arm}, {epochs} epochs: {our_loss} is not the raw loop's {raw_loss}")
            count = 32 * (LONG - SHORT)
            step = {who: (seconds[who, LONG] - seconds[who, SHORT]) / count for who in ("raw", "ours")}
            steps.append(step)
            ratios.append(step["ours"] / step["raw"])
        results[arm] = {
            "raw milliseconds a step": 1000 * float(np.median([step["raw"] for step in steps])),
            "ours milliseconds a step": 1000 * float(np.median([step["ours"] for step in steps])),
            "ratio a step": float(np.median(ratios)),
            "spread": float(np.ptp(ratios)) / 2,
        }
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
