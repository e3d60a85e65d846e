"""Train one arm, test it once, keep the run in MLflow: `python train.py --optimizer meta`."""

import sys

from experiment.options import HELP
from experiment.process import importing, script


def main(args: list[str] | None = None) -> None:
    """Train as the command line says, and print the result; exit with status 1 if the run diverged."""
    given = sys.argv[1:] if args is None else args
    if given[:1] in (["--help"], ["-h"]):
        print(HELP)
        return
    # late: the help does not wait for torch
    with importing():
        from experiment.run import report, train

    run = train(given)
    report(run)
    if run.diverged:
        sys.exit(1)


if __name__ == "__main__":
    script(main)
