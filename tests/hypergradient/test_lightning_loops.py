"""Variants of Lightning's loops: hypergradients are evaluated; at a constant rate, training is unchanged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hypergradient.lightning import AdaptLearningRate
from tests.hypergradient.lightning_cases import CASES, QUIET, WARNINGS, Case, Plain, adam, loss, mlp
from tests.hypergradient.problem import SHORT, equal
from tests.hypergradient.test_lightning import HELD, AtRates, Watch

pytestmark = [*WARNINGS, pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")]


def noise(seed: int, **options: Any) -> DataLoader[Any]:
    """Six batches of eight samples with random labels."""
    draw = torch.Generator().manual_seed(seed)
    data = TensorDataset(torch.randn(48, 6, generator=draw), torch.randint(3, (48,), generator=draw))
    return DataLoader(data, batch_size=8, **options)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (sample for batch in noise(1) for sample in zip(*batch, strict=True))


class Data(LightningDataModule):
    """Has another validation set in each epoch."""

    def train_dataloader(self) -> Any:
        return noise(0, shuffle=True)

    def val_dataloader(self) -> Any:
        return noise(1 + self.trainer.current_epoch)  # type: ignore[union-attr]


def loaders(**options: Any) -> Callable[[], dict[str, Any]]:
    """What `fit` is given: noise, shuffled in training, and a validation set."""
    return lambda: {"train_dataloaders": noise(0, shuffle=True), "val_dataloaders": noise(1, **options)}


def of(val: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: loaders()() | {"val_dataloaders": val()}


def data_module() -> dict[str, Any]:
    return {"datamodule": Data()}


class InPairs(Plain):
    """Is validated on pairs of batches."""

    def loss(self, batch: Any) -> Tensor:
        pairs = [batch] if self.training else list(batch.values())
        return torch.stack([super(InPairs, self).loss(part) for part in pairs]).mean()


ORDINARY, SMALL = loaders(), Case()


@dataclass(frozen=True)
class Variant:
    """Options of the Trainer, what `fit` is given, other callbacks, the module.

    averages: whether the adapter averages the weights, and not one of the other callbacks.
    """

    trainer: dict[str, Any]
    data: Callable[[], dict[str, Any]] = ORDINARY
    callbacks: Callable[[], list[Callback]] = list
    case: Case = SMALL
    averages: bool = True

    def fit(self, folder: Path, *callbacks: Callback) -> tuple[Plain, Trainer]:
        seed_everything(3)
        fixed = QUIET | {
            "accelerator": "cpu",
            "max_epochs": 3,
            "default_root_dir": folder,
            "enable_checkpointing": False,
        }
        trainer = Trainer(**fixed | self.trainer, callbacks=[*callbacks, *self.callbacks()])
        module = self.case.build()
        trainer.fit(module, **self.data())
        return module, trainer


LATE = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}
VARIANTS = {
    "no sanity check": Variant({"num_sanity_val_steps": 0}),
    "validation from the second epoch on": Variant(LATE),
    "validation within the epoch": Variant({"val_check_interval": 0.5}),
    "validation every four batches": Variant({"val_check_interval": 4, "check_val_every_n_epoch": None}),
    "some validation batches": Variant({"limit_val_batches": 2}),
    "a data module": Variant({}, data_module),
    "loaders that are made late": Variant(LATE, data_module),
    "loaders that are made again": Variant({"reload_dataloaders_every_n_epochs": 1, **LATE}, data_module),
    "several loaders": Variant({}, of(lambda: [noise(1), noise(2)])),
    "batches of several loaders": Variant(
        {}, of(lambda: CombinedLoader({"a": noise(1), "b": noise(2)}, "max_size_cycle")), case=Case(module=InPairs)
    ),
    "streams": Variant(
        {}, lambda: dict.fromkeys(("train_dataloaders", "val_dataloaders"), DataLoader(Stream(), batch_size=8))
    ),
    "a shuffled validation set": Variant({}, loaders(shuffle=True)),
    "workers that stay": Variant({"num_sanity_val_steps": 0}, loaders(num_workers=1, persistent_workers=True)),
    "overfit_batches": Variant(
        {"overfit_batches": 2}, lambda: {"train_dataloaders": noise(0), "val_dataloaders": noise(1)}
    ),
    "fast_dev_run": Variant({"fast_dev_run": 4}),
    "max_steps": Variant({"max_steps": 10, "max_epochs": -1}),
    "accumulation that changes": Variant({}, callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})]),
    "EMAWeightAveraging": Variant({}, callbacks=lambda: [EMAWeightAveraging()], averages=False),
    "LearningRateFinder": Variant(
        {"enable_checkpointing": True}, callbacks=lambda: [LearningRateFinder(num_training_steps=15, update_attr=False)]
    ),
    "precision bf16-true": Variant({"precision": "bf16-true"}),
    "precision 16-true": Variant(
        {"precision": "16-true"}, case=Case(configure=lambda network: torch.optim.Adam(network.parameters(), eps=1e-4))
    ),
}
SLOW = ("workers that stay", "no sanity check", "a data module", "several loaders", "max_steps", "precision bf16-true")


@pytest.mark.parametrize(
    "variant",
    [pytest.param(value, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, value in VARIANTS.items()],
)
def test_every_variant_of_the_loop_is_looked_into_and_held_is_bit_for_bit_the_plain_one(
    variant: Variant, tmp_path: Path
) -> None:
    adapt = AdaptLearningRate(loss, **HELD, average=variant.averages)
    watch = Watch(adapt)
    held, _ = variant.fit(tmp_path, adapt, watch)
    plain, _ = variant.fit(tmp_path, AtRates(watch.rates))
    assert equal(held.state_dict(), plain.state_dict())
    assert adapt.adapter.meta.looks > 1


class Augments(Plain):
    """Augments in the hooks of the transfer, as many modules do, and keeps what comes there and into the loss."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # behind an object: a look leaves a module's own lists as they were
        self.kept = SimpleNamespace(hooks=[], losses=[])

    def note(self, name: str, index: int) -> None:
        trainer = self.trainer
        self.kept.hooks.append((name, index, trainer.training, trainer.validating, self.training, self.looking))

    @property
    def looking(self) -> bool:
        """Whether this is for a look: a validation has no gradients."""
        return torch.is_grad_enabled() and not self.training

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.note("before", dataloader_idx)
        return [batch[0] + dataloader_idx, batch[1]]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.note("to device", dataloader_idx)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.note("after", dataloader_idx)
        return [batch[0] + torch.randn_like(batch[0]) if self.trainer.training else 2 * batch[0], batch[1]]

    def loss(self, batch: Any) -> Tensor:
        stage = self.trainer.state.stage
        if not self.trainer.sanity_checking:
            self.kept.losses.append(
                (str(stage), self.training, self.looking, self.current_epoch, float(batch[0].sum()))
            )
        self.log("loss", 0.0)
        return super().loss(batch)


