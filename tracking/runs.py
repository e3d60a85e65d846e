"""What the store says of runs: the one that may stand for another, the one that goes on, the one that holds a sweep."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from tracking.store import client, open_experiment

GOES_ON = "attributes.status = 'RUNNING'"
MACHINE = "HYPERGRADIENT_MACHINE"  # the environment variable that holds what a sweep's process and its workers share


def machine_tag() -> dict[str, str]:
    """Return the tag of a run that is begun within a sweep; of others, none."""
    return {"machine": os.environ[MACHINE]} if MACHINE in os.environ else {}


def find_run(experiment: str, config: str) -> str | None:
    """Return the newest run of this configuration (its digest) that ended, tested or diverged.

    One with another status lacks its last artifacts: it is not over, or was killed or failed after its test.
    """
    runs = client().search_runs([open_experiment(experiment)], f"tags.config = '{config}'")
    found = [
        run.info.run_id
        for run in runs
        if (run.info.status == "FINISHED" and "test/loss" in run.data.metrics)
        or (run.info.status == "FAILED" and "diverged" in run.data.tags)
    ]
    return found[0] if found else None


def run_of(checkpoint: str, config: str) -> str | None:
    """Return the run that wrote the checkpoint and broke off, if it has this configuration (its digest)."""
    try:
        run = client().get_run(Path(checkpoint).resolve().parents[1].name)  # .../<run>/checkpoints/<file>
    except MlflowException:  # from another store, or moved
        return None
    goes_on = run.data.tags.get("config", "").startswith(config) and run.info.status != "FINISHED"
    return str(run.info.run_id) if goes_on else None


def config_of(checkpoint: str) -> dict[str, Any]:
    """Return the configuration of the run that wrote the checkpoint; empty where the store does not have it."""
    run_id = Path(checkpoint).resolve().parents[1].name
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(client().download_artifacts(run_id, "config.yaml", folder))
            found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
            return found | {"arm": client().get_run(run_id).data.tags.get("optimizer", "")}
    except (MlflowException, OSError):
        return {}


def close_broken_off(experiment: str, config: str) -> None:
    """Mark the runs of this configuration that were killed: they cannot say so themselves, and seem to be running.

    One that does run, somewhere else, says FINISHED when it ends.
    """
    store = client()
    query = f"tags.config = '{config}' and {GOES_ON}"
    for run in store.search_runs([open_experiment(experiment)], query):
        store.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def parent_run(name: str, sweep: str, tags: dict[str, str]) -> Iterator[str]:
    """Open the run that holds a sweep (the one that is there, where it goes on), and end it as the work ended.

    Runs begun in it, by this process and its workers, are marked KILLED where it breaks off; never those of others.

    sweep: what identifies the sweep, on every machine.
    """
    store, run_id = client(), _parent(name, tags | {"sweep": sweep})
    store.update_run(run_id, "RUNNING")
    with _machine() as machine:
        try:
            yield run_id
        except BaseException as error:
            children = store.search_runs([open_experiment()], f"tags.mlflow.parentRunId = '{run_id}' and {GOES_ON}")
            own = [child for child in children if child.data.tags.get("machine") == machine]
            for child in own:
                store.set_terminated(child.info.run_id, "KILLED")
            if len(own) == len(children):  # else other machines go on
                store.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    store.set_terminated(run_id)


@contextmanager
def _machine() -> Iterator[str]:
    """Name this process and its workers, which inherit the environment."""
    before = os.environ.get(MACHINE)
    os.environ[MACHINE] = uuid.uuid4().hex
    try:
        yield os.environ[MACHINE]
    finally:
        os.environ.pop(MACHINE)
        if before:
            os.environ[MACHINE] = before


def _parent(name: str, tags: dict[str, str]) -> str:
    """Return the oldest run of the sweep: several machines may each have made one in the same moment."""
    store, experiment = client(), open_experiment()
    query, oldest = f"tags.sweep = '{tags['sweep']}'", ["attributes.start_time", "attributes.run_id"]
    found = store.search_runs([experiment], query, order_by=oldest)
    if found:
        return str(found[0].info.run_id)
    own = store.create_run(experiment, run_name=name, tags=resolve_tags(tags)).info.run_id
    first = store.search_runs([experiment], query, order_by=oldest)[0].info.run_id
    if first != own:
        store.delete_run(own)
    return str(first)
