"""Find runs to reuse or resume, and open the parent run of a sweep."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from tracking.buffer import BufferedClient
from tracking.store import EXPERIMENT, FAULTS, artifact_dir, client, open_experiment

# seconds after which another machine that found no parent run has created one
MOMENT = 0.5


def find_run(experiment: str, identity: Mapping[str, str]) -> str | None:
    """Return the newest run with these tags that was tested or diverged, and was not deleted.

    Runs that are RUNNING or KILLED, or whose artifacts were removed, are not returned.
    """
    store, query = client(), " and ".join(f"tags.{name} = '{value}'" for name, value in identity.items())
    for run in store.search_runs([open_experiment(experiment)], query):
        tested = run.info.status == "FINISHED" and "test/loss" in run.data.metrics
        ended = tested or (run.info.status == "FAILED" and "diverged" in run.data.tags)
        if ended and store.list_artifacts(run.info.run_id):
            return str(run.info.run_id)
    return None


def run_of(checkpoint: str, identity: Mapping[str, str]) -> str | None:
    """Return the unfinished run that wrote the checkpoint, if its configuration, code and data are these."""
    try:
        # .../RUN/checkpoints/FILE
        run = client().get_run(Path(checkpoint).resolve().parents[1].name)
    except MlflowException:
        # from another store, or moved
        return None
    # by prefix: the tag of the configuration may end in "from a checkpoint"
    same = all(run.data.tags.get(name, "").startswith(value) for name, value in identity.items())
    return str(run.info.run_id) if same and run.info.status != "FINISHED" else None


def children(parent: str) -> set[str]:
    """Return the ids of the runs in a sweep that were not deleted."""
    store, query = client(), f"tags.mlflow.parentRunId = '{parent}'"
    found = store.search_runs([store.get_run(parent).info.experiment_id], query, max_results=50_000)
    return {str(run.info.run_id) for run in found}


def mark_killed(experiment: str, config: str) -> None:
    """Mark runs of this configuration that are RUNNING in the store as KILLED.

    A run that is still in progress elsewhere sets its own status when it ends.
    """
    _kill(open_experiment(experiment), f"tags.config = '{config}'")


def _kill(experiment_id: str, query: str) -> None:
    store = client()
    for run in store.search_runs([experiment_id], f"{query} and attributes.status = 'RUNNING'"):
        store.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def parent_run(
    name: str, sweep: str, tags: dict[str, str], experiment_name: str = EXPERIMENT, again: bool = False
) -> Iterator[str]:
    """Open the parent run of a sweep, or the existing one if the sweep is resumed; set its status at the end.

    If the sweep fails, its runs that are still RUNNING are marked KILLED. If the store fails too, the status is
    sent later, and the error of the sweep is still the one raised.

    sweep: identifies the sweep. again: start it again, in a new parent run.
    """
    store, experiment = client(), open_experiment(experiment_name)

    def found() -> list[str]:
        return sorted(run.info.run_id for run in store.search_runs([experiment], f"tags.sweep = '{sweep}'"))

    for run_id in found() if again else ():
        store.set_tag(run_id, "sweep", f"replaced: {sweep}")
    if not found():
        made = store.create_run(experiment, run_name=name, tags=resolve_tags(tags | {"sweep": sweep}))
        # another machine may have created one at the same time: after the pause both choose the first by id, not by
        # time, since their clocks may differ
        time.sleep(MOMENT)
        if found()[0] != made.info.run_id:
            store.delete_run(made.info.run_id)
    run_id = found()[0]
    store.update_run(run_id, "RUNNING")
    buffered = BufferedClient(store, run_id, artifact_dir() / experiment_name / run_id / "undelivered.jsonl")
    try:
        yield run_id
    except BaseException as error:
        with suppress(*FAULTS):
            _kill(experiment, f"tags.mlflow.parentRunId = '{run_id}'")
        buffered.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    buffered.set_terminated(run_id)
