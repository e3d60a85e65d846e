"""Every benchmark, into `benchmarks/results.json` and the tables of docs/performance.md: `python -m benchmarks`."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import experiment, growth, run, step
from benchmarks.measure import machine
from benchmarks.step import LIMIT
from benchmarks.workloads import WORKLOADS
from experiment.presets import ROOT
from experiment.process import quiet
from reporting.tables import markdown, write_between_markers


def step_table(results: dict[str, Any]) -> str:
    """Return a row a candidate: time and memory on each workload, as ratios to the plain step."""
    titles = [title for title in results if title != "agreement"]
    rows = []
    for name in step.CANDIDATES:
        cells = []
        for title in titles:
            found = results[title].get(name)
            cells.append(f"{found['time'][0]:.2f} ± {found['time'][1]:.2f} / {found['memory']:.2f}" if found else "–")
        rows.append([name, *cells])
    return markdown(["time / memory", *titles], rows)


def run_table(results: dict[str, Any]) -> str:
    """Return a row an arm: CPU time of a step of a run, of bare Lightning, and of the raw loop."""
    header = [
        "arm",
        "raw loop, ms a step",
        "bare Lightning",
        "train.py",
        "train.py / bare Lightning",
        "train.py / raw loop",
    ]
    rows = [
        [f"`{arm}`", *(f"{found[who]:.2f}" for who in ("raw", "bare", "ours"))]
        + [f"{found[f'ours / {who}'][0]:.2f} ± {found[f'ours / {who}'][1]:.2f}" for who in ("bare", "raw")]
        for arm, found in results.items()
    ]
    return markdown(header, rows)


def cost_table(results: dict[str, Any]) -> str:
    """Return what an adapted step costs, in brief, for the README."""
    titles = list(WORKLOADS)[:2]
    rows = {"`meta`": "ours, RateAdapter: the whole rule", "the plain rule": "ours", "least possible": LIMIT}
    cells = [[name, *(f"{results[title][of]['time'][0]:.1f}" for title in titles)] for name, of in rows.items()]
    return markdown(["CPU time of a step, over one of plain Adam", *titles], cells)


def figures(results: dict[str, float]) -> list[list[str]]:
    """Return a row a figure."""
    return [[name, f"{value:.2f}"] for name, value in results.items()]


def growth_table(results: dict[str, Any]) -> str:
    """Return a table for each thing that may grow."""
    tables = []
    for what, rows in results.items():
        columns = list(next(iter(rows.values())))
        cells = [[size, *(f"{row[column]:.3g}" for column in columns)] for size, row in rows.items()]
        tables.append(markdown([what, *columns], cells))
    return "\n\n".join(tables)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the steps of each network (default: 60)")
    own = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"  # a store of its own
        results: dict[str, Any] = {"machine": machine(), "starts": run.starts(), "runs": run.whole_runs()}
        results["tracking"] = {
            f"new in each {every}": run.tracking(hold) for every, hold in (("step", 1), ("16th", 16))
        }
        results |= {"experiment": experiment.whole(), "growth": growth.all_of_it()}
    results["steps"] = step.run(own.seconds)
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    minutes = (time.monotonic() - began) / 60
    made = f"Made by `python -m benchmarks --seconds {own.seconds:g}` in {minutes:.0f} minutes: {facts}."
    tables = {
        "steps": step_table(results["steps"]),
        "runs": run_table(results["runs"]),
        "tracking": markdown(["three values of each step into MLflow", "ms a step"], figures(results["tracking"])),
        "experiment": markdown(["20 trials and four arms", ""], figures(results["experiment"])),
        "growth": growth_table(results["growth"]),
        "starts": markdown(["command", "CPU seconds"], figures(results["starts"])),
    }
    Path(ROOT / "benchmarks" / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    cost = f"{cost_table(results['steps'])}\n"
    write_between_markers(cost, ROOT / "README.md", "<!-- cost: begin -->\n", "<!-- cost: end -->\n")
    for name, table in tables.items():
        text = f"{table}\n\n{made}\n"
        print(f"\n{name}\n{text}")
        write_between_markers(
            text, ROOT / "docs" / "performance.md", f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        )


if __name__ == "__main__":
    main()
