import math
from pathlib import Path

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from data import MNIST1DDataModule
from lightning_modules import MLP, SearchModule, SupervisedModule
from tests.lightning_modules.fitting import fit, network, same, trainer


def rate(model: SearchModule) -> float:
    return float(model.trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_search_leaves_no_trace_and_the_run_is_the_plain_one_at_its_rate(precision: str, tmp_path: Path) -> None:
    """Bit for bit, with BatchNorm and dropout, whatever was tried before step 1; looks in every step, of no decay."""
    meta = SearchModule(network(), time_constant=math.inf, every=500)
    fit(meta, tmp_path, precision=precision)
    plain = SupervisedModule(network(), lr=rate(meta))
    fit(plain, tmp_path, precision=precision)
    assert same(meta.network, plain.network)
    assert [set(tried) for tried in meta.tried] == [{"lr", "times", "val_loss"}] * len(meta.tried)


def test_the_decay_is_decoupled_weight_decay(tmp_path: Path) -> None:
    """AdamW multiplies by 1 - lr · weight_decay: η = 1 / (time constant · 8 steps an epoch)."""
    meta = SearchModule(network(), time_constant=2.0, meta_lr=0.0)
    fit(meta, tmp_path)
    decay = 1 / (16 * rate(meta))
    plain = SupervisedModule(
        network(), lr=rate(meta), optimizer=lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=decay)
    )
    fit(plain, tmp_path)
    torch.testing.assert_close(meta.network.state_dict(), plain.network.state_dict(), rtol=0, atol=1e-5)


def test_a_run_without_an_end_without_a_datamodule_or_with_two_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="A stretch is part of a run that ends"):
        fit(SearchModule(MLP()), tmp_path, max_epochs=-1)
    data = MNIST1DDataModule()
    data.setup("fit")
    with pytest.raises(MisconfigurationException, match="it needs a datamodule"):
        trainer(tmp_path).fit(SearchModule(MLP()), data.train_dataloader(), data.val_dataloader())
    with pytest.raises(MisconfigurationException, match="devices must be 1"):
        SearchModule(MLP()).require_one_process(2)


def test_it_looks_each_4096_samples_where_an_epoch_ends_with_a_smaller_batch(tmp_path: Path) -> None:
    """4,000 samples in batches of 128: the 32nd of an epoch, which is its last, has 32."""
    model = SearchModule(MLP())
    fit(model, tmp_path, batch_size=128, max_epochs=4)
    assert model.k == 3
    assert model.waiting is not None
