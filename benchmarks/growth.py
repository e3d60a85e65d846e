"""How the cost grows: with parameters, parameter groups, steps, and runs in the store."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam

from benchmarks.measure import Step, time_a_call
from benchmarks.run import cpu_seconds, ours
from benchmarks.step import adapted, plain_step
from benchmarks.workloads import LR, Workload
from tracking.runs import find_run
from tracking.store import client, open_experiment

Row = dict[str, float]


def parameters() -> dict[str, Row]:
    """Return the milliseconds of a plain and of an adapted step for two square layers, 1e3 ... 1e8 weights."""
    rows = {}
    for power in range(3, 9):
        width = round((10**power / 2) ** 0.5)
        workload = Workload(lambda w=width: nn.Sequential(nn.Linear(w, w), nn.ReLU(), nn.Linear(w, w)), 32, (width,))  # type: ignore[misc]
        calls = 200 if power < 6 else 8 if power < 8 else 2
        rows[f"1e{power}"] = _both(workload, lambda params: Adam(params, lr=LR), calls)
    return rows


def groups() -> dict[str, Row]:
    """Return the same for 256 layers in 1 ... 256 parameter groups."""
    workload = Workload(lambda: nn.Sequential(*(nn.Linear(16, 16) for _ in range(256))), 32, (16,))

    def cut(count: int) -> Callable[[list[nn.Parameter]], Adam]:
        size = 512 // count
        return lambda params: Adam([{"params": params[i : i + size]} for i in range(0, 512, size)], lr=LR)

    return {str(count): _both(workload, cut(count), 20) for count in (1, 4, 16, 64, 256)}


def _both(workload: Workload, make: Callable[[list[nn.Parameter]], Adam], calls: int) -> Row:
    steps: dict[str, Step] = {}
    builds: dict[str, Callable[..., Step]] = {"plain": plain_step, "adapted": adapted}
    for name, build in builds.items():
        network, train, look = workload.build()
        steps[name] = build(network, make(list(network.parameters())), train, look)
    for step in steps.values():
        step()
    seconds = {name: min(time_a_call(step, calls) for _ in range(3)) for name, step in steps.items()}
    return {name: 1000 * value for name, value in seconds.items()} | {"ratio": seconds["adapted"] / seconds["plain"]}


def steps() -> dict[str, Row]:
    """Return the CPU milliseconds a step of whole runs of `adam`, start and end included."""
    counts = {epochs: cpu_seconds(lambda e=epochs: ours("adam", e))[0] for epochs in (25, 100, 400)}  # type: ignore[misc]
    return {str(32 * epochs): {"milliseconds a step": 1000 * value / 32 / epochs} for epochs, value in counts.items()}


def runs_in_the_store() -> dict[str, Row]:
    """Return the milliseconds in which a finished run is found by its configuration among so many."""
    store, experiment, rows, count = client(), open_experiment("growth"), {}, 0
    for total in (10, 100, 1000):
        while count < total:
            run = store.create_run(experiment, tags={"config": f"{count}"}).info.run_id
            store.log_metric(run, "test/loss", 1.0)
            store.set_terminated(run)
            count += 1
        began = time.process_time()
        for wanted in range(10):
            if find_run("growth", str(wanted)) is None:
                raise AssertionError(f"run {wanted} of {total} was not found")
        rows[str(total)] = {"milliseconds": 100 * (time.process_time() - began)}
    return rows


def all_of_it() -> dict[str, Any]:
    """Measure all four."""
    torch.set_num_threads(1)
    return {
        "weights": parameters(),
        "parameter groups": groups(),
        "steps of a run": steps(),
        "runs in the store": runs_in_the_store(),
    }
