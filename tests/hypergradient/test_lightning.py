"""Lightning's Trainer with an adapted rate: nothing else changes."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning import Callback, Trainer, strategies
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import SumMetric

from hypergradient import Settings
from hypergradient.lightning import AdaptLearningRate
from tests.hypergradient.lightning_cases import CASES, QUIET, WARNINGS, Case, Plain, adam, fit, loss, samples, sgd
from tests.hypergradient.problem import SHORT, equal

pytestmark = WARNINGS
HELD: dict[str, Any] = {"settings": Settings(meta_lr=0.0, weight_decay=0.0, window=0.0, race=1)}
FAST = ("BatchNorm", "accumulation over batches", "LR warm-up")


class Watch(Callback):
    """Keeps, by step, the rates that were used, and the weights after each adapted step."""

    def __init__(self, adapt: AdaptLearningRate) -> None:
        self.adapt, self.rates, self.course = adapt, dict[int, list[float]](), list[list[Tensor]]()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        groups, meta = trainer.optimizers[0].param_groups, self.adapt.adapter.meta
        self.rates[trainer.global_step] = [float(group.get("used_lr", 0.0)) for group in groups]
        if meta.steps > len(self.course):
            self.course.append([p.detach().to(torch.float64, copy=True) for p in meta.params])


class AtRates(Callback):
    """Trains at given rates, step by step."""

    def __init__(self, rates: dict[int, list[float]]) -> None:
        self.rates = rates

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Optimizer) -> None:
        for group, rate in zip(optimizer.param_groups, self.rates[trainer.global_step + 1], strict=True):
            group["lr"] = rate


@pytest.mark.usefixtures("wins_its_races")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[] if name in FAST else [pytest.mark.slow]) for name, case in CASES.items()],
)
def test_held_the_weights_are_bit_for_bit_the_plain_ones_and_adapted_their_average_is_returned(
    case: Case, tmp_path: Path
) -> None:
    adapt = AdaptLearningRate(loss, **HELD)
    watch = Watch(adapt)
    held, trainer = fit(case, tmp_path, adapt, watch)
    plain, _ = fit(case, tmp_path, AtRates(watch.rates))
    assert equal(held.state_dict(), plain.state_dict())
    assert not equal(held.state_dict(), case.build().state_dict())
    assert adapt.adapter.meta.looks > 0
    # `lr` stays the user's: a schedule continues from it
    made = case.configure(case.network())
    groups = made["optimizer"].param_groups if isinstance(made, dict) else made.param_groups
    own = [group.get("initial_lr", group["lr"]) for group in groups]
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == own

    adapt = AdaptLearningRate(loss, settings=SHORT)
    watch = Watch(adapt)
    module, _ = fit(case, tmp_path, adapt, watch, max_epochs=8)
    assert len({tuple(rates) for rates in watch.rates.values()}) > 3
    average = [torch.zeros_like(p) for p in watch.course[0]]
    for t, weights in enumerate(watch.course, 1):
        average = [a + (p - a) / max(1.0, 0.1 * t) for a, p in zip(average, weights, strict=True)]
    returned = [p.double() for p in module.parameters() if p.requires_grad]
    torch.testing.assert_close(returned, average, rtol=1e-4, atol=1e-6)
    assert not torch.equal(returned[0], watch.course[-1][0])


class Measures(Plain):
    """Has a loss that depends on the Trainer and on hooks of the epochs, and counts and logs in it, as many do."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # behind an object: a look leaves a module's own lists as they were
        self.temperature, self.states, self.samples = 0.0, SimpleNamespace(seen=[]), SumMetric()

    def on_train_epoch_start(self) -> None:
        self.temperature = 1.0 + self.current_epoch

    def loss(self, batch: Any) -> Tensor:
        part = self.current_epoch / (self.trainer.max_epochs or 1)
        self.states.seen.append((part, self.temperature, self.training))
        self.samples.update(len(batch[0]))
        loss = super().loss(batch) * (1 + part) / self.temperature
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("samples", self.samples.compute())


def test_a_look_has_the_trainer_and_attributes_of_the_run_and_leaves_no_trace_in_its_metrics(tmp_path: Path) -> None:
    case = Case(module=Measures, configure=lambda network: torch.optim.Adam(network.parameters(), lr=1e-9))
    found, states = [], list[Any]()
    for callbacks in ([], [AdaptLearningRate(loss, **HELD)]):
        options = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
        module, trainer = fit(case, tmp_path, *callbacks, **options)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        states.append(module.states.seen)  # type: ignore[union-attr]
    plain, adapted = found
    assert {name: adapted.pop(name) for name in plain} == pytest.approx(plain)
    assert adapted.keys() == {"lr", "decay", "hypergradient", "lookahead_loss"}
    # a hypothetical step for each of the 12 real ones
    assert [sum(training for *_, training in seen) for seen in states] == [12, 24]
    training = {state for state in states[0] if state[-1]}
    assert set(states[1]) == set(states[0]) | {(*state[:-1], False) for state in training}


