"""Every table and figure of docs/results.md, docs/original.md and the README: `make results`. Stopped, it goes on."""

import argparse
from pathlib import Path

from experiment.options import CORES, STAGES, make_folder, positive, typed
from experiment.presets import RESULTS
from experiment.process import importing, script


def parse(args: list[str] | None) -> argparse.Namespace:
    """Return the options: how much of everything."""
    parser = argparse.ArgumentParser(prog="results.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=" ".join(STAGES))
    add("--seeds", type=positive, default=10, help="of the main comparison (default: 10)")
    add("--data-seeds", type=positive, default=3, help="of the data (default: 3)")
    add("--trials", type=positive, default=20, help="that tuning takes (default: 20)")
    add("--workers", type=positive, default=CORES, help="processes (default: the cores)")
    add("--output", type=lambda text: Path(text).resolve(), default=RESULTS, help="folder (default: results)")
    add("--redraw", action="store_true", help="only draw the figures again, from what lies in the folder")
    own = parser.parse_args(args)
    if own.redraw and not own.output.is_dir():
        parser.error(f"--output: there is no folder {own.output} to draw from")
    make_folder(parser, own.output)
    return own


def main(args: list[str] | None = None) -> None:
    """Run the stages, each into `results/STAGE/`, and put their tables into the documents."""
    own = parse(args)
    with importing():  # late: the help does not wait for torch
        from experiment.publication import publish_stage, redraw
        from experiment.stages import Scale
        from experiment.workers import worker_pool

    if own.redraw:
        for name in own.stages:
            redraw(name, own.output)
        return
    with worker_pool(own.workers) as pool:
        for name in own.stages:
            text = publish_stage(
                name, Scale(own.seeds, own.data_seeds, own.trials, own.output, pool), typed("results.py", args)
            )
            print(f"\n{name}\n{text}")


if __name__ == "__main__":
    script(main)
