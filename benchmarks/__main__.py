"""Measure, and write results.json and the tables of docs/performance.md and more.md: `python -m benchmarks`."""

import argparse
import gc
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import ROOT, machine
from benchmarks.run import experiment, growth, runs, starts, tracking
from benchmarks.step import LIMIT, META, RULE, accelerator, steps
from reporting.tables import markdown, write_between_markers


def cell(value: Any) -> str:
    """Format a number, a median with its spread, or several of these, as a cell of a table."""
    if isinstance(value, dict):
        return " / ".join(map(cell, value.values()))
    return f"{value:.3g}" if isinstance(value, float) else "{:.2f} ± {:.2f}".format(*value)


def table(corner: str, found: dict[str, dict[str, Any]]) -> str:
    """Format a section's numbers, {column: {row: cell}}, as a table."""
    rows = [[row, *(cell(column[row]) for column in found.values())] for row in next(iter(found.values()))]
    return markdown([corner, *found], rows)


def cost_table(found: dict[str, Any]) -> str:
    """Return the table of costs in the README."""
    kinds = {"`meta`": META, "the plain rule": RULE, "plain Adam and a validation gradient": LIMIT}
    rows = [[name, *(f"{of[kind]['time'][0]:.1f}" for of in found.values())] for name, kind in kinds.items()]
    return markdown(["CPU time of a step, over one of plain Adam", *found], rows)


# section -> function that measures it, top left corner of its table (the meaning of the cells)
SECTIONS: dict[str, tuple[Callable[[bool], dict[str, dict[str, Any]]], str]] = {
    "starts": (starts, "command"),
    "runs": (runs, "train.py / this / ms a step of this"),
    "tracking": (tracking, "three values into MLflow"),
    "experiment": (experiment, "20 trials and four arms"),
    "growth": (growth, "ms each / resident memory, MiB"),
    "steps": (steps, "time / memory / ms"),
    "accelerator": (accelerator, "time / memory / ms"),
}


def publish(section: str, found: Any, text: str) -> None:
    """Write the numbers and the table of one section."""
    file = ROOT / "benchmarks" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {section: found}, indent=1) + "\n", encoding="utf-8")
    page = "benchmarks/more.md" if section in ("tracking", "growth", "starts") else "docs/performance.md"
    tables = {page: (section, text)}
    if section == "steps":
        tables["README.md"] = ("cost", f"{cost_table(found)}\n")
    for page, (name, table) in tables.items():
        write_between_markers(table, ROOT / page, f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n")


def main(args: list[str] | None = None) -> None:
    """Measure the sections one by one; print and write each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = ", ".join(SECTIONS)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{names} (default: all but accelerator)")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds per section; print the numbers, write nothing"
    )
    own = parser.parse_args(args)
    if unknown := set(own.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}; choose from {names}")
    if "accelerator" in own.sections and not own.quick and not torch.cuda.is_available():
        parser.error("accelerator needs a CUDA device; with --quick it runs on the CPU, in small")
    for name in ("mlflow", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    # as the commands do after their imports
    gc.freeze()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        for section in own.sections or [name for name in SECTIONS if name != "accelerator"]:
            measure, corner = SECTIONS[section]
            began = time.monotonic()
            found = measure(own.quick)
            minutes = (time.monotonic() - began) / 60
            made = f"Made by `python -m benchmarks {section}` in {minutes:.1f} minutes: {machine()}."
            text = f"{table(corner, found)}\n\n{made}\n"
            print(f"\n{section}\n{text}", flush=True)
            if not own.quick:
                publish(section, found, text)


if __name__ == "__main__":
    main()
