import math

import pytest

from experiment.training import train
from tests.store import artifacts, history, runs

SHORT = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--data.batch_size=400"]
STEPS = list(range(1, 21))


def test_every_step_of_a_meta_run_is_in_mlflow() -> None:
    cli = train(["--optimizer", "meta_onestep", *SHORT])
    assert cli.run_id
    for name in ("lr", "hypergradient", "lookahead_loss"):
        assert [step for step, _ in history(cli.run_id, name)] == STEPS
    assert history(cli.run_id, "lr")[-1][1] == pytest.approx(0.001 * cli.model.scale().item())
    assert {"config.yaml", "trajectory.png"} <= artifacts(cli.run_id)


def test_a_fixed_rate_and_a_schedule_are_recorded_too() -> None:
    rates = {}
    for arm in ("adam", "cosine"):
        cli = train(["--optimizer", arm, "--model.lr=0.01", *SHORT])
        rates[arm] = history(str(cli.run_id), "lr")
    assert rates["adam"] == [(step, 0.01) for step in STEPS]
    expected = [0.005 * (1 + math.cos(math.pi * (step - 1) / 20)) for step in STEPS]
    assert [rate for _, rate in rates["cosine"]] == pytest.approx(expected)


def test_a_run_that_diverges_keeps_what_it_saw_and_is_marked_failed() -> None:
    cli = train(["--optimizer", "adam", "--model.lr=1e6", *SHORT])
    [run] = runs()
    assert run.info.status == "FAILED"
    assert cli.diverged == run.data.tags["diverged"]
    assert "Training diverged at step 2" in str(cli.diverged)
    assert "Lower --model.lr" in str(cli.diverged)
    assert history(run.info.run_id, "lr")[:2] == [(1, 1e6), (2, 1e6)]
    assert "test/loss" not in run.data.metrics
