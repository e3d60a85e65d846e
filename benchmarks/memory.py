"""Does memory grow? 500 short runs in one process, 200,000 adapted steps: `python -m benchmarks.memory`.

Writes docs/memory.png, and prints the resident memory after a tenth and at the end.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiment.presets import QUIET
from experiment.training import train
from hypergradient import OneStepAdapter
from reporting.curves import line
from reporting.figures import line_figure

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "memory.png"
RUNS, STEPS, POINTS = 500, 200_000, 50


def resident() -> float:
    """Return the resident memory of this process, MiB."""
    return float(psutil.Process().memory_info().rss) / 2**20


def runs() -> Iterator[None]:
    """Train one short run of `meta` after the other, each in MLflow."""
    for seed in range(RUNS):
        train(
            [
                "--optimizer",
                "meta",
                "--trainer.max_epochs=1",
                "--data.batch_size=400",
                f"--seed_everything={seed}",
                QUIET,
            ]
        )
        yield


def steps() -> Iterator[None]:
    """Take adapted steps of the MLP."""
    network = nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 10))
    x, y = torch.randn(128, 40), torch.randint(10, (128,))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    OneStepAdapter(optimizer, network, lambda: cross_entropy(network(x), y), meta_lr=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()
        yield


def course(work: Callable[[], Iterator[None]], count: int) -> tuple[list[int], list[float]]:
    """Return how much was done, and the memory then."""
    done, memory = [], []
    for number, _ in enumerate(work(), 1):
        if number % (count // POINTS) == 0:
            done.append(number)
            memory.append(resident())
    return done, memory


def main() -> None:
    """Measure both, draw, print."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tempfile.mkdtemp()}/mlflow.db"
    torch.set_num_threads(1)
    curves = {"adapted steps": course(steps, STEPS), "runs": course(runs, RUNS)}
    for name, (done, memory) in curves.items():
        print(
            f"{name}: {memory[POINTS // 10]:.0f} MiB after {done[POINTS // 10]}, {memory[-1]:.0f} MiB after {done[-1]}"
        )
    lines = [
        line(f"{done[-1]:,} {name}", "memory", [100 * d / done[-1] for d in done], memory)
        for name, (done, memory) in curves.items()
    ]
    line_figure(pd.concat(lines), xlabel="% done", ylabel="resident memory, MiB").savefig(FIGURE)


if __name__ == "__main__":
    main()
