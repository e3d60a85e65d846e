"""Find runs to reuse or resume, and open the run that holds a sweep."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from tracking.store import client, open_experiment


def find_run(experiment: str, identity: Mapping[str, str]) -> str | None:
    """Return the newest run with these tags that ended, tested or diverged, and was not deleted.

    A run with another status lacks its last artifacts: it is running, or was killed.
    """
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in identity.items())
    for run in client().search_runs([open_experiment(experiment)], query):
        tested = run.info.status == "FINISHED" and "test/loss" in run.data.metrics
        if tested or (run.info.status == "FAILED" and "diverged" in run.data.tags):
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
    # the configuration may be followed by "from a checkpoint"
    same = all(run.data.tags.get(name, "").startswith(value) for name, value in identity.items())
    return str(run.info.run_id) if same and run.info.status != "FINISHED" else None


def children(parent: str) -> set[str]:
    """Return the ids of the runs of a sweep that were not deleted."""
    found = client().search_runs([open_experiment()], f"tags.mlflow.parentRunId = '{parent}'", max_results=50_000)
    return {str(run.info.run_id) for run in found}


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
    """Mark the runs of this configuration that were killed, and are RUNNING in the store, as KILLED.

    If one does run, somewhere else, it sets its own status when it ends.
    """
    _kill(open_experiment(experiment), f"tags.config = '{config}'")


def _kill(experiment_id: str, query: str) -> None:
    store = client()
    for run in store.search_runs([experiment_id], f"{query} and attributes.status = 'RUNNING'"):
        store.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def parent_run(name: str, sweep: str, tags: dict[str, str], again: bool = False) -> Iterator[str]:
    """Open the run that holds a sweep, the existing one if the sweep is continued, and end it as the work ends.

    If the work breaks off, the runs in it that are still RUNNING are marked KILLED.

    sweep: what identifies the sweep. again: begin it again, in another run.
    """
    store, experiment = client(), open_experiment()
    query, oldest = f"tags.sweep = '{sweep}'", ["attributes.start_time"]
    for run in store.search_runs([experiment], query) if again else ():
        store.set_tag(run.info.run_id, "sweep", f"replaced: {sweep}")
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
