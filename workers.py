"""Many runs in worker processes that import once. A run depends on its own arguments alone, so order is no matter."""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

CORES = os.cpu_count() or 1


def _prepare() -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # and the parent says what came out
    import optuna

    import train

    train.quiet()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def each(call: Callable[..., Any], jobs: Sequence[Any], workers: int = CORES) -> Iterator[tuple[int, Any]]:
    """Call `call(job)` for every job and yield (its number, what it returned), in the order in which they end.

    One worker means this process. `call` and what it returns must be picklable.
    """
    if workers == 1 or len(jobs) < 2:
        yield from ((number, call(job)) for number, job in enumerate(jobs))
        return
    os.environ["TQDM_DISABLE"] = "1"  # in the workers, which inherit it: there is one bar for all
    spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(min(workers, len(jobs)), spawn, _prepare) as pool:
        numbers = {pool.submit(call, job): number for number, job in enumerate(jobs)}
        try:
            for done in as_completed(numbers):
                yield numbers[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
