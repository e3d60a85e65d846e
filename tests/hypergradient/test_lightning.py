import copy
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer, seed_everything, strategies
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import DoublePrecision
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import SumMetric

from data import TensorLoader
from experiment.presets import ROOT
from hypergradient import NotFiniteError, OneStepAdapter
from hypergradient.lightning import AdaptLearningRate, AdaptOneStep
from tests.hypergradient.lightning_cases import CASES, Case, Plain, SavesBefore, adam, mlp, samples

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),  # in memory
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),  # of the first step that a scaler skips
    pytest.mark.filterwarnings("ignore:You are using a CUDA device"),
]
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def loss(module: Plain, batch: Any) -> torch.Tensor:
    return module.loss(batch)


class Watch(Callback):
    """Notes what each look saw, and whether the gradients were finite."""

    def __init__(self, adapt: AdaptOneStep | None) -> None:
        self.adapt, self.seen = adapt, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, *args: Any) -> None:
        if self.adapt and self.adapt.adapter.last:
            self.seen.append({name: value.clone() for name, value in self.adapt.adapter.last.items()})


def fit(
    case: Case,
    adapt: AdaptOneStep | None,
    folder: Path,
    ckpt_path: str | None = None,
    resumable: bool = False,
    **options: Any,
) -> tuple[Plain, Watch]:
    seed_everything(3)
    watch, given = Watch(adapt), case.trainer() | options
    callbacks = [*given.pop("callbacks", []), *([adapt] if adapt else []), watch]
    trainer = Trainer(
        **QUIET | {"accelerator": "cpu", "max_epochs": 4, "default_root_dir": folder, "callbacks": callbacks} | given
    )
    module = case.module(case.network(), case.configure)
    loader = samples(case.data)
    train = TensorLoader(*loader.dataset.tensors, batch_size=8) if resumable else loader  # type: ignore[attr-defined]
    trainer.fit(module, train, loader, ckpt_path=ckpt_path)
    return module, watch


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


@pytest.mark.slow
@every_case
def test_with_meta_rate_0_the_weights_are_those_of_plain_training_to_the_bit(case: Case, tmp_path: Path) -> None:
    plain, _ = fit(case, None, tmp_path / "plain")
    frozen, watch = fit(case, AdaptOneStep(loss, meta_lr=0.0), tmp_path / "frozen")
    assert same(plain, frozen)
    assert not same(plain, case.module(case.network(), case.configure))
    assert len(watch.seen) > 3


@pytest.mark.slow
@every_case
def test_adapted_the_rate_moves_stays_in_its_bounds_and_h_is_right(case: Case, tmp_path: Path) -> None:
    adapt = AdaptOneStep(loss, meta_lr=0.2, bounds=(0.5, 2.0))
    module, watch = fit(case, adapt, tmp_path)
    scales = adapt.adapter.log_scale.exp()
    assert 0.5 <= scales.min() <= scales.max() <= 2.0
    assert scales != 1
    assert all(p.isfinite().all() for p in module.parameters())
    for seen in watch.seen:
        assert (seen["lr"] >= 0).all()
        assert all(value.isfinite().all() for value in seen.values())
    assert sum(float(seen["hypergradient"].abs().sum()) for seen in watch.seen) > 0


