"""Run many tasks in parallel with joblib: in local processes or on a Dask cluster."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import joblib

from experiment.process import SweepError, quiet, refusing
from tracking.store import StoreError, tracking_uri

Task = TypeVar("Task")
Result = TypeVar("Result")


def processes(
    call: Callable[[Task], Result], tasks: Sequence[Task], workers: int, cluster: str | None = None
) -> Iterator[tuple[int, Result]]:
    """Call `call(task)` for every task and yield (number of the task, result) in the order of completion.

    With one worker, the tasks run in this process. A run depends only on its arguments, so the order does not matter.
    """
    jobs = (joblib.delayed(_numbered)(tracking_uri(), number, call, task) for number, task in enumerate(tasks))
    settings: dict[str, Any] = {"n_jobs": workers, "batch_size": 1, "return_as": "generator_unordered"}
    with ExitStack() as stack:
        if cluster:
            advice = "install the extra `scale` and start `dask scheduler` (docs/scale.md)"
            with refusing(f"--cluster {cluster} cannot be used; {advice}: "):
                from distributed import Client

                client = stack.enter_context(Client(cluster, timeout=10))
            if any(threads > 1 for threads in client.nthreads().values()):
                raise StoreError("--cluster: threads share one random stream. Start the workers with --nthreads 1.")
            stack.enter_context(joblib.parallel_config("dask"))
            settings["n_jobs"] = -1
        elif workers > 1:
            settings |= {"initializer": _worker, "initargs": (os.getpid(),)}
        yield from joblib.Parallel(**settings)(jobs)


def _worker(parent: int) -> None:
    """Set up a worker process: ignore Ctrl-C, print nothing, exit when the parent exits."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    os.environ["TQDM_DISABLE"] = "1"


def _numbered(uri: str, number: int, call: Callable[[Task], Result], task: Task) -> tuple[int, Result]:
    quiet()
    if tracking_uri() != uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        return number, call(task)
    except SystemExit as stop:
        # SystemExit would end the Dask worker, and each further worker that gets the task
        raise SweepError("a run was refused; see the line above or the log of its Dask worker") from stop
