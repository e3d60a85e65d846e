"""Regenerate the tables and figures of the documentation. Rerun an interrupted command to resume it."""

from pathlib import Path

from experiment import options
from experiment.process import importing, script


def main(args: list[str] | None = None) -> None:
    """Run the stages, write each to `results/STAGE/`, and insert their tables into the documentation."""
    parser = options.Parser("results.py", description=__doc__, allow_abbrev=False)
    add, stages = parser.add_argument, options.STAGES
    add("--stages", nargs="+", choices=stages, default=stages, metavar="STAGE", help=" ".join(stages))
    add("--seeds", type=options.positive, default=10, help="seeds per arm; some stages use fewer (default: 10)")
    add("--data-seeds", type=options.positive, default=3, help="data sets; some stages use fewer (default: 3)")
    add("--trials", type=options.positive, default=20, help="trials per study (default: 20)")
    add("--workers", type=options.positive, default=options.CORES, help="number of processes (default: one per core)")
    add("--cluster", metavar="tcp://HOST:PORT", help="address of a Dask scheduler: see docs/scale.md")
    add("--output", type=Path, default=options.RESULTS, help="folder (default: results)")
    add("--retrain", action="store_true", help=options.RETRAIN)
    add("--redraw", action="store_true", help="only redraw the figures, from the files in the output folder")
    own = parser.parse_args(args)
    with importing():
        from experiment.grid import Scale
        from experiment.publish import ABOUT, draw, publish_stage

    scale = Scale(own.seeds, own.data_seeds, own.trials, own.workers, own.cluster, own.output, own.retrain)
    for name in own.stages:
        if own.redraw:
            draw(own.output / name, ABOUT)
        else:
            print(f"\n{name}\n{publish_stage(name, scale, options.command('results.py', args))}")


if __name__ == "__main__":
    script(main)
