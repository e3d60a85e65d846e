"""Many runs in worker processes that import once. A run depends on its own arguments alone, so order is no matter."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from experiment.options import CORES
from experiment.process import importing, quiet


@contextmanager
def worker_pool(workers: int = CORES) -> Iterator[Executor | None]:
    """Yield worker processes for `each`; None where one is enough, which is this process."""
    if workers == 1:
        yield None
        return
    os.environ["TQDM_DISABLE"] = "1"  # in the workers, which inherit it: there is one bar for all
    spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(workers, spawn, _prepare) as pool:
        try:
            yield pool
        except BaseException:
            for worker in multiprocessing.active_children():  # else they would do first what was handed to them
                worker.kill()
            raise


def each(call: Callable[..., Any], jobs: Sequence[Any], pool: Executor | None) -> Iterator[tuple[int, Any]]:
    """Call `call(job)` for every job and yield (its number, what it returned), in the order in which they end.

    `call` and what it returns must be picklable.
    """
    if pool is None:
        yield from ((number, call(job)) for number, job in enumerate(jobs))
        return
    numbers = {pool.submit(call, job): number for number, job in enumerate(jobs)}
    for done in as_completed(numbers):
        yield numbers[done], done.result()


def _prepare() -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # and the parent says what came out
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    quiet()
    with importing():
        import experiment.training  # noqa: F401


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()  # killed, it could not tell its workers
        os._exit(1)
