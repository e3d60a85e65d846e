import copy
import json
import math
from pathlib import Path

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from matplotlib.image import imread

from callbacks import TailAverage
from data import MNIST1DDataModule
from experiment.training import train
from lightning_modules import MLP, SearchDecayModule, SupervisedModule
from lightning_modules.supervised import Batch, Pair
from tests.lightning_modules.test_one_step import fit, network, same, trainer
from tests.store import history, runs
from tracking.store import client

SHORT = ["--trainer.max_epochs=4", "--trainer.enable_progress_bar=false", "--data.batch_size=200"]


def rate(model: SearchDecayModule) -> float:
    return float(model.trainer.optimizers[0].param_groups[0]["lr"])


def plain(lr: float, bracket: bool = False, stretch: float = 0.0, time_constant: float = math.inf) -> SearchDecayModule:
    return SearchDecayModule(
        network(), lr=lr, bracket=bracket, stretch=stretch, time_constant=time_constant, meta_lr=0.0
    )


@pytest.mark.parametrize("options", [{}, {"stretch": 0.2}, {"bracket": True, "stretch": 0.2}])
def test_the_search_leaves_no_trace_and_the_run_is_the_plain_one_at_its_rate(
    options: dict[str, float], tmp_path: Path
) -> None:
    """Bit for bit, with BatchNorm and dropout, whatever was tried before step 1."""
    meta = plain(0.01, **options)  # type: ignore[arg-type]
    fit(meta, tmp_path / "meta")
    ordinary = SupervisedModule(network(), lr=rate(meta))
    fit(ordinary, tmp_path / "plain")
    assert same(meta.network, ordinary.network)  # type: ignore[arg-type]


def test_the_decay_is_decoupled_weight_decay(tmp_path: Path) -> None:
    """AdamW multiplies by 1 - lr · weight_decay: η = 1 / (time constant · 8 steps an epoch)."""
    meta = plain(0.01, time_constant=2.0)
    fit(meta, tmp_path / "meta")
    ordinary = SupervisedModule(
        network(), lr=0.01, optimizer=lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=100 / 16)
    )
    fit(ordinary, tmp_path / "plain")
    torch.testing.assert_close(meta.network.state_dict(), ordinary.network.state_dict(), rtol=0, atol=1e-5)


def test_the_starting_rate_is_never_read(tmp_path: Path) -> None:
    found = []
    for lr in (1e-6, 1.0):
        torch.manual_seed(0)
        meta = SearchDecayModule(MLP(), lr=lr)
        fit(meta, tmp_path / str(lr))
        found.append(rate(meta))
    assert found[0] == found[1]


@pytest.mark.slow
def test_stretches_alone_find_the_rate_from_far_off() -> None:
    found = {}
    for lr in (1e-4, 0.03, 3.0):
        options = ["--model.bracket=false", f"--model.lr={lr}", "--model.stretch=0.2"]
        cli = train(["--optimizer", "meta_search", *options, *SHORT])
        found[lr] = history(str(cli.run_id), "lr")[-1][1]
    assert max(found.values()) < 3 * min(found.values()), found
    assert 0.005 < found[0.03] < 0.2


def test_a_stretch_has_the_batches_that_the_run_begins_with_beyond_the_first_epoch_too(tmp_path: Path) -> None:
    class Watched(SearchDecayModule):
        def training_step(self, batch: Pair, batch_idx: int) -> dict[str, torch.Tensor | float]:
            seen.append(batch["train"][0])
            return super().training_step(batch, batch_idx)

        def _first_batches(self, times: int = 1) -> list[Pair]:
            batches = super()._first_batches(times)
            read.append(batches)
            return batches

    seen: list[torch.Tensor] = []
    read: list[list[Pair]] = []
    fit(Watched(MLP(), stretch=0.5), tmp_path, max_epochs=4)  # 8 steps an epoch
    assert {len(first) for first in read} <= {16, 32, 64}  # once, twice, four times as long
    assert len(read[0]) == 16
    for first in read:
        assert all(torch.equal(batch["train"][0], x) for batch, x in zip(first, seen, strict=False))


@pytest.mark.slow
def test_what_the_search_tried_and_cost_is_in_mlflow(tmp_path: Path) -> None:
    cli = train(["--optimizer", "meta_search", "--model.stretch=0.1", *SHORT])  # 80 steps: stretches of 8
    passes = cli.model.passes - 80 * cli.datamodule.val_batch_size / 200  # those after the search
    found = float(runs()[0].data.params["search/rate"])
    stretches = (passes - 20 * 128 / 200) / (8 + 8 * 128 / 200 / 3)  # about 20 looks of the bracket, of 128 samples
    assert 2 < stretches < 12  # three rates; where one diverged, two of four times the length too
    assert found == history(str(cli.run_id), "lr")[0][1]
    tried = json.loads(Path(client().download_artifacts(str(cli.run_id), "search.json", str(tmp_path))).read_text())
    assert tried["columns"] == ["lr", "times", "val_loss"]
    assert len(tried["data"]) == len(cli.model.tried) >= 3
    assert imread(client().download_artifacts(str(cli.run_id), "search.png", str(tmp_path))).std() > 0.01


