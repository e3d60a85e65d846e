import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch.optim.lr_scheduler import CosineAnnealingLR

from callbacks import LastCheckpoint, Trajectory
from callbacks.trajectory import schedule_until
from data import MNIST1DDataModule
from lightning_modules import MLP, MetaModule, OneStepModule, SupervisedModule
from tests.store import artifacts, history, schedule
from tracking.logger import Tracker
from tracking.store import client

STEPS = list(range(1, 31))


def fit(module: SupervisedModule, run_id: str | None = None, ckpt_path: Path | None = None, epochs: int = 3) -> str:
    """Train ten steps an epoch, and return the run."""
    tracker = Tracker(run_id=run_id)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        log_every_n_steps=7,
        logger=tracker,
        callbacks=[Trajectory(), LastCheckpoint(0.0)],
        **quiet,
    )
    trainer.fit(module, datamodule=MNIST1DDataModule(batch_size=400), ckpt_path=ckpt_path)
    return str(tracker.run_id)


def test_every_step_is_in_the_schedule_and_every_seventh_and_the_last_in_mlflow() -> None:
    module = OneStepModule(MLP())
    run = fit(module)
    assert [step for step, _ in schedule(run)] == STEPS
    for name in ("lr", "hypergradient", "lookahead_loss"):
        assert [step for step, _ in history(run, name)] == [7, 14, 21, 28, 30]
    assert history(run, "lr")[-1] == (30, schedule(run)[-1][1])
    assert schedule(run)[-1][1] == pytest.approx(0.001 * module.scale().item())
    assert "trajectory.png" in artifacts(run)
    assert float(client().get_run(run).data.tags["passes"]) == pytest.approx(1 + 128 / 400)


def test_the_newest_hypergradient_of_rare_looks_is_in_mlflow() -> None:
    run = fit(MetaModule(MLP(), race=4))
    looks = dict(history(run, "hypergradient"))
    assert len(looks) > 1
    assert set(looks) <= {7, 14, 21, 28, 30}
    assert [step for step, _ in history(run, "lr")] == [7, 14, 21, 28, 30]


def test_a_schedule_is_recorded_as_the_optimizer_used_it() -> None:
    run = fit(SupervisedModule(MLP(), 0.01, schedule=lambda optimizer, steps: CosineAnnealingLR(optimizer, steps)))
    assert [rate for _, rate in schedule(run)] == pytest.approx(
        [0.005 * (1 + math.cos(math.pi * (step - 1) / 30)) for step in STEPS]
    )


@pytest.mark.parametrize("same_run", [True, False])
def test_a_resumed_run_continues_its_schedule_and_its_points(same_run: bool, store: Path) -> None:
    first = fit(OneStepModule(MLP()), epochs=2)
    folder = store / "mlruns" / "mnist1d" / first
    [checkpoint] = folder.rglob("checkpoints/*.ckpt")
    # of the steps after the checkpoint, which a process that was killed had begun
    with (folder / "schedule.csv").open("a") as rows:
        rows.write("21,1.0,0.0,\n22,1.")
    run = fit(OneStepModule(MLP()), first if same_run else None, checkpoint)
    assert (run == first) == same_run
    assert [step for step, _ in schedule(run)] == STEPS
    assert [step for step, _ in history(run, "lr")] == ([7, 14, 20] if same_run else []) + [21, 28, 30]


def test_a_schedule_that_its_run_did_not_write_is_refused_and_rows_after_the_checkpoint_are_left_out(
    store: Path,
) -> None:
    folder = store / "mlruns" / "mnist1d" / fit(OneStepModule(MLP()), epochs=2)
    [checkpoint], file = folder.rglob("checkpoints/*.ckpt"), folder / "schedule.csv"
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["Trajectory"]
    written = file.read_bytes()
    header, first, second, *rest = written.splitlines(keepends=True)
    short = b"".join(second.rpartition(b",")[:1]) + b"\n"
    changes = {
        "order": [header, second, first, *rest],
        "sign": [header, first.replace(b",", b",-", 1), second, *rest],
        "zero": [header, b"1,0.0,0.0,\n", second, *rest],
        "short row": [header, first, short, *rest],
        "missing row": [header, second, *rest],
        "missing end": [header, first, second],
        "no header": [first, second, *rest],
        "nothing": [],
    }
    for name, rows in changes.items():
        file.write_bytes(b"".join(rows))
        with pytest.raises(
            ValueError, match=r"schedule.csv was changed after its run wrote it. Restore it, or remove it"
        ):
            print(name, schedule_until(checkpoint, state))
    file.write_bytes(written + b"21,1.0,0.0,\n22,1.")
    assert schedule_until(checkpoint, state) == written
    file.unlink()
    assert schedule_until(checkpoint, state) == header
