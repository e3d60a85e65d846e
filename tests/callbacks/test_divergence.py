from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks import DivergenceError, LastCheckpoint, StopOnDivergence, TailAverage
from data import TensorLoader

STEPS = 10


class Model(LightningModule):
    """A weight that grows by 0.1 a step, and one fault, in the second epoch."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.fault = fault

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = -self.weight.sum()
        # the derivative of a root at 0 is infinite
        spoilt = {"loss": loss * torch.nan, "thousandfold": loss * -1e5, "gradient": loss + (0 * self.weight).sqrt()}
        return spoilt.get(self.fault, loss).sum() if self.trainer.global_step >= 2 * STEPS - 1 else loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        spoilt = self.fault == "validation" and self.trainer.global_step > STEPS
        self.log("val/loss", torch.tensor(torch.nan if spoilt else 1.0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


REASONS = {
    "loss": "the mean training loss is nan, the first was -1",
    "thousandfold": "the mean training loss is .*e.04, the first was -1",
    "gradient": "a weight is not finite",
    "validation": "val/loss is nan",
}


@pytest.mark.parametrize("fault", REASONS)
def test_a_run_that_diverges_ends_with_a_message_and_its_last_finite_weights(fault: str, tmp_path: Path) -> None:
    model, data = Model(fault), TensorLoader(torch.zeros(STEPS, 1), batch_size=1)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    callbacks = [TailAverage(), StopOnDivergence(), LastCheckpoint()]
    trainer = Trainer(accelerator="cpu", max_epochs=9, default_root_dir=tmp_path, callbacks=callbacks, **quiet)
    with pytest.raises(DivergenceError, match=rf"Training diverged by step 20: {REASONS[fault]}. Lower --model.lr"):
        trainer.fit(model, data, data)
    # validation alone is at fault at the end of the second epoch, where the weights are still finite
    expected = 3.0 if fault == "validation" else 2.0
    assert model.weight.item() == pytest.approx(expected)
    [path] = tmp_path.rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["state_dict"]["weight"].item() == pytest.approx(expected)