def test_a_batch_of_a_look_takes_the_way_of_lightnings_validation_batches(tmp_path: Path) -> None:
    """The stage, the hooks with the number of the loader, and the limits."""
    variant = Variant(
        {"limit_val_batches": 2, "max_epochs": 4}, of(lambda: [noise(1), noise(2)]), case=Case(module=Augments)
    )
    adapt = AdaptLearningRate(loss, **HELD)
    watch = Watch(adapt)
    held, _ = variant.fit(tmp_path, adapt, watch)
    plain, _ = variant.fit(tmp_path, AtRates(watch.rates))
    assert equal(held.state_dict(), plain.state_dict())
    kept: Any = held.kept
    hooks = {call[:-1] for call in kept.hooks if call[-1]}
    assert hooks == {call[:-1] for call in kept.hooks if call[3]}
    assert hooks == {(name, index, False, True, False) for name in ("before", "to device", "after") for index in (0, 1)}
    assert {kept[:3] for kept in kept.losses if not kept[2]} == {
        ("RunningStage.TRAINING", True, False),
        ("RunningStage.VALIDATING", False, False),
    }
    looked, validated = ({found[-1] for found in kept.losses if found[2] == look} for look in (True, False))
    assert len(looked) == 4
    assert looked < validated


@pytest.mark.filterwarnings("ignore:You have overridden .* in `LightningModule` but")
def test_looks_are_at_the_loaders_of_the_present_epoch(tmp_path: Path) -> None:
    options = {"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 0}
    held, _ = Variant(options, data_module, case=Case(module=Augments)).fit(tmp_path, AdaptLearningRate(loss, **HELD))
    kept: Any = held.kept
    for epoch in (1, 2):
        looked = {found[-1] for found in kept.losses if found[2] and found[3] == epoch}
        validated = {
            found[-1] for found in kept.losses if "VALID" in found[0] and not found[2] and found[3] == epoch - 1
        }
        assert looked
        assert looked <= validated


def test_a_fit_has_its_own_validation_set_after_a_validation_of_another(tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss, **HELD)
    trainer = Trainer(**QUIET | LATE, accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, callbacks=[adapt])
    module = Case(module=Augments).build()
    trainer.validate(module, noise(9), verbose=False)
    assert not hasattr(adapt, "adapter")
    trainer.fit(module, noise(0), noise(1))
    kept: Any = module.kept
    other = {float(2 * batch[0].sum()) for batch in noise(9)}
    assert {found[-1] for found in kept.losses if found[2]}.isdisjoint(other)


class Manual(Plain):
    automatic_optimization = False


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant({"limit_val_batches": 0}), "limit_val_batches above 0, or `batches`"),
        (Variant({}, case=Case(module=Manual)), "needs automatic optimization"),
        (VARIANTS["EMAWeightAveraging"], "so does EMAWeightAveraging: use one of them"),
        (
            Variant({}, callbacks=lambda: [StochasticWeightAveraging(swa_lrs=0.01)]),
            "so does StochasticWeightAveraging: use one of them",
        ),
    ],
    ids=["no-batches", "manual", "EMA", "SWA"],
)
def test_what_cannot_work_is_refused_before_the_first_step(variant: Variant, message: str, tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss)
    with pytest.raises(ValueError, match=message):
        variant.fit(tmp_path, adapt)
    assert not hasattr(adapt, "adapter") or adapt.adapter.finite.steps == 0


