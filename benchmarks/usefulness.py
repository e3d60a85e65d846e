"""What the adapter is worth in networks that others wrote, from good and bad starting rates: docs/usefulness.md.

Run with `python -m benchmarks.usefulness`. Every run is an ordinary loop of AdamW, without weight decay, at a constant
rate; the adapter is the two lines of the README. Validation samples choose from the grid; the table shows the loss on
test samples.
"""

import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import mean
from subprocess import check_output
from typing import Any

import prodigyopt
import schedulefree
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.clients import TASKS, Task
from experiment.presets import ROOT
from hypergradient import Average, OneStepAdapter, RateAdapter
from reporting.tables import markdown

GRID = tuple(10 ** (exponent / 2) for exponent in range(-9, -2))  # 3e-5 to 3e-2
STARTS = (0.01, 1.0, 10.0, 100.0)  # times the grid's best
SEEDS = (0, 1, 2)
WORSE = 100  # times the best
RESULTS, PAGE = Path(__file__).with_name("usefulness.json"), ROOT / "docs" / "usefulness.md"


@dataclass(frozen=True)
class Ended:
    """Losses of the last weights and of their average, on validation and test samples; infinite where it diverged."""

    val: float
    test: float
    averaged_val: float
    averaged_test: float
    rate: float


def adamw(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return what a run trains with."""
    return torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)


def measured(task: Task, network: nn.Module, part: str) -> float:
    """Return the mean loss over a part of the data, infinite where it is no number."""
    network.eval()
    with torch.no_grad():
        loss = mean(float(task.loss(network, batch)) for batch in task.batches(part))
    return loss if math.isfinite(loss) else math.inf


def run(task: Task, seed: int, rule: str, lr: float | None) -> Ended:
    """Train by a rule: `plain`, `meta`, `onestep`, `prodigy`, `schedule_free`."""
    network, draw = task.network(seed), task.draw(seed)
    if rule == "prodigy":
        optimizer: Any = prodigyopt.Prodigy([p for p in network.parameters() if p.requires_grad], lr=1.0)
    elif rule == "schedule_free":
        optimizer = schedulefree.AdamWScheduleFree(
            [p for p in network.parameters() if p.requires_grad], lr=lr or 2.5e-3
        )
    else:
        optimizer = adamw(network, lr or 1e-3)
    average = Average(network)
    adapter = adapted(task, network, optimizer, rule, lr)
    for step in range(task.steps):
        network.train()
        getattr(optimizer, "train", lambda: None)()
        optimizer.zero_grad()
        batch = next(draw)
        loss = adapter.loss(batch) if isinstance(adapter, RateAdapter) else task.loss(network, batch)
        loss.backward()
        optimizer.step()
        average.update(step + 1)
    getattr(optimizer, "eval", lambda: None)()
    end = adapter.averaged if isinstance(adapter, RateAdapter) else average.network
    rate = float(adapter.last["lr"].mean() if isinstance(adapter, OneStepAdapter) else optimizer.param_groups[0]["lr"])
    val, test, averaged_val, averaged_test = (
        measured(task, net, part) for net in (network, end) for part in ("val", "test")
    )
    return Ended(val, test, averaged_val, averaged_test, rate)


def adapted(task: Task, network: nn.Module, optimizer: Any, rule: str, lr: float | None) -> Any:
    """Attach what the rule asks for."""
    if rule == "meta":
        return RateAdapter(optimizer, network, task.loss, task.looks(), length=task.steps, lr=lr)
    if rule == "onestep":
        looks = chain.from_iterable(iter(task.looks, None))
        return OneStepAdapter(optimizer, network, lambda: task.loss(network, next(looks)))
    return None


def found_by_lightning(task: Task, seed: int) -> float:
    """Return what Lightning's own finder suggests, from 100 steps, on the training loss."""
    from benchmarks.lr_find import suggestion

    return suggestion(task, seed, adamw)


def measure(task: Task, seed: int) -> dict[str, dict[str, Any]]:
    """Return all runs of a task and a seed, by name."""
    torch.set_num_threads(1)
    grid = {lr: run(task, seed, "plain", lr) for lr in GRID}
    best = min(GRID, key=lambda lr: grid[lr].val)
    best_averaged = min(GRID, key=lambda lr: grid[lr].averaged_val)
    rows = {"grid of 7": grid[best], "grid of 7, averaged": grid[best_averaged]}
    for start in STARTS:
        rows[f"plain {start:g}"] = run(task, seed, "plain", start * best)
        rows[f"onestep {start:g}"] = run(task, seed, "onestep", start * best)
        rows[f"meta {start:g}"] = run(task, seed, "meta", start * best)
    rows["meta"] = run(task, seed, "meta", None)
    rows["lr_find"] = run(task, seed, "plain", found_by_lightning(task, seed))
    rows["prodigy"] = run(task, seed, "prodigy", None)
    rows["schedule_free"] = run(task, seed, "schedule_free", None)
    return {name: vars(ended) for name, ended in rows.items()}


COLUMNS = {
    "the best of 7 rates": ("grid of 7", "test"),
    "the best of 7 rates, averaged weights": ("grid of 7, averaged", "averaged_test"),
    "`RateAdapter`, no rate given": ("meta", "averaged_test"),
    **{f"`RateAdapter`, from {start:g} × the best": (f"meta {start:g}", "averaged_test") for start in STARTS},
    **{f"`OneStepAdapter`, from {start:g} × the best": (f"onestep {start:g}", "test") for start in STARTS},
    **{f"AdamW at {start:g} × the best": (f"plain {start:g}", "test") for start in STARTS if start != 1},
    "AdamW at Lightning's `lr_find`": ("lr_find", "test"),
    "Prodigy": ("prodigy", "test"),
    "Schedule-Free AdamW": ("schedule_free", "test"),
}


def document(made: dict[str, Any]) -> str:
    """Return the page."""
    results = made["tasks"]
    rows = []
    for shown, (name, key) in COLUMNS.items():
        cells = []
        for runs in results.values():
            values = [one[name][key] for one in runs]
            ratio = mean(values) / mean(one["grid of 7"]["test"] for one in runs)
            cells.append(f"{mean(values):.3f} ({ratio:.2f})" if ratio < WORSE else "diverged")
        rows.append([shown, *cells])
    return f"""# What it is worth in other networks

Test loss after training, the mean of {len(SEEDS)} seeds, and in brackets its ratio to the best of 7 rates
({GRID[0]:.0e} to {GRID[-1]:.0e}, chosen by the validation loss). AdamW without weight decay, a constant rate, batches
of 32. Made by `python -m benchmarks.usefulness` with {made["packages"]}, on one core,
at commit {made["commit"]}.

{markdown(["", *results], rows)}

The adapter looks at validation samples during the run, adapts a weight decay that the others do not have, and takes
about 1.7 passes per batch; a plain run takes 1, the grid 7 (batches are small: a hypothetical step uses at least 16 of
32 samples). "diverged": a loss that is not finite in at least one run, or {WORSE} times the best loss.
Equal rows are the same run: a start above the method's own is lowered to it.

{chr(10).join(f"- **{name}**: {task.description}" for name, task in TASKS.items())}
"""


def main() -> None:
    """Measure what is missing, and write the page."""
    torch.set_num_threads(1)
    made = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"tasks": {}}
    made["packages"] = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "transformers", "peft"))
    missing = {name: task for name, task in TASKS.items() if name not in made["tasks"]}
    if missing:
        made["commit"] = check_output(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, text=True).strip()
    for name, task in tqdm(missing.items(), desc="tasks"):
        made["tasks"][name] = [measure(task, seed) for seed in tqdm(SEEDS, desc=name, leave=False)]
        RESULTS.write_text(json.dumps(made, indent=1) + "\n")
    PAGE.write_text(document(made), encoding="utf-8")


if __name__ == "__main__":
    main()
