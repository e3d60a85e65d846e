"""Many runs at once, by joblib: in processes of this machine, or on the workers of a Dask cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import joblib

from experiment.process import quiet, worker
from tracking.store import StoreError, tracking_uri

Task = TypeVar("Task")
Result = TypeVar("Result")


def processes(
    call: Callable[[Task], Result], tasks: Sequence[Task], workers: int, cluster: str | None = None
) -> Iterator[tuple[int, Result]]:
    """Call `call(task)` for every task, and yield (its number, what it returned) in the order in which they end.

    One worker is this process. A run depends on its own arguments alone, so the order does not matter.

    Raises:
        BrokenExecutor: a worker was killed.
        StoreError: the cluster cannot be used.
    """
    jobs = (joblib.delayed(_numbered)(tracking_uri(), number, call, task) for number, task in enumerate(tasks))
    settings: dict[str, Any] = {"n_jobs": workers, "batch_size": 1, "return_as": "generator_unordered"}
    if cluster:
        settings["n_jobs"] = -1
    elif workers > 1:
        settings |= {"initializer": worker, "initargs": (os.getpid(),)}
    with _dask(cluster) if cluster else nullcontext():
        yield from joblib.Parallel(**settings)(jobs)


def _numbered(uri: str, number: int, call: Callable[[Task], Result], task: Task) -> tuple[int, Result]:
    quiet()
    if tracking_uri() != uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        return number, call(task)
    except SystemExit as stop:
        # a Dask worker would end, and the next one that got the task too
        raise StoreError("A run was refused: the line above, or the log of its Dask worker, says why.") from stop


@contextmanager
def _dask(address: str) -> Iterator[None]:
    """Send joblib's tasks to the workers of the scheduler at `address`; one that dies is replaced by another."""
    try:
        from distributed import Client

        client = Client(address, timeout=10)
    except (ImportError, OSError, ValueError) as error:
        reason = f"--cluster {address} cannot be used: {' '.join(str(error).split())}."
        raise StoreError(f"{reason} Install the extra `scale` and start `dask scheduler`: docs/scale.md.") from error
    with client:
        if any(threads > 1 for threads in client.nthreads().values()):
            raise StoreError("--cluster: runs share one random stream a process: start workers with --nthreads 1.")
        with joblib.parallel_config("dask"):
            yield
