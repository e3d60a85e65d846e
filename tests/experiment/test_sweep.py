import math

import optuna
import pytest
from optuna.trial import TrialState

from experiment.sweep import BEGUN, alone, fail_unbegun_trials, fill, open_storage, release, sweep_name, work_off
from tracking.store import StoreError


def new_study(name: str = "s") -> optuna.Study:
    return optuna.create_study(storage=open_storage(None), study_name=name, load_if_exists=True)


def slots(study: optuna.Study, state: TrialState = TrialState.COMPLETE) -> list[int]:
    return sorted(trial.user_attrs["slot"] for trial in study.get_trials(states=[state]))


def square(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", -1, 1) ** 2


def test_each_slot_is_done_once_and_a_larger_sweep_adds_the_rest() -> None:
    for trials in (3, 5, 5):
        list(work_off(new_study(), trials, square))
        assert slots(new_study()) == list(range(trials))


def test_machines_that_fill_a_queue_at_once_do_each_slot_once() -> None:
    study = new_study()
    fill(study, 3)
    for slot in range(3):  # the other machine's
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"slot": slot}))
    list(work_off(study, 3, square))
    assert slots(study) == slots(study, TrialState.FAIL) == [0, 1, 2]
    fill(study, 3)
    assert slots(study, TrialState.WAITING) == []


def test_a_trial_that_broke_off_is_tried_again_with_its_values() -> None:
    study = new_study()
    fill(study, 2)
    value = study.ask().suggest_float("x", -1, 1)
    release(study)
    list(work_off(study, 2, square))
    assert slots(study) == [0, 1]
    assert value in [trial.params["x"] for trial in study.get_trials(states=[TrialState.COMPLETE])]


def test_after_the_time_given_no_trial_is_begun() -> None:
    study = new_study()
    list(work_off(study, 2, square, timeout=-1))
    assert slots(study) == []


@pytest.mark.parametrize("kind", [ZeroDivisionError, ValueError, RuntimeError])
def test_an_error_ends_the_sweep_and_its_trial_waits_for_the_next_try(kind: type[Exception]) -> None:
    """A ValueError too, which Optuna raises where a trial was taken over."""

    def broken(_: optuna.Trial) -> float:
        raise kind

    study = new_study()
    with pytest.raises(kind):
        list(work_off(study, 1, broken))
    list(work_off(study, 1, lambda _: math.pi))
    assert slots(study) == [0]


def test_a_sweep_runs_once_on_a_machine() -> None:
    with alone("a sweep", None), pytest.raises(StoreError, match="runs already"), alone("a sweep", None):
        pass
    with alone("a sweep", None), alone("another", None), alone("a sweep", "postgresql://shared"):
        pass


def test_the_name_of_a_sweep_follows_from_its_facts() -> None:
    assert sweep_name("tune", ["a", "b"]) == sweep_name("tune", ["a", "b"])
    assert len({sweep_name("tune", facts) for facts in (["a", "b"], ["ab"], ["b", "a"])}) == 3


def test_a_retry_whose_worker_died_before_it_began_is_missed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna gives a retry the attributes of the trial before it, the mark that it began included."""
    monkeypatch.setattr("experiment.sweep.GRACE", 0)
    study = new_study()
    fill(study, 1)
    first = study.ask()
    first.set_user_attr(BEGUN, first.number)
    trial = study.get_trials()[0]
    study.tell(first.number, state=TrialState.FAIL)
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=trial.user_attrs))
    study.ask()
    fail_unbegun_trials(study)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.FAIL]
