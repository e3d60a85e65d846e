from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from callbacks import TailAverage
from data import MNIST1DDataModule
from lightning_modules import MLP, MetaModule, SupervisedModule
from tests.lightning_modules.fitting import fit, network, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


def plain(precision: Any = "32-true") -> tuple[LightningModule, dict[str, Any]]:
    torch.manual_seed(0)
    return SupervisedModule(MLP(), lr=0.01), {"precision": precision}


CASES: dict[str, Callable[[], tuple[LightningModule, dict[str, Any]]]] = {
    "32-bits": plain,
    "16-bits": lambda: plain("bf16-true"),
    "BatchNorm": lambda: (SupervisedModule(network(), lr=0.01), {}),
    "its-own-average": lambda: (MetaModule(network()), {}),
    "its-own-average-in-16-bits": lambda: (MetaModule(network()), {"precision": "bf16-true"}),
}
FAST = ("BatchNorm", "its-own-average-in-16-bits")
every_case = pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=[] if name in FAST else [pytest.mark.slow]) for name, make in CASES.items()],
)


def run(
    make: Callable[[], tuple[LightningModule, dict[str, Any]]],
    folder: Path,
    *callbacks: Callback,
    window: float = 0.5,
    **options: Any,
) -> tuple[LightningModule, Trainer]:
    """Fit for three epochs of eight steps."""
    module, own = make()
    return module, fit(module, folder, max_epochs=3, callbacks=[TailAverage(window), *callbacks], **own | options)


class StopsEarly(Callback):
    """Ends the run after two epochs, as a callback of the user may."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or trainer.current_epoch == 1


@pytest.mark.parametrize("window", [0.1, *(pytest.param(window, marks=pytest.mark.slow) for window in (0.5, 1.0))])
def test_the_average_is_that_of_the_formula(window: float, tmp_path: Path) -> None:
    """A ← A + (θ - A) / max(1, window t); a window of 1 is the mean of all."""
    course: list[float] = []

    class Notes(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
            course.append(next(pl_module.parameters())[0, 0].item())

    module, _ = run(plain, tmp_path, Notes(), window=window)
    average = 0.0
    for t, theta in enumerate(course, 1):
        average += (theta - average) / max(1.0, window * t)
    assert len(course) == 24
    assert next(module.parameters())[0, 0].item() == pytest.approx(average, abs=1e-6)
    if window == 1.0:
        assert average == pytest.approx(sum(course) / 24)


@every_case
def test_the_average_is_validated_and_a_checkpoint_tests_as_its_run_did(make: Any, tmp_path: Path) -> None:
    module, fitting = run(make, tmp_path, ModelCheckpoint(tmp_path, "last"))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, saved["state_dict"][name]) for name, value in module.state_dict().items())
    assert any(not torch.equal(value, saved["current"][name]) for name, value in module.state_dict().items())
    data = MNIST1DDataModule()
    [tested] = fitting.test(module, data, verbose=False)
    [again] = fitting.test(make()[0], data, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    assert tested == again
    # a run that was killed in its test
    over, continued = run(make, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert continued.test(over, data, verbose=False) == [tested]


@pytest.mark.parametrize("ended", [False, True], ids=["at-an-epochs-end", "after-the-fit"])
@every_case
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(make: Any, ended: bool, tmp_path: Path) -> None:
    whole, _ = run(make, tmp_path, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1))
    path = tmp_path / "step=8.ckpt"
    if ended:
        path = tmp_path / "after.ckpt"
        run(make, tmp_path, StopsEarly())[1].save_checkpoint(path)
    rest, _ = run(make, tmp_path, ckpt_path=path)
    assert same(whole, rest)


@pytest.mark.parametrize("stops", [False, True])
def test_batchnorm_statistics_are_those_of_the_average_also_where_training_stops_early(
    stops: bool, tmp_path: Path
) -> None:
    for make in (CASES["BatchNorm"], CASES["its-own-average"]):
        module, fitting = run(make, tmp_path, *([StopsEarly()] if stops else []))
        assert fitting.global_step == (16 if stops else 24)
        linear, norm, *_ = module.network.children()  # type: ignore[union-attr]
        with torch.no_grad():
            seen = linear(fitting.datamodule.train[0])  # type: ignore[attr-defined]
        torch.testing.assert_close(norm.running_mean, seen.mean(0), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    for window in (0.0, 1.5):
        with pytest.raises(ValueError, match="window is a fraction of the run"):
            TailAverage(window)
    with pytest.raises(ValueError, match=r"ModelCheckpoint\(save_weights_only=True\) would save others"):
        run(plain, tmp_path, ModelCheckpoint(tmp_path, save_weights_only=True))
