"""A checkpoint resumes the run that wrote it, or is refused before anything starts."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from experiment.options import ARMS
from experiment.run import Run, train
from tests.store import SHORT, checkpoint_of, runs

TINY = ["--trainer.max_epochs=2", *SHORT[1:]]
# what is typed next to --ckpt_path -> how the answer names it
OTHER_RUNS = {
    "--task=conv": "model.network lightning_modules.MLP → lightning_modules.ConvNet",
    "--optimizer=cosine": "model.schedule None → torch.optim.lr_scheduler.CosineAnnealingLR",
    "--optimizer=meta": "model lightning_modules.SupervisedModule → lightning_modules.MetaModule",
    "--model.lr=0.5": "model.lr 0.001817 → 0.5",
    "--model.network.hidden=9": "model.network.hidden 100 → 9",
    "--data.batch_size=500": "data.batch_size 1000 → 500",
    "--data.seed=1": "data.seed 0 → 1",
    "--seed_everything=1": "seed_everything 0 → 1",
    "--threads=2": "threads 1 → 2",
    "--trainer.accumulate_grad_batches=2": "trainer.accumulate_grad_batches 1 → 2",
    "--trainer.gradient_clip_val=1": "trainer.gradient_clip_val None → 1",
    "--trainer.precision=bf16-mixed": "trainer.precision None → bf16-mixed",
    "--trainer.limit_train_batches=2": "trainer.limit_train_batches None → 2",
    "--trainer.max_epochs=1": "trainer.max_epochs 2 → 1",
    "--trainer.max_steps=3": "trainer.max_steps -1 → 3",
    "--trainer.reload_dataloaders_every_n_epochs=1": "trainer.reload_dataloaders_every_n_epochs 0 → 1",
    "--trainer.callbacks+=pytorch_lightning.callbacks.LearningRateMonitor": "trainer.callbacks ",
}


class Stop(Callback):
    """Breaks a run off in its second epoch; the first one has left a checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.current_epoch:
            raise ZeroDivisionError


class Order(Callback):
    """Notes a sum over each pair of batches."""

    def __init__(self) -> None:
        self.sums: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.sums.append((float(batch["train"][0].sum()), float(batch["val"][0].sum())))


