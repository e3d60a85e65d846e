"""Train every arm on every seed and compare them in a table and figures: `python compare.py --seeds 5`."""

from pathlib import Path

from experiment import options
from experiment.process import importing, script

OWN = {"--optimizer": "use --optimizers", "--seed_everything": "use --seeds", "--data.seed": "use --data-seeds"}


def main(args: list[str] | None = None) -> None:
    """Train the missing runs, write the table, figures and raw numbers, and print their paths."""
    parser = options.Parser("compare.py", description=__doc__, epilog=options.EVERY_RUN, allow_abbrev=False)
    add, arms = parser.add_argument, f"{' '.join(options.ARMS)}, or YAML files (default: {' '.join(options.HEADLINE)})"
    add("--seeds", type=options.positive, default=5, help="runs per arm, with seeds 1 to SEEDS (default: 5)")
    add("--data-seeds", type=options.positive, default=1, help="data sets; the first is the published one (default: 1)")
    add("--optimizers", nargs="+", type=options.arm_or_file, default=options.HEADLINE, metavar="ARM", help=arms)
    add("--initial-lrs", nargs="+", type=options.rate, default=[None], metavar="LR", help="initial rates of every arm")
    add("--workers", type=options.positive, default=options.CORES, help="number of processes (default: one per core)")
    add("--cluster", metavar="tcp://HOST:PORT", help="address of a Dask scheduler: see docs/scale.md")
    add("--output", type=Path, default=options.RESULTS / "compare", help="folder (default: results/compare)")
    add("--retrain", action="store_true", help=options.RETRAIN)
    own, rest = options.parse_many(parser, args, OWN)
    if len({Path(arm).stem for arm in own.optimizers}) < len(own.optimizers):
        parser.error("--optimizers: two arms have the same name. Remove or rename one.")
    with importing():
        from experiment.grid import Scale
        from experiment.publish import compare
        from tracking.links import how_to_compare, how_to_see
        from tracking.store import client

    scale = Scale(
        own.seeds, own.data_seeds, workers=own.workers, cluster=own.cluster, output=own.output, retrain=own.retrain
    )
    table, parent = compare(own.optimizers, own.initial_lrs, rest, scale, options.command("compare.py", args))
    experiment = client().get_run(parent).info.experiment_id
    print(f"{table}\nwritten to  {own.output}\nsee it      {how_to_see(experiment, parent)}")
    print(f"charts      {how_to_compare(experiment, parent)}")


if __name__ == "__main__":
    script(main)
