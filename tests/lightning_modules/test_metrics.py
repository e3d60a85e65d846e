"""Every logged metric equals its float64 reference, for targets far from 0."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error, r2_score
from torch import Tensor, nn

from data import TensorLoader
from data.tensors import Samples, TensorDataModule
from lightning_modules import SupervisedModule
from tests.lightning_modules.fitting import trainer

SAMPLES = 500
CASES = [("class", 0.0), *((kind, offset) for kind in ("value", "two values") for offset in (0.0, 1e3, 1e6))]


class Given(TensorDataModule):
    """Values with a standard deviation of 1 or 2 around an offset, or ten classes; evaluated in batches of a size."""

    def __init__(self, kind: str, offset: float, size: int) -> None:
        super().__init__(10, 10, SAMPLES, SAMPLES)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 4, generator=generator)
        columns = self.x[:, :2] * torch.tensor([1.0, 2.0]) + offset * torch.tensor([1.0, 3.0])
        self.y = {"value": columns[:, 0], "two values": columns, "class": torch.arange(SAMPLES) % 10}[kind]
        self.size = size

    def samples(self) -> tuple[Samples, Samples, Samples]:
        """The same ones, three times."""
        return ((self.x, self.y),) * 3

    def val_dataloader(self) -> TensorLoader:
        """Batches of a user's own size."""
        return TensorLoader(self.x, self.y, batch_size=self.size)

    test_dataloader = val_dataloader


class Guess(nn.Module):
    """Targets with an error of standard deviation .6, or logits; keeps what it returned."""

    def __init__(self, data: Given) -> None:
        super().__init__()
        self.scale, self.seen, self.data, self.place = nn.Parameter(torch.ones(())), list[Tensor](), data, 0

    def forward(self, x: Tensor) -> Tensor:
        generator, y = torch.Generator().manual_seed(self.place), self.data.y[self.place :][: len(x)]
        self.place = (self.place + len(x)) % SAMPLES
        shape = y.shape if y.is_floating_point() else (len(y), 10)
        error = 0.6 * torch.randn(shape, generator=generator)
        found = (y + error if y.is_floating_point() else error + 0.8 * nn.functional.one_hot(y, 10)).to(self.scale)
        self.seen.append((found * self.scale).detach())
        return found * self.scale


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("size", [SAMPLES, 64])
@pytest.mark.parametrize(("kind", "offset"), CASES)
@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
def test_every_metric_is_that_of_a_float64_reference(
    kind: str, offset: float, size: int, precision: Any, tmp_path: Path
) -> None:
    data = Given(kind, offset, size)
    module = SupervisedModule(Guess(data))
    testing = trainer(tmp_path, precision=precision)
    [found] = testing.test(module, data, verbose=False)
    assert isinstance(module.network, Guess)
    outputs, y = torch.cat(module.network.seen).double().numpy(), data.y.numpy()
    if kind == "class":
        assert found["test/accuracy"] == pytest.approx(accuracy_score(y, outputs.argmax(1)), rel=1e-6)
        likely = np.exp(outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True))
        assert found["test/loss"] == pytest.approx(log_loss(y, likely), rel=1e-6)
    else:
        truth = r2_score(y.astype(float), outputs, multioutput="variance_weighted")
        assert found["test/r2"] == pytest.approx(truth, rel=1e-9)
        assert found["test/loss"] == pytest.approx(mean_squared_error(y.astype(float), outputs), rel=1e-6)
    # nothing is left of it in the second evaluation
    assert trainer(tmp_path, precision=precision).validate(module, data, verbose=False)[0] == {
        name.replace("test", "val"): value for name, value in found.items()
    }
