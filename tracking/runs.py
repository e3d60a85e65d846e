"""Find runs to reuse or resume, and open the run that holds a sweep."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from tracking.store import EXPERIMENT, client, open_experiment


def find_run(experiment: str, config: str) -> str | None:
    """Return the newest run of this configuration (its digest) that ended, tested or diverged.

    A run with another status lacks its last artifacts: it is running, or was killed.
    """
    for run in client().search_runs([open_experiment(experiment)], f"tags.config = '{config}'"):
        tested = run.info.status == "FINISHED" and "test/loss" in run.data.metrics
        if tested or (run.info.status == "FAILED" and "diverged" in run.data.tags):
            return str(run.info.run_id)
    return None


def run_of(checkpoint: str, config: str) -> str | None:
    """Return the unfinished run that wrote the checkpoint, if it has this configuration (its digest)."""
    try:
        # .../RUN/checkpoints/FILE
        run = client().get_run(Path(checkpoint).resolve().parents[1].name)
    except MlflowException:
        # from another store, or moved
        return None
    resumes = run.data.tags.get("config", "").startswith(config) and run.info.status != "FINISHED"
    return str(run.info.run_id) if resumes else None


def close_broken_off(experiment: str, config: str) -> None:
    """Mark the runs of this configuration that were killed, and are RUNNING in the store, as KILLED.

    If one does run, somewhere else, it sets its own status when it ends.
    """
    _kill(open_experiment(experiment), f"tags.config = '{config}'")


def _kill(experiment_id: str, query: str) -> None:
    store = client()
    for run in store.search_runs([experiment_id], f"{query} and attributes.status = 'RUNNING'"):
        store.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def parent_run(name: str, sweep: str, tags: dict[str, str], experiment_name: str = EXPERIMENT) -> Iterator[str]:
    """Open the run that holds a sweep, the existing one if the sweep is continued, and end it as the work ends.

    If the work breaks off, the runs in it that are still RUNNING are marked KILLED.

    sweep: what identifies the sweep.
    """
    store, experiment = client(), open_experiment(experiment_name)
    query, oldest = f"tags.sweep = '{sweep}'", ["attributes.start_time"]
    if not store.search_runs([experiment], query, max_results=1):
        made = store.create_run(experiment, run_name=name, tags=resolve_tags(tags | {"sweep": sweep}))
        # another machine may have begun at the same moment: the older one is that of both
        if store.search_runs([experiment], query, order_by=oldest)[0].info.run_id != made.info.run_id:
            store.delete_run(made.info.run_id)
    run_id = str(store.search_runs([experiment], query, order_by=oldest)[0].info.run_id)
    store.update_run(run_id, "RUNNING")
    try:
        yield run_id
    except BaseException as error:
        _kill(experiment, f"tags.mlflow.parentRunId = '{run_id}'")
        store.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    store.set_terminated(run_id)
