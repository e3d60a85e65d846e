"""Do time and memory grow? 200,000 adapted steps of one loop, 500 runs of one process in one store."""

from itertools import count

import psutil

from benchmarks.measure import QUIET, Step, time_a_call
from benchmarks.step import NETWORKS, build, meta
from experiment.training import train

PARTS = 5


def growth(quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Return, of both, the CPU milliseconds of one in each fifth of the work, and the memory after it."""
    seeds = count()

    def run() -> None:
        options = ["--trainer.max_epochs=1", "--data.batch_size=400", f"--seed_everything={next(seeds)}"]
        train(["--optimizer", "meta", *options, QUIET])

    def course(work: Step, total: int) -> dict[str, dict[str, float]]:
        rows = {}
        for part in range(1, PARTS + 1):
            milliseconds = 1000 * time_a_call(work, total // PARTS)
            rows[f"fifth {part}"] = {"ms": milliseconds, "MiB": psutil.Process().memory_info().rss / 2**20}
        return rows

    steps, runs = (100, 5) if quick else (200_000, 500)
    step = meta(build(next(iter(NETWORKS))))
    return {f"{steps:,} adapted steps": course(step, steps), f"{runs} runs": course(run, runs)}