def newest(store: Path) -> Path:
    """Return the newest checkpoint of a store."""
    return max(store.glob("mlruns/*/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def broken_off(store: Path, *options: str) -> Path:
    """Return the checkpoint of a run that was broken off."""
    with pytest.raises(ZeroDivisionError):
        train([*options, *TINY], callbacks=[Stop()])
    return newest(store)


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of a refusal."""
    before, _ = len(runs()), capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train(args)
    [line] = capsys.readouterr().err.splitlines()
    assert len(runs()) == before
    return str(line)


@pytest.mark.parametrize("options", [[*OTHER_RUNS][:3], pytest.param([*OTHER_RUNS][3:], marks=pytest.mark.slow)])
def test_another_configuration_is_refused_with_what_differs_and_a_harmless_difference_is_listed(
    options: list[str], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(broken_off(store, "--optimizer", "adam"))
    for option in options:
        said = OTHER_RUNS[option]
        arm = [] if option.startswith("--optimizer") else ["--optimizer=adam"]
        assert said in refused([*arm, *TINY, option, "--ckpt_path", path], capsys)
    harmless = ["--trainer.max_epochs=3", "--trainer.enable_model_summary=true", "--trainer.logger.run_name=again"]
    run = train(["--ckpt_path", path, *harmless])
    assert run.trainer.global_step == 12
    printed = capsys.readouterr().out
    for name in (
        "trainer.max_epochs 2 → 3",
        "trainer.enable_model_summary False → True",
        "trainer.logger.run_name None",
    ):
        assert name in printed


@pytest.mark.parametrize("arm", ["cosine", "meta"])
def test_a_run_that_depends_on_its_length_is_not_made_longer(
    arm: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken_off(store, "--optimizer", arm)
    assert "trainer.max_epochs 2 → 3" in refused([f"--ckpt_path={path}", "--trainer.max_epochs=3"], capsys)


def same(one: Run, other: Run) -> None:
    """The weights are equal to the bit, and of the same type."""
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
        assert value.dtype == other.model.state_dict()[name].dtype


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("arm", ["adam", "meta", "meta_onestep"])
def test_a_checkpoint_alone_is_resumed_tested_and_predicted_with_the_same_numbers(
    arm: str, precision: str, store: Path
) -> None:
    options = ["--optimizer", arm, f"--trainer.precision={precision}", "--data.seed=1"]
    path = broken_off(store, *options)
    resumed, whole = train([f"--ckpt_path={path}"]), train([*options, *TINY])
    assert resumed.run_id == path.parents[1].name
    same(resumed, whole)
    assert resumed.test_metrics == whole.test_metrics
    again = train(["test", f"--ckpt_path={checkpoint_of(whole)}"])
    assert {name: float(value) for name, value in again.trainer.callback_metrics.items()} == whole.test_metrics
    loaded = type(whole.model).load_from_checkpoint(checkpoint_of(whole))
    x = whole.datamodule.test[0].to(loaded.dtype)
    whole.model.eval(), loaded.eval()
    assert torch.equal(loaded(x), whole.model(x))


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_order_of_samples_follows_from_seed_and_epoch_however_loaders_are_made(every: int, store: Path) -> None:
    """New loaders, and those of a run that is resumed, begin with the order of the epoch."""
    whole, reloaded, begun, resumed = (Order() for _ in range(4))
    options = ["--optimizer=adam", "--trainer.max_epochs=5", *SHORT[1:]]
    again = f"--trainer.reload_dataloaders_every_n_epochs={every}"
    train(options, callbacks=[whole])
    train([*options, again], callbacks=[reloaded])
    with pytest.raises(ZeroDivisionError):
        train([*options, again], callbacks=[begun, Stop()])
    train([f"--ckpt_path={newest(store)}"], callbacks=[resumed])
    assert whole.sums == reloaded.sums == begun.sums[:4] + resumed.sums
    assert len(set(whole.sums)) == 20


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")
def test_a_run_that_took_fewer_steps_than_it_was_asked_for_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        train(["--model=tests.broken.Lazy", *TINY])
    assert "error: the run saw 6 of 8 batches, so it is not tested" in capsys.readouterr().err
    [run] = runs()
    assert (run.info.status, "test/loss" in run.data.metrics) == ("FAILED", False)


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all parts of a checkpoint, through dictionaries and lists."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from parts(part, (*path, key))


def spoil(saved: dict[str, Any], path: tuple[Any, ...], how: str) -> None:
    """Remove, empty or replace a part of a checkpoint."""
    *above, last = path
    place: Any = saved
    for key in above:
        place = place[key]
    if how == "removed":
        del place[last]
    else:
        place[last] = {
            "text": "spoilt",
            "empty": type(place[last])() if isinstance(place[last], dict | list) else None,
        }[how]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_a_checkpoint_with_a_part_spoilt_is_refused_or_is_not_changed_by_it(
    arm: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of 23 parts, in three ways: a refusal in one line, or a run with the same end."""
    path = broken_off(store, "--optimizer", arm, "--model.lr=0.01")
    whole, good = train([f"--ckpt_path={path}", "--trainer.logger=false"]), torch.load(path, weights_only=True)
    chosen = [
        *random.Random(arm).sample(list(parts(good)), 20),
        ("optimizer_states",),
        ("lr_schedulers",),
        ("state_dict",),
    ]
    for number, spoilt in enumerate(chosen):
        saved = copy.deepcopy(good)
        spoil(saved, spoilt, ("removed", "text", "empty")[number % 3])
        file = path.with_name("spoilt.ckpt")
        torch.save(saved, file)
        capsys.readouterr()
        try:
            run = train([f"--ckpt_path={file}", "--trainer.logger=false"])
        except SystemExit as stop:
            lines = capsys.readouterr().err.splitlines()
            assert (stop.code, len(lines)) == (2, 1), (spoilt, lines)  # noqa: PT017
        else:
            same(run, whole)
