"""The number of synchronizations with the device in a step."""

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks import TailAverage, Trajectory
from lightning_modules import MLP, HypergradientDescentModule, MetaModule, OneStepModule, SupervisedModule
from tests.lightning_modules.fitting import fit


class Waits(TorchDispatchMode, Callback):
    """Count, step by step, what would wait on an accelerator: reads, and copies to the CPU.

    What this project keeps on the CPU is in float64, and torch's optimizers count their steps there: not counted.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        TorchDispatchMode.__init__(self)
        self.steps: list[int] = []
        self.count = 0
        for name in ("tolist", "cpu"):
            monkeypatch.setattr(Tensor, name, self.counted(getattr(Tensor, name)))

    def counted(self, method: Any) -> Any:
        def call(tensor: Tensor, *args: Any) -> Any:
            self.count += tensor.dtype != torch.float64
            return method(tensor, *args)

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::_local_scalar_dense" and args[0].dtype != torch.float64:
            nearest = traceback.extract_stack(limit=4)
            self.count += not any("/torch/optim/" in frame.filename for frame in nearest)
        return func(*args, **(kwargs or {}))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.count = 0
        self.__enter__()  # type: ignore[no-untyped-call]

    def on_train_batch_end(self, *args: Any) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.steps.append(self.count)


@pytest.mark.parametrize(
    ("make", "plain", "adapted"),
    [
        (SupervisedModule, 0, 0),
        # the loss, for the guard, and how long either step is; and what a look or a comparison saw
        (partial(MetaModule, race=1), 3, 4),
        # every step is an adapted one: the rate before, h, and the ratio
        (OneStepModule, 3, 3),
        (HypergradientDescentModule, 1, 1),
    ],
)
def test_a_step_waits_for_the_device_as_often_as_it_must(
    make: Callable[..., LightningModule], plain: int, adapted: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hypergradient.race.LIKELY", 1e9)
    waits = Waits(monkeypatch)
    fit(make(MLP()), tmp_path, batch_size=125, callbacks=[waits, TailAverage(), Trajectory()])
    # the start of `meta` reads the scale of the weights
    assert set(waits.steps[5:]) == {plain, adapted}


def test_in_a_race_no_step_is_measured_but_the_hypothetical_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hypergradient.race.LIKELY", 1e9)
    waits = Waits(monkeypatch)
    fit(MetaModule(MLP(), race=12), tmp_path, batch_size=125, max_epochs=1, callbacks=[waits, TailAverage()])
    # eight comparisons, of which the last ends it
    assert waits.steps[1:13] == [2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 4]