def test_given_batches_need_no_validation_in_the_fit(tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss, noise(1), settings=SHORT)
    Variant({"limit_val_batches": 0}).fit(tmp_path, adapt)
    assert adapt.adapter.meta.looks > 1


class Counted(TensorDataset):
    """Counts the samples that are read."""

    read = 0

    def __getitem__(self, index: Any) -> Any:
        self.read += 1
        return super().__getitem__(index)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("given", [True, False], ids=["given", "of the fit"])
def test_each_look_reads_one_batch_and_leaves_the_streams_of_shuffled_loaders_as_they_were(
    given: bool, tmp_path: Path
) -> None:
    data = Counted(*noise(1).dataset.tensors)  # type: ignore[attr-defined]
    stream = torch.Generator().manual_seed(5)
    loader, before = DataLoader(data, 8, shuffle=True, generator=stream), stream.get_state()
    adapt = AdaptLearningRate(loss, loader if given else None, **HELD)
    Variant(LATE | {"max_epochs": 1}, of(lambda: noise(1) if given else loader)).fit(tmp_path, adapt)
    assert data.read == 8 * adapt.adapter.position > 8
    assert torch.equal(stream.get_state(), before)


def test_a_fit_of_no_epochs_changes_nothing_and_another_fit_with_the_callback_starts_again(tmp_path: Path) -> None:
    adapt = AdaptLearningRate(loss, settings=SHORT)
    none, _ = Variant({"max_epochs": 0}).fit(tmp_path, adapt)
    assert equal(none.state_dict(), Case().build().state_dict())
    with pytest.warns(UserWarning, match="starts again"):
        second, _ = Variant({}).fit(tmp_path, adapt)
    first, _ = Variant({}).fit(tmp_path, AdaptLearningRate(loss, settings=SHORT))
    assert equal(first.state_dict(), second.state_dict())


