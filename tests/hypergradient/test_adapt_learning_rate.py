"""The whole rule as a callback, over the list of cases."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from data import TensorLoader
from hypergradient import Settings
from hypergradient.lightning import AdaptLearningRate
from tests.hypergradient.lightning_cases import CASES, Case, Plain, mlp, samples
from tests.hypergradient.test_lightning import Measures, loss, ranks, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers"),  # in memory
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),  # of the first step that a scaler skips
    pytest.mark.filterwarnings("ignore:You are using a CUDA device"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
HELD: dict[str, Any] = {"settings": Settings(meta_lr=0.0, weight_decay=0.0), "window": 0}
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class Watch(Callback):
    """Notes the rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.groups: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        adapter = getattr(trainer.optimizers[0], "rate_adapter", None)
        if adapter and adapter.last:
            self.rates.append(adapter.last["lr"])
            self.groups = [group.get("initial_lr", group["lr"]) for group in trainer.optimizers[0].param_groups]
            self.scale = adapter.scale


def fit(
    case: Case, adapt: AdaptLearningRate | None, folder: Path, ckpt_path: str | None = None, **options: Any
) -> tuple[Plain, Watch]:
    seed_everything(3)
    watch, given = Watch(), case.trainer() | options
    callbacks = [*given.pop("callbacks", []), *([adapt] if adapt else []), watch]
    quiet = QUIET | {"accelerator": "cpu", "max_epochs": 6, "default_root_dir": folder}
    trainer = Trainer(**quiet | {"callbacks": callbacks} | given)
    module = case.module(case.network(), case.configure)
    train, val = (samples(case.data) for _ in range(2))
    if options.get("max_steps") or ckpt_path or "resumable" in str(folder):
        train = TensorLoader(*train.dataset.tensors, batch_size=8)  # type: ignore[attr-defined,assignment]
    trainer.fit(module, train, val, ckpt_path=ckpt_path)
    return module, watch


@pytest.mark.slow
@every_case
def test_with_the_rate_held_the_weights_are_those_of_plain_training_at_it_to_the_bit(
    case: Case, tmp_path: Path
) -> None:
    module, watch = fit(case, AdaptLearningRate(loss, **HELD), tmp_path / "held")

    def at_those_rates(network: nn.Module) -> Any:
        made = case.configure(network)
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        for group, rate in zip(optimizer.param_groups, watch.groups, strict=True):
            group["lr"], group["initial_lr"] = (group["lr"] if isinstance(made, dict) else rate) * watch.scale, rate
        for schedule in [made["lr_scheduler"]["scheduler"]] if isinstance(made, dict) else []:
            schedule.base_lrs = [rate * watch.scale for rate in watch.groups]
        return made

    plain, _ = fit(replace(case, configure=at_those_rates), None, tmp_path / "plain")
    if case is CASES["LR warm-up"]:  # the schedule's rate times the scale, or the scale times the schedule's rate
        for p, q in zip(module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    else:
        assert same(module, plain)
    assert not same(module, case.module(case.network(), case.configure))


@pytest.mark.slow
@every_case
def test_adapted_the_rate_moves_and_the_average_is_validated_and_returned(case: Case, tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss)
    module, watch = fit(case, adapt, tmp_path)
    assert len(set(watch.rates)) > 3
    assert all(p.isfinite().all() for p in module.parameters())
    assert adapt.adapter.report()["looks"] > 3
    assert same(module, adapt.adapter.averaged)
    assert any(not torch.equal(value, adapt.current[name]) for name, value in module.state_dict().items())


def test_what_is_saved_is_the_average_and_beside_it_what_training_goes_on_with(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", filename="last", save_on_train_epoch_end=False)
    module, _ = fit(Case(), AdaptLearningRate(loss), tmp_path, callbacks=[saver])
    saved = torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in saved["state_dict"].items())
    assert any(not torch.equal(value, module.state_dict()[name]) for name, value in saved["current"].items())


@pytest.mark.slow
@pytest.mark.parametrize("stop", [12, 15], ids=["at-an-epochs-end", "in-mid-epoch"])
@pytest.mark.parametrize("name", ["Adam", "LR warm-up", "BatchNorm"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(name: str, stop: int, tmp_path: Path) -> None:
    case, saver = CASES[name], ModelCheckpoint(tmp_path / "saved", filename="stop", every_n_train_steps=stop)
    whole, first = fit(case, AdaptLearningRate(loss, length=36), tmp_path / "resumable")
    fit(case, AdaptLearningRate(loss, length=36), tmp_path / "part", max_steps=stop, callbacks=[saver])
    path = tmp_path / "saved" / "stop.ckpt"
    torch.load(path, weights_only=True)
    rest, second = fit(case, AdaptLearningRate(loss, length=36), tmp_path / "rest", str(path))
    assert first.rates[-len(second.rates) :] == second.rates
    assert same(whole, rest)


def test_what_was_seen_is_logged(tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[adapt], log_every_n_steps=1, default_root_dir=tmp_path, **QUIET
    )
    trainer.fit(
        Plain(mlp(), lambda network: torch.optim.Adam(network.parameters())), samples("classes"), samples("classes")
    )
    assert {"lr", "decay", "hypergradient", "lookahead_loss"} <= trainer.callback_metrics.keys()


def test_looks_and_hypothetical_steps_leave_no_trace_in_metrics_and_logs(tmp_path: Path) -> None:
    found, cases = [], list[list[Callback]]([[], [AdaptLearningRate(loss, **HELD, lr=1e-9)]])
    for callbacks in cases:
        trainer = Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, callbacks=callbacks, **QUIET)
        module = Measures(mlp(), lambda network: torch.optim.Adam(network.parameters(), lr=1e-9))
        trainer.fit(module, samples("classes"), samples("classes"))
        found.append({name: float(trainer.callback_metrics[name]) for name in ("seen", "loss")})
    assert found[0] == pytest.approx(found[1])
    assert found[0]["seen"] > 0


def test_a_learning_rate_monitor_sees_the_adapted_rate(tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss)
    _, watch = fit(Case(), adapt, tmp_path)
    assert watch.groups == [watch.rates[-1]]


@pytest.mark.slow
def test_two_processes_have_one_rate_and_end_where_one_process_with_the_joined_batches_does(tmp_path: Path) -> None:
    """Real processes, gloo, other data on each rank."""
    first, second = ranks(tmp_path / "two", 2, math.inf)
    [one] = ranks(tmp_path / "one", 1, math.inf)
    assert first["rate"] == second["rate"]
    assert first["rate"] == pytest.approx(one["rate"], rel=1e-3)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])
        torch.testing.assert_close(value, one["weights"][name], rtol=1e-3, atol=1e-4)