def test_a_resumed_run_does_not_search_again_and_is_the_uninterrupted_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = SearchDecayModule(MLP(), stretch=0.0, every=1000)
    whole, part, resumed = (copy.deepcopy(start) for _ in range(3))
    fit(whole, tmp_path / "whole", max_epochs=3)
    first = fit(part, tmp_path / "part", max_epochs=2)
    fit(resumed, tmp_path / "rest", str(first.checkpoint_callback.best_model_path), max_epochs=3)  # type: ignore[union-attr]
    assert rate(resumed) == rate(part) == rate(whole)
    assert resumed.log_scale == whole.log_scale != 0
    assert same(whole, resumed)


def test_the_search_has_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found, loss = [], SearchDecayModule.loss

    def noted(module: SearchDecayModule, batch: Batch) -> torch.Tensor:
        found.append(torch.is_autocast_enabled("cpu"))
        return loss(module, batch)

    monkeypatch.setattr(SearchDecayModule, "loss", noted)
    run = train(["--optimizer=meta_search", "--trainer.precision=bf16-mixed", *SHORT])
    assert run.model.tried
    assert all(found[1:])  # the first is of the rehearsal


def test_a_run_without_an_end_or_without_a_datamodule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="A stretch is part of a run that ends"):
        fit(SearchDecayModule(MLP()), tmp_path, max_epochs=-1)
    data = MNIST1DDataModule()
    data.setup("fit")
    with pytest.raises(MisconfigurationException, match="it needs a datamodule"):
        trainer(tmp_path).fit(SearchDecayModule(MLP()), data.train_dataloader(), data.val_dataloader())


@pytest.mark.slow
def test_lightnings_clipping_and_accumulation_are_there() -> None:
    cli = train(["--optimizer", "meta_search", *SHORT, "--trainer.gradient_clip_val=0.5"])
    assert cli.test_metrics["test/loss"] < 2.3
    accumulated = train(["--optimizer", "meta_search", *SHORT, "--trainer.accumulate_grad_batches=2"])
    assert accumulated.trainer.global_step == 40


@pytest.mark.slow
@pytest.mark.parametrize(("time_constant", "direction"), [(0.5, -1), (1000.0, 1)])
def test_the_adapted_decay_moves_towards_its_place(time_constant: float, direction: int) -> None:
    options = [
        f"--model.time_constant={time_constant}",
        "--model.stretch=0",
        "--model.every=200",
        "--trainer.max_epochs=20",
    ]
    cli = train(["--optimizer", "meta_search", *options, *SHORT[1:]])
    values = [value for _, value in history(str(cli.run_id), "decay")]
    assert direction * (values[-1] - values[0]) > 0
    bracket = train(["--optimizer", "meta_search", *options, *SHORT[1:], "--model.meta_lr=0"]).model.passes
    assert cli.model.passes - bracket == pytest.approx(
        20 * 20 * 128 / 200, rel=0.01
    )  # a look a step, of 128 for 200 samples


def test_the_decays_hypergradient_is_the_finite_difference(tmp_path: Path) -> None:
    """Of the validation loss at the average A, as a step takes η θ more or less from the weights."""
    meta = SearchDecayModule(MLP(), stretch=0.0, time_constant=2.0)
    fitting = fit(meta, tmp_path, callbacks=[TailAverage(window=1.0)])
    [average] = [callback.average for callback in fitting.callbacks if isinstance(callback, TailAverage)]  # type: ignore[attr-defined]
    torch.manual_seed(1)
    assert isinstance(average, SearchDecayModule)
    average.load_state_dict(SearchDecayModule(MLP()).state_dict())  # A is another point than θ
    meta.double(), average.double()
    x, y = fitting.datamodule.val  # type: ignore[attr-defined]
    batch = (x.double(), y)
    point = [p.detach().clone() for p in average.network.parameters()]

    def loss(log_eta: float) -> float:
        eta = meta.decay() * math.exp(log_eta)
        with torch.no_grad():
            for a, p, theta in zip(average.network.parameters(), point, meta.network.parameters(), strict=True):
                a.copy_(p - eta * theta)
            return float(average.loss(batch))

    finite = (loss(1e-6) - loss(-1e-6)) / 2e-6  # so little that no ReLU turns
    loss(0.0)  # A, one step on
    assert meta._hypergradient(batch).item() == pytest.approx(finite, rel=1e-5)


def test_it_looks_each_4096_samples_where_an_epoch_ends_with_a_smaller_batch(tmp_path: Path) -> None:
    """4,000 samples in batches of 128: the 32nd of an epoch, which is its last, has 32."""
    model = SearchDecayModule(MLP(), stretch=0.0)
    trainer(tmp_path, max_epochs=4).fit(model, datamodule=MNIST1DDataModule())
    assert model.k == 4