class Keeps(Callback):
    """Keeps the weights that are validated after each number of steps."""

    def __init__(self) -> None:
        self.kept = dict[int, dict[str, Tensor]]()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept[trainer.global_step] = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_the_best_checkpoint_has_the_weights_that_were_validated(at_epoch_end: bool, tmp_path: Path) -> None:
    keeps, best = Keeps(), ModelCheckpoint(tmp_path, monitor="val/loss", save_on_train_epoch_end=at_epoch_end)
    variant = Variant({"max_epochs": 9, "enable_checkpointing": True})
    variant.fit(tmp_path, AdaptLearningRate(loss, settings=SHORT), keeps, EarlyStopping("val/loss", patience=1), best)
    saved = torch.load(best.best_model_path, weights_only=True)
    assert equal(saved["state_dict"], keeps.kept[saved["global_step"]])
    assert not equal(saved["state_dict"], saved["current"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Lightning moves a module back from a GPU alone")
def test_after_a_fit_on_a_gpu_the_average_is_where_lightning_has_moved_the_module(tmp_path: Path) -> None:
    module, _ = Variant({"accelerator": "gpu", "devices": 1}).fit(tmp_path, AdaptLearningRate(loss))
    assert {p.device.type for p in module.parameters()} == {module.device.type} == {"cpu"}


class Logged(Callback):
    """Keeps, by step, the rate that was logged and the one that was used."""

    def __init__(self) -> None:
        self.kept = list[tuple[float, float]]()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if "lr" in trainer.callback_metrics:
            used = trainer.optimizers[0].param_groups[0]["used_lr"]
            self.kept.append((float(trainer.callback_metrics["lr"]), used))


def test_the_rate_that_is_used_is_logged_and_the_monitor_shows_the_users_own(tmp_path: Path) -> None:
    logged, monitor = Logged(), LearningRateMonitor("step")
    options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    variant = Variant(options, callbacks=lambda: [logged, monitor], case=CASES["LR warm-up"])
    variant.fit(tmp_path, AdaptLearningRate(loss, settings=SHORT))
    # the warm-up begins at 0, and the first step moves nothing
    assert len(logged.kept) == 18
    assert logged.kept[0] == (0, 0)
    assert all(shown == pytest.approx(used) for shown, used in logged.kept)
    assert len(set(logged.kept)) > 5
    assert monitor.lrs["lr-Adam"] == pytest.approx([0.01 * min(1, step / 5) for step in range(18)])


class FineTuned(Plain):
    """Has a backbone that is trained later."""

    def __init__(self, *args: Any) -> None:
        network = mlp(nn.BatchNorm1d(8)).append(nn.Linear(3, 3))
        super().__init__(network, lambda _: adam(network[-1]))
        self.backbone = network[:-1]


class AtRatesOf(AtRates):
    """Trains at given rates, and leaves its own to those who change it."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self.own = [group["lr"] for group in optimizer.param_groups]
        super().on_before_optimizer_step(trainer, module, optimizer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        for group, lr in zip(trainer.optimizers[0].param_groups, self.own, strict=True):
            group["lr"] = lr


def test_a_backbone_that_is_released_during_training_is_adapted_too(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    variant = Variant(
        {"enable_checkpointing": True},
        callbacks=lambda: [BackboneFinetuning(1, lambda _: 1.5)],
        case=Case(module=FineTuned),
    )
    adapt = AdaptLearningRate(loss, **HELD)
    watch = Watch(adapt)
    held, _ = variant.fit(tmp_path, adapt, watch, saver)
    plain, _ = variant.fit(tmp_path, AtRatesOf(watch.rates))
    assert equal(held.state_dict(), plain.state_dict())
    assert {len(rates) for rates in watch.rates.values()} == {1, 2}
    # Lightning freezes the backbone again in a run that is resumed
    again = replace(variant, data=lambda: ORDINARY() | {"ckpt_path": tmp_path / "epoch=1.ckpt"})
    with pytest.raises(ValueError, match="has other parameters: unfreeze or add them first"):
        again.fit(tmp_path, AdaptLearningRate(loss, **HELD))
