"""A sweep is a queue of trials in an Optuna study; processes work it off, on one machine or on many.

Each trial has a slot, a number from 0: what it is to do. A worker that dies leaves its trial running; it fails, and
another trial with its slot joins the queue: on one machine when the command is typed again, with a database as soon as
its heartbeat is missing.
"""

import functools
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from datetime import datetime, timedelta

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from experiment.workers import each
from tracking.secrets import hidden, remember
from tracking.store import StoreError, artifact_dir, cause, tracking_uri

optuna.logging.set_verbosity(optuna.logging.ERROR)  # there is a bar

BEGUN = "begun"
HEARTBEAT, GRACE = 5, 20  # seconds; a worker that was not heard of for GRACE is dead


def open_storage(url: str | None) -> BaseStorage:
    """Return the storage of all studies: a journal beside the artifacts, or the database at `url`.

    Raises:
        StoreError: the database cannot be reached.
    """
    if url is None:
        artifact_dir().mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(artifact_dir() / "optuna.log")))
    remember(url)
    retry = RetryHeartbeatStaleTrialCallback()
    connect = functools.partial(
        RDBStorage, url, heartbeat_interval=HEARTBEAT, grace_period=GRACE, heartbeat_stale_trial_callback=retry
    )
    try:
        try:
            return connect()
        except (IntegrityError, ProgrammingError):  # another process makes the tables in this moment
            time.sleep(1)
            return connect()
    except (SQLAlchemyError, ImportError, ValueError) as error:
        reason = f"--storage {hidden(url)} cannot be used: {cause(error)}."
        raise StoreError(f"{reason} Give the address of a database, like postgresql://USER@HOST/optuna.") from error


def sweep_name(kind: str, facts: Sequence[str]) -> str:
    """Return a name that the same command has on every machine.

    facts: what it depends on, whole configurations (their digests) included.
    """
    kind = kind.replace("'", "")  # which ends a text in MLflow's queries
    return f"{kind} {hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:12]}"


def require_shared(url: str | None) -> None:
    """Refuse machines that share a sweep, and not the store of its runs.

    Raises:
        StoreError: they do not.
    """
    if url and not url.startswith("sqlite") and tracking_uri().startswith("sqlite"):
        raise StoreError("--storage: machines that share runs need one tracking server: set MLFLOW_TRACKING_URI")


@contextmanager
def alone(name: str, url: str | None) -> Iterator[None]:
    """Hold a sweep that only this machine knows: two commands that share a journal would take each other for dead."""
    if url:
        yield
        return
    lock = FileLock(artifact_dir() / f".{name.replace(' ', '-')}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError("This sweep runs already, in another process. Let it, or share it: see --storage.") from None
    with lock:
        yield


def release(study: optuna.Study) -> None:
    """Give up the trials that seem to be running: no other process works on the study, so they were killed."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)


def fill(study: optuna.Study, slots: int) -> None:
    """Queue a trial for every slot that has none; one that broke off is tried again with the values it had."""
    trials = study.get_trials()
    broken_off = [trial for trial in trials if trial.state == TrialState.FAIL and trial.params]
    failed = {trial.user_attrs.get("slot"): trial for trial in broken_off}
    for slot in range(slots):
        if not any(_holds(trial, slot) for trial in trials):
            params, distributions = (failed[slot].params, failed[slot].distributions) if slot in failed else ({}, {})
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING, params=params, distributions=distributions, user_attrs={"slot": slot}
                )
            )


Work = Callable[[optuna.Trial], float]
"""What a trial does; `trial.user_attrs["slot"]` says which it is. Picklable."""


def work_off(
    study: optuna.Study, slots: int, work: Work, pool: Executor | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Do what each slot stands for once, yield after each trial, and return when all is done, on all machines.

    timeout: seconds after which no trial is begun.
    """
    end = time.time() + (timeout or math.inf)
    while time.time() < end:
        optuna.storages.fail_stale_trials(study)
        fail_unbegun_trials(study)
        fill(study, slots)
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        if waiting := states.count(TrialState.WAITING):
            for _ in each(_take, [(study, work, end, pool is not None)] * waiting, pool):
                yield
        elif TrialState.RUNNING in states:  # elsewhere: its worker may die yet
            time.sleep(1)
            yield
        else:
            return


def fail_unbegun_trials(study: optuna.Study) -> None:
    """Fail the trials whose worker died between taking them and its first heartbeat: Optuna never misses those."""
    earliest = datetime.now() - timedelta(seconds=GRACE)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.user_attrs.get(BEGUN) != trial.number and trial.datetime_start and trial.datetime_start < earliest:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _take(job: tuple[optuna.Study, Work, float, bool]) -> None:
    """Do the next trial, if there is one and there is time."""
    study, work, end, copied = job
    if copied:
        study.sampler.reseed_rng()  # each process has a copy, which would propose the same
    waiting = study.get_trials(deepcopy=False, states=[TrialState.WAITING])
    if not waiting or time.time() >= end:
        return
    taken: list[int] = []
    failed: list[int] = []
    try:
        study.optimize(functools.partial(_once, study, work, taken, failed), n_trials=1)
    except ValueError:  # of the work; or Optuna's, to whom the result is told of a trial that has ended
        if failed or not taken or study.get_trials(deepcopy=False)[taken[0]].state != TrialState.FAIL:
            raise
        print(f"trial {taken[0]} was taken over by another machine, as this one was not heard of", file=sys.stderr)


def _once(study: optuna.Study, work: Work, taken: list[int], failed: list[int], trial: optuna.Trial) -> float:
    """Do a trial, unless another has its slot: machines that fill the queue at once fill it twice.

    taken: gets its number. failed: gets it, where the work raises.
    """
    taken.append(trial.number)
    trial.set_user_attr(BEGUN, trial.number)  # the heart beats by now; a retry has the mark of the trial before it
    slot = trial.user_attrs.get("slot")  # None: the queue was empty by now
    others = study.get_trials(deepcopy=False)[: trial.number]
    if slot is None or any(_holds(other, slot) for other in others):
        return math.nan  # a trial that failed
    try:
        return work(trial)
    except UpdateFinishedTrialError:  # another machine has given this one up
        raise
    except Exception:
        failed.append(trial.number)
        raise


def _holds(trial: FrozenTrial, slot: int) -> bool:
    return trial.user_attrs.get("slot") == slot and trial.state != TrialState.FAIL
