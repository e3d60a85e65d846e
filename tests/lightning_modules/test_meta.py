import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from callbacks import TailAverage
from experiment.run import train
from hypergradient import Meta, Settings
from lightning_modules import MLP, MetaModule, SupervisedModule
from tests.lightning_modules.fitting import Rates, fit, network, same

pytestmark = [
    # it says that it saves after the step
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual"),
    # a resumed run saves nothing
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
HELD: dict[str, Any] = {"meta_lr": 0.0, "weight_decay": 0.0, "race": 1}


def mlp() -> MLP:
    torch.manual_seed(0)
    return MLP()


def test_with_the_rate_held_a_run_is_the_plain_run_bit_for_bit(tmp_path: Path) -> None:
    """With BatchNorm and dropout, hypothetical steps and looks."""
    optimizer, lr = torch.optim.RMSprop, 1e-4
    plain = SupervisedModule(network(), lr=lr, optimizer=optimizer)
    meta = MetaModule(network(), lr=lr, optimizer=optimizer, **HELD)
    fit(plain, tmp_path)
    fit(meta, tmp_path)
    assert same(plain.network, meta.network)
    assert meta.meta.looks > 0


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    stop, whole, rates, rest = 8, MetaModule(mlp(), lr=1e-5, race=4, batches=4), Rates(), Rates()
    resumed, path = copy.deepcopy(whole), tmp_path / f"step={stop}.ckpt"
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stop, save_top_k=-1)
    fit(whole, tmp_path, max_epochs=9, callbacks=[rates, TailAverage(), saver])
    fit(resumed, tmp_path, path, max_epochs=9, callbacks=[rest, TailAverage()])
    assert same(whole, resumed)
    assert rates.seen[stop:] == rest.seen
    assert len(set(rates.seen)) > 10
    assert torch.load(path, weights_only=True)["optimizer_states"][0]["meta"]["steps"] == stop


def test_a_state_of_another_method_is_refused(tmp_path: Path) -> None:
    fit(SupervisedModule(mlp()), tmp_path, max_steps=1).save_checkpoint(tmp_path / "adam.ckpt")
    with pytest.raises(ValueError, match="the optimizer's state has no 'meta': another method wrote it"):
        fit(MetaModule(mlp()), tmp_path, tmp_path / "adam.ckpt")


def test_a_second_fit_starts_again_also_of_a_module_that_was_loaded(tmp_path: Path) -> None:
    meta, rates = MetaModule(mlp(), race=4), [Rates(), Rates(), Rates()]
    fit(meta, tmp_path, callbacks=[rates[0]]).save_checkpoint(tmp_path / "meta.ckpt")
    fitting = fit(meta, tmp_path, callbacks=[rates[1]])
    assert meta.meta.optimizer is fitting.optimizers[0]
    loaded = MetaModule.load_from_checkpoint(tmp_path / "meta.ckpt", network=mlp(), race=4)
    fit(loaded, tmp_path, callbacks=[rates[2]])
    assert rates[1].seen == rates[2].seen != rates[0].seen


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_each_constant_is_an_option_of_the_module(field: Any) -> None:
    other: Any = {field.name: 2 * field.default if isinstance(field.default, int) else 0.7 * field.default}
    assert MetaModule(MLP(), **other).meta.settings == Settings(**other)


@pytest.mark.slow
def test_the_constants_and_what_lightning_leaves_to_the_module_are_options_of_the_command_line() -> None:
    options = ["--model.meta_lr=0", "--model.window=0.2", "--model.least=8"]
    trainer = ["--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.5", "--trainer.max_epochs=1"]
    quiet = ["--trainer.enable_progress_bar=false", "--data.batch_size=500"]
    run = train(["--optimizer=meta", *options, *trainer, *quiet])
    assert run.model.meta.settings == Settings(meta_lr=0.0, window=0.2, least=8)
    assert run.model.meta.clip == 0.5
    assert run.model.meta.steps == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": torch.optim.Rprop}, "Rprop cannot be adapted"),
        ({"optimizer": torch.optim.AdamW}, "AdamW has a weight decay of its own"),
        ({"accumulate_grad_batches": 0}, "--model.accumulate_grad_batches must be 1 or more, got 0"),
        ({"pull": 2.0}, "pull must be 0 or more and at most 1, got 2"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaModule(MLP(), **options)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_that_of_the_trainer_and_by_norm_of_the_hypothetical_run_too(
    algorithm: str, tmp_path: Path
) -> None:
    """At 1/1000 of the gradients' norm, by SGD."""
    lr, sgd, options = 1e-3, torch.optim.SGD, dict[str, Any](gradient_clip_algorithm=algorithm)
    held = MetaModule(mlp(), lr=lr, optimizer=sgd, gradient_clip_val=0.001, pull=0.0, **HELD)
    plain = SupervisedModule(mlp(), lr=lr, optimizer=sgd)
    fit(held, tmp_path, **options)
    fit(plain, tmp_path, gradient_clip_val=0.001, **options)
    assert same(held.network, plain.network)
    apart = [a - p.detach() for a, p in zip(held.meta.hypothetical.weights, held.network.parameters(), strict=True)]
    # 16 real steps, and hypothetical ones of twice the length, are all as short as the norm
    assert (nn.utils.get_total_norm(apart) < 16 * 3 * lr * 0.001) == (algorithm == "norm")


def test_accumulated_batches_make_the_step_of_the_joined_batch(tmp_path: Path) -> None:
    runs = []
    for size, times in ((500, 1), (250, 2)):
        # in 32 bits the sums of two halves differ by what Adam enlarges
        meta = MetaModule(mlp(), accumulate_grad_batches=times, part=1.0, **HELD)
        fit(meta, tmp_path, batch_size=size, precision="64-true")
        assert meta.meta.steps == meta.meta.length == 16
        # the hypothetical steps, and the looks at 300 samples
        assert meta.passes == pytest.approx(16 + meta.meta.looks * 300 / 500)
        runs.append([*meta.network.parameters(), *meta.meta.hypothetical.weights])
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-9)
    # a last group of fewer batches, and a smaller batch, are a step too: three batches an epoch
    meta = MetaModule(mlp(), accumulate_grad_batches=2)
    assert fit(meta, tmp_path, batch_size=1500, max_epochs=4).global_step == meta.meta.steps == 8


class Counting(Meta):
    """A variant with a number of its own."""

    saved = (*Meta.saved, "visits")
    visits = 0

    def allowed(self, rate: float, loss: float) -> float:
        self.visits += 1
        return super().allowed(rate, loss)


def test_a_number_of_a_variant_is_saved_and_restored_with_the_rule() -> None:
    states = list[dict[str, Any]]()
    for _ in range(2):
        net = torch.nn.Linear(4, 1)
        meta = Counting(net, torch.optim.SGD(net.parameters(), lr=0.1))
        if states:
            meta.load_state_dict(states[0])
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        meta.prepare()
        if not states:
            meta.allowed(0.1, 1.0)
        states.append(meta.state_dict())
    assert [state["visits"] for state in states] == [1, 1]
    with pytest.raises(ValueError, match="the state has no visits"):
        meta.load_state_dict({name: value for name, value in states[0].items() if name != "visits"})
