import math
import random

import numpy as np
import pytest

from callbacks.trajectory import needed
from experiment.training import train
from tests.store import artifacts, history, runs, schedule

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
    adam, cosine = (str(train(["--optimizer", arm, "--model.lr=0.01", *SHORT]).run_id) for arm in ("adam", "cosine"))
    assert schedule(adam) == [(step, 0.01) for step in STEPS]
    assert history(adam, "lr") == [(step, 0.01) for step in (1, 10, 11, 20)]  # the ends of each epoch
    expected = [0.005 * (1 + math.cos(math.pi * (step - 1) / 20)) for step in STEPS]
    assert [rate for _, rate in history(cosine, "lr")] == pytest.approx(expected)


def test_a_line_through_the_points_in_mlflow_is_the_one_through_all() -> None:
    draw = random.Random(0)
    points = [
        (step, {name: float(draw.randrange(2)) for name in ("a", "b") if draw.random() < 0.9}) for step in range(300)
    ]
    sent = list(needed(points))
    for name in ("a", "b"):
        (x, y), (few_x, few_y) = (
            zip(*((step, seen[name]) for step, seen in some if name in seen), strict=True) for some in (points, sent)
        )
        assert len(few_x) < 0.8 * len(x)
        assert list(np.interp(x, few_x, few_y)) == list(y)


def test_a_run_that_diverges_keeps_what_it_saw_and_is_marked_failed() -> None:
    cli = train(["--optimizer", "adam", "--model.lr=1e6", *SHORT])
    [run] = runs()
    assert run.info.status == "FAILED"
    assert cli.diverged == run.data.tags["diverged"]
    assert "Training diverged at step 2" in str(cli.diverged)
    assert "Lower --model.lr" in str(cli.diverged)
    assert schedule(run.info.run_id)[:2] == [(1, 1e6), (2, 1e6)]
    assert "test/loss" not in run.data.metrics
