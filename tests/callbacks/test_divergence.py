from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks import DivergenceError, StopOnDivergence
from data import TensorLoader
from experiment.training import train


@pytest.mark.parametrize("arm", ["adam", "adam_average"])
def test_the_checkpoint_of_a_run_that_diverged_holds_finite_weights(arm: str, store: Path) -> None:
    options = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=3", "--model.lr=1e30"]
    cli = train(["--optimizer", arm, *options])
    [path] = (store / "mlruns" / "mnist1d" / str(cli.run_id) / "checkpoints").iterdir()
    state = torch.load(path, weights_only=True)["state_dict"]
    assert cli.diverged
    assert all(bool(weights.isfinite().all()) for weights in state.values())


class Spoilt(LightningModule):
    """A finite loss, 0, whose gradient is not: the derivative of a root at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.weight - self.weight).abs().sqrt().sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")  # meant, in one case
@pytest.mark.parametrize("validate", [True, False])
def test_weights_that_the_last_step_of_an_epoch_spoilt_are_not_saved(validate: bool, tmp_path: Path) -> None:
    model, data = Spoilt(), TensorLoader(torch.zeros(1, 1), batch_size=1)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, callbacks=[StopOnDivergence()], **quiet
    )
    with pytest.raises(DivergenceError, match="a weight is not finite"):
        trainer.fit(model, data, data if validate else None)
    assert model.weight == 1
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("begins", [1, 20, 40])
def test_the_message_names_the_step_at_which_it_began(begins: int, tmp_path: Path) -> None:
    class Breaks(Spoilt):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.weight.sum() * (torch.nan if batch_idx + 1 >= begins else 1.0)

    data = TensorLoader(torch.zeros(50, 1), batch_size=1)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, callbacks=[StopOnDivergence()], **quiet
    )
    with pytest.raises(DivergenceError, match=f"diverged at step {begins}: the training loss is nan and was "):
        trainer.fit(Breaks(), data, data)
