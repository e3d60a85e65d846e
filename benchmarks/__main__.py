"""Every benchmark, into `benchmarks/results.json` and the tables of docs/performance.md: `python -m benchmarks`."""

import argparse
import gc
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
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
    """Return a row an arm: CPU time of a step of a run, of the two kinds of bare Lightning, and of the raw loop."""
    limits = {"bare": "Lightning, our module", "arithmetic": "Lightning, raw steps", "raw": "the raw loop"}
    header = ["arm", "train.py, ms a step", *limits.values(), *(f"train.py / {name}" for name in limits.values())]
    rows = [
        [f"`{arm}`", *(f"{found[who]:.2f}" for who in ("ours", *limits))]
        + [f"{found[f'ours / {who}'][0]:.2f} ± {found[f'ours / {who}'][1]:.2f}" for who in limits]
        for arm, found in results.items()
    ]
    return markdown(header, rows)


def cost_table(results: dict[str, Any]) -> str:
    """Return what an adapted step costs, in brief, for the README."""
    titles = list(WORKLOADS)[:2]
    rows = {
        "`meta`": "ours, RateAdapter: the whole rule",
        "the plain rule": "ours",
        "plain Adam and a validation gradient": LIMIT,
    }
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


def tracking() -> dict[str, float]:
    """Measure points into MLflow."""
    return {"new in each step": run.tracking(1), "new in each 16th": run.tracking(16)}


SECTIONS: dict[str, tuple[Callable[[], Any], Callable[[Any], str]]] = {
    "starts": (run.starts, lambda found: markdown(["command", "CPU seconds"], figures(found))),
    "runs": (run.whole_runs, run_table),
    "tracking": (
        tracking,
        lambda found: markdown(["three values of each step into MLflow", "ms a step"], figures(found)),
    ),
    "experiment": (experiment.whole, lambda found: markdown(["20 trials and four arms", ""], figures(found))),
    "growth": (growth.all_of_it, growth_table),
    "steps": (step.run, step_table),
}


def publish(section: str, found: Any, made: str) -> None:
    """Print the table of a section, and write it with its numbers; what other sections had found stays."""
    file = ROOT / "benchmarks" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {section: found}, indent=1) + "\n", encoding="utf-8")
    text = f"{SECTIONS[section][1](found)}\n\n{made}\n"
    print(f"\n{section}\n{text}", flush=True)
    begin, end = f"<!-- {section}: begin -->\n", f"<!-- {section}: end -->\n"
    write_between_markers(text, ROOT / "docs" / "performance.md", begin, end)
    if section == "steps":
        cost = f"{cost_table(found)}\n"
        write_between_markers(cost, ROOT / "README.md", "<!-- cost: begin -->\n", "<!-- cost: end -->\n")


def main() -> None:
    """Measure, print, and write, section by section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = ", ".join(SECTIONS)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{names} (default: all)")
    own = parser.parse_args()
    if unknown := set(own.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {names}")
    quiet()
    gc.freeze()  # as the commands do, when they have imported
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    torch.set_num_threads(1)
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"  # a store of its own
        for section in own.sections or SECTIONS:
            began = time.monotonic()
            found = SECTIONS[section][0]()
            minutes = (time.monotonic() - began) / 60
            publish(section, found, f"Made by `python -m benchmarks {section}` in {minutes:.1f} minutes: {facts}.")


if __name__ == "__main__":
    main()
