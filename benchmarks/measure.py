"""Measure CPU time of one thread, compared in interleaved rounds, and allocated memory."""

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.utils.git_utils import get_git_commit
from torch.profiler import ProfilerActivity, profile

from reporting.machine import processor

ROOT = Path(__file__).resolve().parents[1]
QUIET = "--trainer.enable_progress_bar=false"
# steps within which the rule evaluates the hypergradient at least once
CYCLE = 16
Step = Callable[[], Any]
Clock = Callable[[], float]


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def time_a_call(step: Step, calls: int, clock: Clock = time.process_time) -> float:
    """Return the mean seconds per call."""
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls


def compare(
    makes: Mapping[str, Callable[[], Step]], budget: float, rounds: int = 9, clock: Clock = time.process_time
) -> dict[str, dict[str, Any]]:
    """Return time and memory of each kind of step, relative to the first kind, and its milliseconds.

    Each round runs every kind in turn, so that changes in the machine's speed affect all of them alike.

    budget: approximate total seconds. It sets the number of calls per round, a multiple of CYCLE.
    """
    steps = {name: make() for name, make in makes.items()}
    for step in steps.values():
        time_a_call(step, CYCLE, clock)
    once = sum(time_a_call(step, 3, clock) for step in steps.values())
    calls = CYCLE * max(1, round(budget / rounds / once / CYCLE))
    turns = [{name: time_a_call(step, calls, clock) for name, step in steps.items()} for _ in range(rounds)]
    seconds = {name: [turn[name] for turn in turns] for name in steps}
    steps.clear()
    base, *_ = makes
    peaks = {name: peak_bytes(make) for name, make in makes.items()}
    return {
        name: {
            "time": ratio(seconds, name, base),
            "memory": peaks[name] / peaks[base],
            "milliseconds": 1000 * float(np.median(seconds[name])),
        }
        for name in makes
    }


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float]:
    """Return the median over rounds of `name` / `base`, and half the interquartile range."""
    low, median, high = np.percentile(np.array(seconds[name]) / np.array(seconds[base]), [25, 50, 75])
    return float(median), float(high - low) / 2


def peak_bytes(make: Callable[[], Step]) -> int:
    """Return the peak memory of tensors, in bytes, while `make()` builds a step and the step runs three times.

    Measured on the CUDA device if anything is allocated there, else on the CPU.
    """
    gc.collect()
    cuda = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step = make()
        for _ in range(3):
            step()
    if cuda and (peak := torch.cuda.max_memory_allocated() - before):
        return peak
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in changes]).max())


def machine() -> str:
    """Describe what the numbers depend on: processor, threads and versions."""
    packages = (f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "mlflow"))
    facts = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, Python {platform.python_version()}"
    commit = (get_git_commit(str(ROOT)) or "unknown")[:7]
    return ", ".join([f"commit {commit}", processor(), facts, *packages])
