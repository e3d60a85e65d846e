import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from experiment.training import train
from lightning_modules import Replay, linear
from tests.store import schedule
from tracking.store import client

SHORT = ["--trainer.max_epochs=3", "--trainer.enable_progress_bar=false", "--data.batch_size=500"]


def adamw() -> torch.optim.Optimizer:
    return torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=1.0)


def test_linear_decay_ends_one_step_above_zero() -> None:
    optimizer = adamw()
    schedule, seen = linear(optimizer, 4), []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.slow
def test_a_replayed_run_has_the_weights_of_the_run_that_found_the_schedule() -> None:
    """Adam and a decay of its own, or AdamW with lr · weight_decay: the same arithmetic but for the last bits."""
    found = train(["--optimizer", "meta", *SHORT])
    path = client().download_artifacts(str(found.run_id), "schedule.csv")
    options = [f"--model.schedule.path={path}", "--data.train_on_validation=false", *SHORT]
    replayed = train(["--optimizer", "replay", *options])
    assert schedule(str(replayed.run_id)) == schedule(str(found.run_id))
    torch.testing.assert_close(replayed.model.network.state_dict(), found.model.network.state_dict(), rtol=0, atol=1e-3)


def test_a_schedule_is_stretched_over_a_run_of_another_length(tmp_path: Path) -> None:
    path = tmp_path / "schedule.csv"
    with path.open("w") as file:
        csv.writer(file).writerows([("step", "lr", "decay"), (1, 0.1, 0.02), (2, 0.4, 0.04)])
    optimizer = adamw()
    schedule, seen = Replay(optimizer, 4, str(path)), []
    for _ in range(4):
        [group] = optimizer.param_groups
        seen.append((group["lr"], group["lr"] * group["weight_decay"]))
        optimizer.step()
        schedule.step()
    assert seen == [pytest.approx(pair) for pair in [(0.1, 0.01), (0.1, 0.01), (0.4, 0.02), (0.4, 0.02)]]


def test_an_optimizer_that_cannot_decay_as_the_schedule_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "schedule.csv").write_text("step,lr,decay\n1,0.1,0.02\n")
    with pytest.raises(ValueError, match=r"Adam cannot replay .*: take AdamW"):
        Replay(torch.optim.Adam(nn.Linear(2, 2).parameters()), 4, str(tmp_path / "schedule.csv"))


@pytest.mark.parametrize("text", ["", "step,lr\n1,0.1\n", "step,lr,decay\n", "step,lr,decay\n1,fast,0\n"])
def test_a_file_that_is_no_schedule_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "schedule.csv").write_text(text)
    with pytest.raises(ValueError, match=r"--model.schedule.path: .*schedule.csv"):
        Replay(adamw(), 4, str(tmp_path / "schedule.csv"))
