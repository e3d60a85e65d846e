"""Regenerate every table and figure of the documents: `make results`. An interrupted command continues."""

from pathlib import Path

from experiment import options
from experiment.process import importing, script


def main(args: list[str] | None = None) -> None:
    """Run the stages, each into `results/STAGE/`, and put their tables into the documents."""
    parser = options.Parser("results.py", description=__doc__, allow_abbrev=False)
    add, stages = parser.add_argument, options.STAGES
    add("--stages", nargs="+", choices=stages, default=stages, metavar="STAGE", help=" ".join(stages))
    add("--seeds", type=options.positive, default=10, help="of the main comparison (default: 10)")
    add("--data-seeds", type=options.positive, default=3, help="of the data (default: 3)")
    add("--trials", type=options.positive, default=20, help="of each study (default: 20)")
    add("--workers", type=options.positive, default=options.CORES, help="processes (default: the cores)")
    add("--cluster", metavar="tcp://HOST:PORT", help="a Dask scheduler, whose workers train: docs/scale.md")
    add("--output", type=Path, default=options.RESULTS, help="folder (default: results)")
    add("--retrain", action="store_true", help=options.RETRAIN)
    add("--redraw", action="store_true", help="only draw the figures again, from the files in the folder")
    own = parser.parse_args(args)
    with importing():
        from experiment.grid import Scale
        from experiment.publish import ABOUT, draw, publish_stage

    scale = Scale(own.seeds, own.data_seeds, own.trials, own.workers, own.cluster, own.output, own.retrain)
    for name in own.stages:
        if own.redraw:
            draw(own.output / name, ABOUT)
        else:
            print(f"\n{name}\n{publish_stage(name, scale, options.typed('results.py', args))}")


if __name__ == "__main__":
    script(main)
