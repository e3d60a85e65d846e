"""Train every arm on every seed, and set them side by side: `python compare.py --seeds 5`."""

import argparse
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import train
from cli import ARMS, DEFAULT_ARM, QUIET, parse_sweep, positive, sweep_parser
from plots import line_figure, mean_and_half_interval
from tracking import ROOT, client, how_to_see, open_experiment, parent_run

RESULTS = ROOT / "results"
FILES = ("comparison.png", "lr_evolution.png", "results.csv", "table.md")
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the comparison, and the rest, which goes on to every run."""
    parser = sweep_parser("compare.py", __doc__)
    parser.add_argument("--seeds", type=positive, default=5, help="runs an arm: seeds 1 ... SEEDS (tuning took 0)")
    parser.add_argument("--optimizers", nargs="+", choices=ARMS, default=ARMS, metavar="ARM", help="default: all")
    parser.add_argument("--output", type=Path, help="folder; default: results/ and the README's table")
    own, rest = parse_sweep(parser, args)
    own.optimizers = list(dict.fromkeys(own.optimizers))  # each once
    return own, rest


def run_missing(own: argparse.Namespace, rest: list[str]) -> pd.DataFrame:
    """Train what MLflow does not have yet and return a row for each run: arm, seed, run_id."""
    jobs = [(arm, seed) for seed in range(1, own.seeds + 1) for arm in own.optimizers]
    rows = []
    with tqdm(jobs, unit="run") as bar:
        for arm, seed in bar:
            bar.set_description(f"{arm}, seed {seed}")
            cli = train.main(["--optimizer", arm, f"--seed_everything={seed}", QUIET, *rest], reuse=True)
            rows.append({"arm": arm, "seed": seed, "run_id": cli.run_id})
    return pd.DataFrame(rows)


def read_back(runs: pd.DataFrame) -> pd.DataFrame:
    """Add to each run what MLflow holds of it: final figures, and the histories of val/loss and lr."""
    return pd.DataFrame([row | read_run(row["run_id"]) for row in runs.to_dict("records")])


def read_run(run_id: str) -> dict[str, Any]:
    """Return a run's figures; a run that diverged has an infinite loss and no accuracy."""
    run = client().get_run(run_id)
    metrics, info = run.data.metrics, run.info
    return {
        "test_loss": metrics.get("test/loss", float("inf")),
        "test_accuracy": metrics.get("test/accuracy", float("nan")),
        "val_loss": metrics.get("val/loss", float("inf")),
        "final_lr": metrics["lr"],
        "seconds": (info.end_time - info.start_time) / 1000,
        "commit": run.data.tags.get("mlflow.source.git.commit", "")[:7],
        "val_losses": [point.value for point in client().get_metric_history(run_id, "val/loss")],
        "lrs": [point.value for point in client().get_metric_history(run_id, "lr")],
    }


def draw(runs: pd.DataFrame, folder: Path) -> None:
    """Draw validation loss against epoch and rate against step: mean and 95 % interval over seeds, one line an arm."""
    folder.mkdir(parents=True, exist_ok=True)
    for column, x, y, log, name in [
        ("val_losses", "epoch", "validation loss", False, "comparison.png"),
        ("lrs", "step", "learning rate", True, "lr_evolution.png"),
    ]:
        curves = {}
        for arm, histories in runs.groupby("arm", sort=False)[column]:
            points = min(map(len, histories))  # a run that diverged has fewer
            curves[str(arm)] = (range(1, points + 1), [history[:points] for history in histories])
        line_figure({arm: curve for arm, curve in curves.items() if curve[0]}, x, y, log).savefig(folder / name)


def table(runs: pd.DataFrame, command: str) -> str:
    """Return the results in Markdown: a row an arm, best test loss first, with the conditions below."""
    losses = runs.pivot(index="seed", columns="arm", values="test_loss")
    lines = [
        f"| arm | test loss | minus `{DEFAULT_ARM}`, paired | test accuracy | validation loss | last rate |",
        "|---|---|---|---|---|---|",
    ]
    for arm in losses.mean().sort_values().index:
        own = runs[runs.arm == arm]
        base = losses[DEFAULT_ARM] if DEFAULT_ARM in losses and arm != DEFAULT_ARM else None
        difference = "–" if base is None else with_interval(losses[arm] - base, "+.4f")
        cells = [with_interval(own[name], ".4f") for name in ("test_loss", "test_accuracy", "val_loss")]
        lines.append(f"| `{arm}` | {cells[0]} | {difference} | {cells[1]} | {cells[2]} | {own.final_lr.mean():.2e} |")
    return "\n".join(lines) + f"\n\n{conditions(runs, command)}\n"


def with_interval(values: pd.Series, form: str) -> str:
    """Return "mean ± half the 95 % interval", or how many runs diverged."""
    diverged = int((~np.isfinite(values)).sum())
    if diverged:
        return f"{diverged} of {len(values)} diverged"
    mean, half = mean_and_half_interval(values)
    return f"{mean:{form}} ± {half:.4f}"


def conditions(runs: pd.DataFrame, command: str) -> str:
    """Say how the numbers came about: command, seeds, epochs, machine, versions."""
    epochs = sorted({len(history) for history in runs.val_losses})
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone names the processor, and there
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"Made by `{command}`: seeds 1–{runs.seed.max()}, {' or '.join(map(str, epochs))} epochs, weights of the last "
        f"step, mean ± half the 95 % interval over seeds (Student's t). {models[0] if models else platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, pytorch-lightning {version('pytorch-lightning')}; "
        f"trained at commit {', '.join(sorted(set(runs.commit)))}. Each run: `results/results.csv`."
    )


def write_into_readme(text: str) -> None:
    """Put the table between the README's two markers."""
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    path.write_text(before + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")


def main(args: list[str] | None = None) -> pd.DataFrame:
    """Train what is missing, read everything back from MLflow, write the figures, the table and the raw numbers.

    Raises:
        SystemExit: status 2 where the arguments are wrong.
    """
    own, rest = parse(args)
    command = f"python compare.py {shlex.join(sys.argv[1:] if args is None else args)}"
    experiment, folder = open_experiment(), own.output or RESULTS
    for arm in own.optimizers:
        train.main(["--optimizer", arm, QUIET, "--trainer.fast_dev_run=true", *rest])  # refuses wrong options at once
    with parent_run("compare", {"mlflow.note.content": f"`{command}`"}) as parent:
        runs = read_back(run_missing(own, rest))
        draw(runs, folder)
        runs.drop(columns=["val_losses", "lrs"]).to_csv(folder / "results.csv", index=False)
        text = table(runs, command)
        (folder / "table.md").write_text(text, encoding="utf-8")
        client().set_tag(parent, "mlflow.note.content", text)  # the description that the UI shows
        for name in FILES:
            client().log_artifact(parent, str(folder / name))
    if own.output is None:
        write_into_readme(text)
    print(f"{text}\nwritten to  {folder}\nsee it      {how_to_see(experiment, parent)}")
    return runs


if __name__ == "__main__":
    train.script(main)
