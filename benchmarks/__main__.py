"""Every benchmark, into `benchmarks/results.json` and the tables of docs/performance.md: `python -m benchmarks`."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import train
from benchmarks import run, step
from benchmarks.measure import machine
from compare import write_between_markers
from options import ROOT
from tables import markdown


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
    """Return a row an arm: CPU time of a step of a run, and of the raw loop."""
    header = ["arm", "raw loop, ms a step", "train.py, ms a step", "ratio"]
    rows = [
        [
            f"`{arm}`",
            f"{found['raw milliseconds a step']:.2f}",
            f"{found['ours milliseconds a step']:.2f}",
            f"{found['ratio a step']:.2f} ± {found['spread']:.2f}",
        ]
        for arm, found in results.items()
    ]
    return markdown(header, rows)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the steps of each network (default: 60)")
    own = parser.parse_args()
    train.quiet()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"  # a store of its own
        results = {"machine": machine(), "starts": run.starts(), "runs": run.whole_runs()}
    results["steps"] = step.run(own.seconds)
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    made = f"Made by `make bench` in {(time.monotonic() - began) / 60:.0f} minutes: {facts}."
    tables = {
        "steps": step_table(results["steps"]),
        "runs": run_table(results["runs"]),
        "starts": markdown(["command", "CPU seconds"], [[k, f"{v:.2f}"] for k, v in results["starts"].items()]),
    }
    Path(ROOT / "benchmarks" / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, table in tables.items():
        text = f"{table}\n\n{made}\n"
        print(f"\n{name}\n{text}")
        write_between_markers(
            text, ROOT / "docs" / "performance.md", f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        )


if __name__ == "__main__":
    main()