def taken_apart(net: Any, batch: Any) -> Tensor:
    return cross_entropy(net(batch["inputs"].mul_(0.5)), batch.pop("labels"))


def test_a_module_may_take_its_batch_apart_and_write_into_it(tmp_path: Path) -> None:
    case, adapt = Case(data="dictionaries", of=taken_apart), AdaptLearningRate(loss, **HELD)
    watch = Watch(adapt)
    held, _ = fit(case, tmp_path, adapt, watch)
    plain, _ = fit(case, tmp_path, AtRates(watch.rates))
    assert equal(held.state_dict(), plain.state_dict())
    assert adapt.adapter.meta.looks > 0


class Manual(Plain):
    automatic_optimization = False


@pytest.mark.parametrize(
    ("case", "options", "callbacks", "message"),
    [
        (Case(module=Manual, configure=lambda n: [adam(n), adam(n)]), {}, [], "one optimizer, but the module has 2"),
        (Case(configure=lambda n: torch.optim.Rprop(n.parameters())), {}, [], "Rprop cannot be adapted"),
        (Case(), {"batches": []}, [], "needs validation batches: a validation loader in fit"),
        (Case(), {}, [ModelCheckpoint(save_weights_only=True)], r"save_weights_only=True\) would save others"),
    ],
    ids=["optimizers", "Rprop", "no-batches", "weights-alone"],
)
def test_what_cannot_be_adapted_is_refused_before_the_first_step(
    case: Case, options: dict[str, Any], callbacks: list[Callback], message: str, tmp_path: Path
) -> None:
    adapt = AdaptLearningRate(loss, **options)
    with pytest.raises(ValueError, match=message):
        fit(case, tmp_path, adapt, *callbacks)
    assert not hasattr(adapt, "adapter") or adapt.adapter.finite.steps == 0


def test_a_strategy_that_cuts_up_the_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, **QUIET)
    for strategy in (strategies.FSDPStrategy, strategies.DeepSpeedStrategy):
        # which itself needs a GPU, or a package, to start
        monkeypatch.setattr(Trainer, "strategy", object.__new__(strategy))
        with pytest.raises(ValueError, match=f"with {strategy.__name__}, which shards the weights: use DDP"):
            AdaptLearningRate(loss).on_fit_start(trainer, Case().build())


def test_validation_batches_may_come_from_several_loaders(tmp_path: Path) -> None:
    val, adapt = {"first": samples("classes"), "second": samples("classes")}, AdaptLearningRate(loss, **HELD)
    held, _ = fit(CASES["dropout"], tmp_path, adapt, val=val, max_epochs=2)
    usual, _ = fit(CASES["dropout"], tmp_path, AdaptLearningRate(loss, **HELD), max_epochs=2)
    assert adapt.adapter.meta.looks > 6
    assert equal(held.state_dict(), usual.state_dict())


class Stream(IterableDataset[Any]):
    """The samples one by one; of two processes, each has every other one."""

    def __iter__(self) -> Iterator[Any]:
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return islice(zip(*samples("classes").tensors, strict=True), rank, None, processes)


class Keeps(Callback):
    """Keeps, in a file for each process, the rates and the weights."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rates = folder, list[float]()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["used_lr"])

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        path = self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt"
        torch.save({"rates": self.rates, "weights": pl_module.state_dict()}, path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of processes that are spawned
def test_two_processes_have_one_rate_and_end_where_one_process_with_the_joined_batches_does(tmp_path: Path) -> None:
    """Real processes, gloo, other data on each."""
    for processes in (1, 2):
        several = {"strategy": "ddp_spawn", "devices": processes} if processes > 1 else {}
        callbacks = [AdaptLearningRate(loss, length=24, settings=SHORT), Keeps(tmp_path)]
        own = {"max_epochs": 4, "accelerator": "cpu", "callbacks": callbacks, "default_root_dir": tmp_path}
        loader: Any = DataLoader(Stream(), batch_size=8 // processes)
        Trainer(**QUIET | several | own).fit(Case(configure=sgd).build(), loader, loader)
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert first["rates"] == second["rates"] == pytest.approx(one["rates"], rel=1e-3)
    assert len(set(first["rates"])) > 3
    assert equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-3, atol=1e-4)
