import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint

from callbacks import StopOnDivergence, TailAverage
from experiment.training import train
from lightning_modules import MLP, MetaModule, SupervisedModule
from tests.lightning_modules.test_one_step import Rates, fit, network, same
from tests.store import history, runs, schedule

HELD: dict[str, Any] = {"meta_lr": 0.0, "weight_decay": 0.0}
SHORT = ["--trainer.max_epochs=4", "--trainer.enable_progress_bar=false", "--data.batch_size=200"]


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_with_the_meta_rate_at_0_a_run_is_the_plain_run_bit_for_bit(name: str, tmp_path: Path) -> None:
    """With BatchNorm and dropout, the hypothetical run and the looks beside it."""
    optimizer, lr = getattr(torch.optim, name), 1e-4
    plain = SupervisedModule(network(), lr=lr, optimizer=optimizer)
    meta = MetaModule(network(), lr=lr, optimizer=optimizer, **HELD)
    fit(plain, tmp_path / "plain")
    fit(meta, tmp_path / "meta")
    assert same(plain.network, meta.network)  # type: ignore[arg-type]
    assert meta.adaptation is not None
    assert meta.adaptation.looks > 5


def test_the_decay_is_that_of_adamw(tmp_path: Path) -> None:
    """Proportional to the rate, decoupled from the gradient."""
    meta = MetaModule(network(), lr=1e-4, meta_lr=0.0, weight_decay=0.01)
    fit(meta, tmp_path / "meta", max_steps=1)
    assert meta.adaptation is not None
    decay = meta.adaptation.weight_decay
    plain = SupervisedModule(network(), lr=1e-4, optimizer=lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=decay))
    fit(plain, tmp_path / "plain", max_steps=1)
    torch.testing.assert_close(meta.network.state_dict(), plain.network.state_dict(), rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual")  # it says that it saves after the step
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run saves nothing
@pytest.mark.parametrize("stop", [8, 11], ids=["at-an-epochs-end", "in-mid-epoch"])
@pytest.mark.parametrize("lr", [None, 1e-5], ids=["from-its-own-start", "while-it-climbs"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(lr: float | None, stop: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = MetaModule(MLP(), lr=lr)
    whole, resumed, rates, rest = copy.deepcopy(start), copy.deepcopy(start), Rates(), Rates()
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    fit(whole, tmp_path / "whole", max_epochs=3, callbacks=[rates, TailAverage(), saver])
    checkpoint = str(tmp_path / "saved" / f"step={stop}.ckpt")
    fit(resumed, tmp_path / "rest", checkpoint, max_epochs=3, callbacks=[rest, TailAverage()])
    assert same(whole, resumed)
    assert rates.seen[stop:] == rest.seen
    assert len(set(rates.seen)) > 10


@pytest.mark.slow
def test_from_every_start_the_rates_come_together_and_each_look_is_in_mlflow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = {}
    for lr in ("null", "1e-6", "1e-3", "1"):
        run = train(["--optimizer", "meta", f"--model.lr={lr}", *SHORT, "--trainer.max_epochs=10"])
        seen = schedule(str(run.run_id))
        rates[lr] = seen[len(seen) // 2][1]
        looks = dict(history(str(run.run_id), "hypergradient"))
        assert looks.keys() == dict(history(str(run.run_id), "lookahead_loss")).keys()
        assert len(looks) == run.model.adaptation.looks
        printed = capsys.readouterr().out
        assert ("--model.lr 1 is lowered to 0.0" in printed) == (lr == "1")
    assert rates["null"] == rates["1"]
    assert max(rates.values()) < 2.5 * min(rates.values())


def test_the_passes_count_the_hypothetical_steps_and_the_looks() -> None:
    run = train(["--optimizer", "meta", *SHORT, "--data.val_batch_size=100"])  # 20 steps an epoch
    passes = 80 * 0.375 + run.model.adaptation.looks * 100 / 200
    assert float(runs()[0].data.tags["passes"]) == pytest.approx(1 + passes / 80)


def test_a_run_whose_weights_are_spoilt_goes_on_from_its_good_average(tmp_path: Path) -> None:
    """A NaN in mid-run, under the callback that ends runs which diverge."""

    class Spoil(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 30:
                with torch.no_grad():
                    pl_module.network[0].weight.fill_(float("nan"))

    meta = MetaModule(MLP())
    fitting = fit(meta, tmp_path, max_epochs=8, callbacks=[Spoil(), TailAverage(), StopOnDivergence()])
    assert meta.adaptation is not None
    assert (meta.adaptation.rewound, fitting.global_step) == (1, 64)
    assert all(p.isfinite().all() for p in meta.parameters())


def test_a_checkpoint_between_loading_and_the_first_step_keeps_the_adaptation(tmp_path: Path) -> None:
    meta, resumed = MetaModule(MLP()), MetaModule(MLP())
    fit(meta, tmp_path)
    saved: dict[str, Any] = {"state_dict": meta.state_dict()}
    checkpoint: dict[str, Any] = {}
    meta.on_save_checkpoint(saved)
    resumed.on_load_checkpoint(saved)
    resumed.on_save_checkpoint(checkpoint)
    assert checkpoint["adaptation"]["steps"] == 16


def test_a_second_fit_begins_anew(tmp_path: Path) -> None:
    meta = MetaModule(MLP())
    fit(meta, tmp_path / "first")
    first = meta.adaptation
    fitting = fit(meta, tmp_path / "second")
    assert meta.adaptation is not first
    assert meta.adaptation is not None
    assert meta.adaptation.optimizer is fitting.optimizers[0]


def test_without_an_average_the_weights_themselves_are_looked_at(tmp_path: Path) -> None:
    meta = MetaModule(MLP())
    fit(meta, tmp_path)
    assert meta.adaptation is not None
    assert meta.adaptation.average is meta.network
    assert meta.adaptation.twin.window == 0


def test_an_optimizer_that_cannot_be_adapted_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="Rprop cannot be adapted"):
        MetaModule(MLP(), optimizer=torch.optim.Rprop)


def test_clipping_is_that_of_the_trainer_and_of_the_hypothetical_run_too() -> None:
    """At 1/1000 of the gradients' norm, by SGD: the steps are all of one length."""
    lr, clip = 1e-3, "--trainer.gradient_clip_val=0.001"
    sgd = ["--model.optimizer=torch.optim.SGD", f"--model.lr={lr}", clip, *SHORT]
    held = train(["--optimizer", "meta", *sgd, "--model.meta_lr=0", "--model.weight_decay=0", "--model.pull=0"])
    plain = train(["--optimizer", "adam", *sgd])
    weights = held.model.adaptation.network.state_dict()  # TailAverage has put A into it
    current = torch.load(held.trainer.checkpoint_callback.best_model_path, weights_only=True)["current"]  # type: ignore[union-attr]
    assert weights.keys() == plain.model.network.state_dict().keys()
    assert all(
        torch.equal(value, current[f"network.{name}"]) for name, value in plain.model.network.state_dict().items()
    )
    twin = held.model.adaptation.twin
    apart = torch.cat([(a - b).flatten() for a, b in zip(twin.own, twin.real, strict=True)]).norm()
    assert 0 < apart < 80 * 3 * lr * 0.001  # 80 steps; unclipped a thousand times as much


def test_clipping_by_value_is_no_clipping_of_the_norm_in_the_hypothetical_run() -> None:
    run = train(
        ["--optimizer=meta", "--trainer.gradient_clip_val=1", "--trainer.gradient_clip_algorithm=value", *SHORT]
    )
    assert run.model.adaptation.twin.clip is None


@pytest.mark.slow
def test_accumulated_batches_make_the_step_of_the_joined_batch() -> None:
    def run(batch: int, times: int) -> Any:
        held = ["--model.meta_lr=0", "--model.weight_decay=0", "--model.part=1", f"--data.batch_size={batch}"]
        held += ["--trainer.precision=64-true"]  # in 32 bits the sums of two halves differ by what Adam enlarges
        return train(["--optimizer", "meta", *SHORT, *held, f"--trainer.accumulate_grad_batches={times}"]).model

    joined, halves = run(500, 1), run(250, 2)
    assert halves.adaptation.steps == joined.adaptation.steps == 32
    assert halves.adaptation.length == joined.adaptation.length == 32
    for first, second in (
        (joined.network, halves.network),
        (joined.adaptation.twin.network, halves.adaptation.twin.network),
    ):
        torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=1e-9, atol=1e-9)
    assert joined.passes == pytest.approx(32 + joined.adaptation.looks * 128 / 500)
    assert halves.passes == pytest.approx(32 + halves.adaptation.looks * 128 / 500)


def test_a_last_group_of_fewer_batches_is_a_step_too() -> None:
    run = train(["--optimizer", "meta", *SHORT, "--data.batch_size=1500", "--trainer.accumulate_grad_batches=2"])
    assert run.trainer.global_step == 8  # 3 batches an epoch
    assert [step for step, _ in schedule(str(run.run_id))] == list(range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_train(precision: str) -> None:
    run = train(["--optimizer", "meta", *SHORT, f"--trainer.precision={precision}"])
    assert run.model.adaptation.moves > 5
    assert run.test_metrics["test/loss"] < 2.2


def test_a_module_loaded_from_a_checkpoint_begins_a_fit_anew(tmp_path: Path) -> None:
    meta = MetaModule(MLP())
    fit(meta, tmp_path).save_checkpoint(tmp_path / "meta.ckpt")
    other = MetaModule.load_from_checkpoint(tmp_path / "meta.ckpt", network=MLP())
    fit(other, tmp_path / "other")
    assert meta.adaptation
    assert other.adaptation
    assert other.adaptation.steps == meta.adaptation.steps
    assert other.adaptation.rate < 0.3  # not the optimizer's own, 1