def test_a_second_fit_begins_anew_and_says_so(tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss)
    fit(Case(), adapt, tmp_path)
    with pytest.warns(UserWarning, match="AdaptLearningRate begins anew: this is another fit, without a checkpoint"):
        fit(Case(), adapt, tmp_path)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(samples("classes").dataset)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*fork")  # of Python, in a process with threads
def test_any_validation_loader_will_do(workers: int, tmp_path: Path) -> None:
    """Without a length; with workers that stay, which are to leave the random stream as it was."""
    loader = DataLoader(Stream(), batch_size=8, num_workers=workers, persistent_workers=workers > 0)
    adapt = AdaptLearningRate(loss, batches=loader, **HELD)
    held, _ = fit(CASES["dropout"], adapt, tmp_path / "held")
    listed, _ = fit(CASES["dropout"], AdaptLearningRate(loss, **HELD), tmp_path / "listed")
    assert adapt.adapter.report()["looks"] > 0
    assert same(held, listed)


class SavesInValidation(Callback):
    """Saves in the middle of a validation, and breaks off there, as it may be broken off."""

    def __init__(self, path: Path, breaks: bool) -> None:
        self.path, self.breaks = path, breaks

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.current_epoch == 2:
            trainer.save_checkpoint(self.path)
            if self.breaks:
                raise RuntimeError("in the middle of a validation")


@pytest.mark.slow
@pytest.mark.parametrize("breaks", [False, True])
def test_a_checkpoint_from_the_middle_of_a_validation_holds_each_weight_in_its_place(
    breaks: bool, tmp_path: Path
) -> None:
    path, adapt = tmp_path / "middle.ckpt", AdaptLearningRate(loss)
    callbacks = [SavesInValidation(path, breaks)]
    if breaks:
        with pytest.raises(RuntimeError, match="in the middle of a validation"):
            fit(Case(), adapt, tmp_path, callbacks=callbacks, max_epochs=3)
    else:
        fit(Case(), adapt, tmp_path, callbacks=callbacks, max_epochs=3)
    saved = torch.load(path, weights_only=True)
    own = saved["callbacks"][next(name for name in saved["callbacks"] if "AdaptLearningRate" in name)]
    assert adapt.adapter.average
    average, current = (saved[name] for name in ("state_dict", "current"))
    assert all(torch.equal(value, own["average"]["network"][name]) for name, value in average.items())
    assert any(not torch.equal(value, average[name]) for name, value in current.items())
    assert not adapt.adapter.average.swapped
    if breaks:
        assert all(torch.equal(value, adapt.adapter.network.state_dict()[name]) for name, value in current.items())


def test_what_is_made_of_the_average_after_the_fit_is_what_is_saved(tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss)
    trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=[adapt], default_root_dir=tmp_path, **QUIET)
    module = Plain(mlp(), lambda network: torch.optim.Adam(network.parameters()))
    trainer.fit(module, samples("classes"), samples("classes"))
    with torch.no_grad():
        module.network[0].bias.fill_(7.0)  # type: ignore[index]
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert (saved["state_dict"]["network.0.bias"] == 7).all()
    assert not torch.equal(saved["current"]["network.2.weight"], saved["state_dict"]["network.2.weight"])


def test_checkpoints_of_weights_alone_are_refused(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(ValueError, match=r"averages the weights: ModelCheckpoint\(save_weights_only=True\) would save"):
        fit(Case(), AdaptLearningRate(loss), tmp_path, callbacks=[saver])
    fit(Case(), AdaptLearningRate(loss, window=0), tmp_path / "own", callbacks=[saver])
