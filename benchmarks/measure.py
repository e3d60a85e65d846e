"""How everything here is measured: process CPU time, interleaved, one thread; memory by the allocator's own count."""

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from reporting.machine import processor

CYCLE = 16  # calls after which a step that adapts every 4th or 16th time has done what it does
Step = Callable[[], Any]
PEERS = ("higher", "torchopt", "gradient-descent-the-ultimate-optimizer", "momo-opt", "gen-optim")
PACKAGES = ("torch", "pytorch-lightning", "mlflow", *PEERS, "efficient-polling-lr-scheduler")


def cpu_seconds(steps: Mapping[str, Step], budget: float, rounds: int = 9) -> dict[str, list[float]]:
    """Return the CPU seconds of one call of each, a value a round; the rounds interleave what is compared.

    budget: seconds in all, about; it sets how many calls a round takes, a multiple of CYCLE.
    """
    for step in steps.values():
        for _ in range(5):
            step()
    once = sum(time_a_call(step, 3) for step in steps.values())
    calls = CYCLE * max(1, round(budget / rounds / once / CYCLE))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(time_a_call(step, calls))
    return seconds


def time_a_call(step: Step, calls: int) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    for _ in range(calls):
        step()
    return (time.process_time() - start) / calls


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float]:
    """Return the median over rounds of `name` / `base`, and half the distance between its quartiles."""
    ratios = np.array(seconds[name]) / np.array(seconds[base])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return float(median), float(high - low) / 2


def peak_bytes(make: Callable[[], Step]) -> int:
    """Return the most bytes of tensors alive at once while `make()` builds and its step runs three times."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step = make()
        for _ in range(3):
            step()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in changes]).max())


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    } | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
