"""Every figure and number of the README and docs/method.md, from nothing: `make results`. Stopped, it goes on."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

import optuna

import train
from compare import RESULTS, keep, write_between_markers
from options import ROOT, positive
from stages import STAGES
from store import open_experiment, parent_run
from tables import conditions
from workers import CORES, worker_pool


def parse(args: list[str] | None) -> argparse.Namespace:
    """Return the options: how much of everything."""
    parser = argparse.ArgumentParser(prog="results.py", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=" ".join(STAGES)
    )
    parser.add_argument("--seeds", type=positive, default=10, help="of the main comparison (default: 10)")
    parser.add_argument("--draws", type=positive, default=3, help="of the data (default: 3)")
    parser.add_argument("--trials", type=positive, default=20, help="that tuning takes (default: 20)")
    parser.add_argument("--workers", type=positive, default=CORES, help="processes (default: the cores)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (default: results)")
    return parser.parse_args(args)


def publish(name: str, text: str, documents: list[Path]) -> None:
    """Put a stage's table into every document that has its markers."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    for path in documents:
        if begin in path.read_text(encoding="utf-8"):
            write_between_markers(text, path, begin, end)


def main(args: list[str] | None = None) -> None:
    """Run the stages, each into `results/STAGE/`, and put their tables into the documents."""
    own = parse(args)
    command = f"python results.py {shlex.join(sys.argv[1:] if args is None else args)}".strip()
    own.output.mkdir(parents=True, exist_ok=True)
    open_experiment()
    with worker_pool(own.workers) as own.pool:
        for name in own.stages:
            run_stage(name, own, command)


def run_stage(name: str, own: argparse.Namespace, command: str) -> None:
    """Run a stage, keep what came out, and put its table into the documents."""
    sweep = f"results {name} {own.seeds} {own.draws} {own.trials}"
    with parent_run(f"results: {name}", sweep, {"mlflow.note.content": f"`{command}`"}) as parent:
        runs, table = STAGES[name](own)
        folder = own.output / name
        folder.mkdir(exist_ok=True)
        text = f"{table}\n\n{conditions(runs, command)}\n"
        keep(runs, text, folder, parent)
        if own.output == RESULTS:
            publish(name, text, [ROOT / "README.md", ROOT / "docs" / "method.md"])
        print(f"\n{name}\n{text}")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    train.script(partial(main, None))
