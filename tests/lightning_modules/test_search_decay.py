import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from callbacks import TailAverage
from data import MNIST1DDataModule
from lightning_modules import MLP, SearchDecayModule, SupervisedModule
from lightning_modules.supervised import Batch
from tests.lightning_modules.fitting import fit, network, same, trainer


def rate(model: SearchDecayModule) -> float:
    return float(model.trainer.optimizers[0].param_groups[0]["lr"])


def mlp() -> MLP:
    torch.manual_seed(0)
    return MLP()


@pytest.mark.parametrize(
    "options", [{"bracket": False}, {"stretch": 0.2, "bracket": False}, {"stretch": 0.0}, {"precision": "bf16-mixed"}]
)
def test_the_search_leaves_no_trace_and_the_run_is_the_plain_one_at_its_rate(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with BatchNorm and dropout, whatever was tried before step 1; looks in every step, of no decay."""
    casts, loss = [], SearchDecayModule.loss

    def noted(module: SearchDecayModule, batch: Batch) -> torch.Tensor:
        casts.append(torch.is_autocast_enabled("cpu"))
        return loss(module, batch)

    monkeypatch.setattr(SearchDecayModule, "loss", noted)
    own = dict(options)
    precision = {"precision": own.pop("precision", "32-true")}
    meta = SearchDecayModule(network(), lr=0.01, time_constant=math.inf, every=500, **own)
    fit(meta, tmp_path, **precision)
    plain = SupervisedModule(network(), lr=rate(meta))
    fit(plain, tmp_path, **precision)
    assert same(meta.network, plain.network)
    assert meta.k == 16
    assert set(casts) == {precision["precision"] == "bf16-mixed"}


def test_the_decay_is_decoupled_weight_decay(tmp_path: Path) -> None:
    """AdamW multiplies by 1 - lr · weight_decay: η = 1 / (time constant · 8 steps an epoch)."""
    meta = SearchDecayModule(network(), lr=0.01, bracket=False, stretch=0.0, time_constant=2.0, meta_lr=0.0)
    fit(meta, tmp_path)
    plain = SupervisedModule(
        network(), lr=0.01, optimizer=lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=100 / 16)
    )
    fit(plain, tmp_path)
    torch.testing.assert_close(meta.network.state_dict(), plain.network.state_dict(), rtol=0, atol=1e-5)


def test_stretches_find_a_rate_near_the_brackets_whatever_they_start_from(tmp_path: Path) -> None:
    found = []
    for options in ({"lr": 1e-6}, {"lr": 1.0}, {"bracket": False, "lr": 1e-4}, {"bracket": False, "lr": 3.0}):
        meta = SearchDecayModule(mlp(), stretch=0.2, **options)  # type: ignore[arg-type]
        fit(meta, tmp_path, batch_size=200, max_epochs=4)
        assert [set(tried) for tried in meta.tried] == [{"lr", "times", "val_loss"}] * len(meta.tried)
        found.append(rate(meta))
    # with the bracket, `lr` is never read
    assert found[0] == found[1]
    assert max(found) < 3 * min(found)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run saves nothing
def test_a_resumed_run_does_not_search_again_and_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = SearchDecayModule(mlp(), stretch=0.0, every=1000)
    part, resumed = copy.deepcopy(whole), copy.deepcopy(whole)
    fit(whole, tmp_path, max_epochs=3, callbacks=[TailAverage()])
    fit(part, tmp_path, max_epochs=2, callbacks=[TailAverage()]).save_checkpoint(tmp_path / "part.ckpt")
    fit(resumed, tmp_path, tmp_path / "part.ckpt", max_epochs=3, callbacks=[TailAverage()])
    assert rate(resumed) == rate(part) == rate(whole)
    assert resumed.tried == []
    assert resumed.log_scale == whole.log_scale != 0
    assert same(whole, resumed)


def test_a_run_without_an_end_or_without_a_datamodule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="A stretch is part of a run that ends"):
        fit(SearchDecayModule(MLP()), tmp_path, max_epochs=-1)
    data = MNIST1DDataModule()
    data.setup("fit")
    with pytest.raises(MisconfigurationException, match="it needs a datamodule"):
        trainer(tmp_path).fit(SearchDecayModule(MLP()), data.train_dataloader(), data.val_dataloader())


def test_it_looks_each_4096_samples_where_an_epoch_ends_with_a_smaller_batch(tmp_path: Path) -> None:
    """4,000 samples in batches of 128: the 32nd of an epoch, which is its last, has 32."""
    model = SearchDecayModule(MLP(), stretch=0.0)
    fit(model, tmp_path, batch_size=128, max_epochs=4)
    assert model.k == 4