@pytest.mark.slow
@every_case
def test_h_is_the_finite_difference_of_the_real_step_in_float64(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step: what the optimizer's own step does at a rate a little larger, and a little smaller."""
    if "precision" in case.trainer() or "plugins" in case.trainer():
        case = Case()  # a reduced precision has no finite differences
    truth, batches, prepare = [], list(samples(case.data)), OneStepAdapter._prepare

    def with_truth(adapter: OneStepAdapter) -> None:
        truth.append(difference(adapter, case, batches[adapter.looks % len(batches)]))
        prepare(adapter)

    monkeypatch.setattr(OneStepAdapter, "_prepare", with_truth)
    _, watch = fit(case, AdaptOneStep(loss, meta_lr=0.1), tmp_path, precision="64-true")
    found = {float(seen["lookahead_loss"]): float(seen["hypergradient"].sum()) for seen in watch.seen}  # one a step
    assert list(found.values()) == pytest.approx(truth, rel=1e-4, abs=1e-9)


def difference(adapter: OneStepAdapter, case: Case, batch: Any) -> float:
    """Return dL_val/d log rate by two ordinary steps of a copy."""
    network: Any = adapter.network.network
    losses = []
    for e in (1e-6, -1e-6):
        copied, optimizer = copy.deepcopy((network, adapter.optimizer))
        for p, q in zip(copied.parameters(), network.parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.clone()
        for group in optimizer.param_groups:
            group["lr"] *= math.exp(e + adapter.log_scale.item())
        optimizer.step()
        copied.eval()
        double = DoublePrecision().convert_input(batch)
        losses.append(case.module(copied, adam).loss(double).item())
    return (losses[0] - losses[1]) / 2e-6


@pytest.mark.parametrize("stop", [6, 9], ids=["at-an-epochs-end", "in-mid-epoch"])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(stop: int, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", filename="stop", every_n_train_steps=stop)
    whole, _ = fit(Case(), AdaptOneStep(loss), tmp_path / "whole", resumable=True)
    fit(Case(), AdaptOneStep(loss), tmp_path / "part", resumable=True, max_steps=stop, callbacks=[saver])
    path = tmp_path / "saved" / "stop.ckpt"
    torch.load(path, weights_only=True)
    rest, _ = fit(Case(), AdaptOneStep(loss), tmp_path / "rest", str(path), resumable=True)
    assert same(whole, rest)


class SpoiltBatch(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * (math.nan if batch_idx == 2 else 1.0)


class SpoiltFromThen(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * (math.nan if self.global_step >= 3 else 1.0)


def test_a_batch_that_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    adapt = AdaptOneStep(loss)
    module, _ = fit(Case(module=SpoiltBatch), adapt, tmp_path)
    assert (adapt.adapter.skipped, adapt.adapter.looks) == (4, 20)  # one an epoch
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_run_whose_losses_stay_so_ends_and_says_where_it_began(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="5 steps in a row were skipped, from step 4 on"):
        fit(Case(module=SpoiltFromThen), AdaptOneStep(loss, patience=5), tmp_path)


def test_what_a_look_saw_is_logged(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        callbacks=[AdaptOneStep(loss)],
        log_every_n_steps=1,
        **quiet,
    )
    trainer.fit(Plain(mlp(), adam), samples("classes"), samples("classes"))
    assert {
        "lr",
        "hypergradient",
        "hypergradient_error",
        "lookahead_loss",
        "bounded",
    } <= trainer.callback_metrics.keys()


class Measures(Plain):
    """Counts and logs in its loss, as many modules do."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen = SumMetric()

    def loss(self, batch: Any) -> Tensor:
        self.seen.update(len(batch[0]))
        loss = super().loss(batch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("seen", self.seen.compute())


def test_a_look_leaves_no_trace_in_metrics_and_logs(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    found, cases = [], list[list[Callback]]([[], [AdaptOneStep(loss, meta_lr=0.0)]])
    for callbacks in cases:
        trainer = Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, callbacks=callbacks, **quiet)
        trainer.fit(Measures(mlp(), adam), samples("classes"), samples("classes"))
        found.append({name: float(trainer.callback_metrics[name]) for name in ("seen", "loss")})
    assert found[0] == found[1]
    assert found[0]["seen"] > 0


def two_optimizers(network: nn.Module) -> list[Optimizer]:
    return [adam(network), adam(network)]


class Manual(Plain):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        pass


def test_what_cannot_be_adapted_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapts one optimizer, and there are 2"):
        fit(Case(module=Manual, configure=two_optimizers), AdaptOneStep(loss), tmp_path)
    rprop = Case(configure=lambda network: torch.optim.Rprop(network.parameters()))
    with pytest.raises(ValueError, match="Rprop cannot be adapted"):
        fit(rprop, AdaptOneStep(loss), tmp_path)
    with pytest.raises(ValueError, match="needs validation batches: a validation loader in fit"):
        fit(Case(), AdaptOneStep(loss, batches=[]), tmp_path)


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_a_strategy_that_cuts_up_the_weights_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False)
    strategy = object.__new__(getattr(strategies, name))  # which itself needs a GPU, or a package, to start
    monkeypatch.setattr(Trainer, "strategy", strategy)
    with pytest.raises(ValueError, match=f"cannot be used under {name}, which cuts up the weights: use DDP"):
        AdaptOneStep(loss).on_train_start(trainer, Plain(mlp(), adam))


@pytest.mark.parametrize("callback", [AdaptOneStep, AdaptLearningRate])
def test_a_checkpoint_from_before_training_goes_on_holds_what_was_loaded(callback: type[Any], tmp_path: Path) -> None:
    def run(epochs: int, path: Path | None, extra: Callback) -> None:
        own = [callback(loss), extra]
        trainer = Trainer(accelerator="cpu", max_epochs=epochs, callbacks=own, default_root_dir=tmp_path, **QUIET)
        trainer.fit(Plain(mlp(), adam), samples("classes"), samples("classes"), ckpt_path=path)

    last, before = tmp_path / "last.ckpt", tmp_path / "before.ckpt"
    run(2, None, ModelCheckpoint(tmp_path, filename="last"))
    run(3, last, SavesBefore(before))
    first, saved = (torch.load(path, weights_only=True) for path in (last, before))
    assert str(saved["callbacks"][callback.__name__]) == str(first["callbacks"][callback.__name__])
    for name in ("state_dict", *(["current"] if callback is AdaptLearningRate else [])):
        assert all(torch.equal(value, saved[name][key]) for key, value in first[name].items())


class ManyLoaders(Plain):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("kind", ["one", "list", "dict"])
def test_validation_loaders_in_any_structure_are_read(kind: str, tmp_path: Path) -> None:
    own, adapt = samples("classes"), AdaptOneStep(loss)
    loaders: Any = {"one": own, "list": [own, own], "dict": {"first": own, "second": own}}[kind]
    module, positions = ManyLoaders(mlp(), adam), []
    for _ in range(2):  # the second fit begins anew, at the first validation batch
        trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[adapt], default_root_dir=tmp_path, **QUIET)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*begins anew")
            trainer.fit(module, own, loaders)
        assert adapt.adapter.looks == trainer.global_step > 0
        positions.append(adapt.position)
    assert positions == [trainer.global_step] * 2


def ranks(folder: Path, processes: int, meta_lr: float) -> list[dict[str, Any]]:
    folder.mkdir()
    script = Path(__file__).with_name("processes.py")
    command = [sys.executable, str(script), str(folder), str(processes), str(meta_lr)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_have_one_rate_and_end_where_one_process_with_the_joined_batches_does(tmp_path: Path) -> None:
    """Real processes, gloo, other data on each rank."""
    first, second = ranks(tmp_path / "two", 2, 0.1)
    [one] = ranks(tmp_path / "one", 1, 0.1)
    assert torch.equal(first["log_scale"], second["log_scale"])
    assert first["log_scale"].abs() > 0.1
    torch.testing.assert_close(first["log_scale"], one["log_scale"], rtol=1e-4, atol=1e-5)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])
        torch.testing.assert_close(value, one["weights"][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_in_two_processes_meta_rate_0_gives_the_weights_of_plain_ddp_to_the_bit(tmp_path: Path) -> None:
    (frozen, _), (plain, _) = ranks(tmp_path / "frozen", 2, 0.0), ranks(tmp_path / "plain", 2, -1.0)
    assert all(torch.equal(value, plain["weights"][name]) for name, value in frozen["weights"].items())
