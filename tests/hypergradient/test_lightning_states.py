"""What the callbacks keep, load, copy and give back, in fits that begin, end and go on in unusual ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy

from hypergradient.lightning import AdaptLearningRate, AdaptOneStep
from tests.hypergradient.lightning_cases import Plain, adam, mlp, samples
from tests.hypergradient.test_lightning import loss, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '(train|val|test)_dataloader' does not have many workers"),  # in memory
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You are using a CUDA device"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class WithTest(Plain):
    """It computes with `forward`, which is what compilation replaces, and has a test."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.network(x)

    def loss(self, batch: Any) -> torch.Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))


class PartlySaved(Plain):
    """What is frozen comes from elsewhere, and is in no checkpoint of its own: Lightning's `strict_loading`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.strict_loading = False
        self.network[0].requires_grad_(False)  # type: ignore[index]

    def state_dict(self, *args: Any, **options: Any) -> Any:
        own = super().state_dict(*args, **options)
        return {name: value for name, value in own.items() if not name.startswith("network.0")}


def trainer(folder: Path, *callbacks: Callback, epochs: int = 3) -> Trainer:
    return Trainer(accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), default_root_dir=folder, **QUIET)


def fit(running: Trainer, module: Any, **options: Any) -> None:
    running.fit(module, samples("classes"), samples("classes"), **options)


def saver(folder: Path, name: str = "last", **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename=name, **options)


def test_a_run_that_was_over_when_it_went_on_returns_the_average(tmp_path: Path) -> None:
    whole, again = WithTest(mlp(), adam), WithTest(mlp(), adam)
    fit(trainer(tmp_path, AdaptLearningRate(loss), saver(tmp_path)), whole)
    running = trainer(tmp_path, AdaptLearningRate(loss))
    fit(running, again, ckpt_path=tmp_path / "last.ckpt")
    assert same(whole, again)
    running.save_checkpoint(tmp_path / "again.ckpt")
    first, second = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("last", "again"))
    for name in ("state_dict", "current"):
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items())


@pytest.mark.parametrize("callback", [AdaptLearningRate, AdaptOneStep])
def test_a_checkpoint_that_was_tested_does_not_go_on_in_the_next_fit(callback: Any, tmp_path: Path) -> None:
    adapt = callback(loss)
    fit(trainer(tmp_path, adapt, saver(tmp_path)), WithTest(mlp(), adam))
    running = trainer(tmp_path, adapt, epochs=1)
    running.test(WithTest(mlp(), adam), samples("classes"), ckpt_path=tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="begins anew: this is another fit"):
        fit(running, WithTest(mlp(), adam))
    assert adapt.adapter.steps == 6


@pytest.mark.slow
def test_a_module_compiled_whole_is_adapted_as_one_that_is_not(tmp_path: Path) -> None:
    """Lightning puts compiled methods of the module over its own, which a copy would take for its own."""
    plain, compiled = AdaptLearningRate(loss), AdaptLearningRate(loss)
    fit(trainer(tmp_path, plain, epochs=6), WithTest(mlp(), adam))
    fit(trainer(tmp_path, compiled, epochs=6), torch.compile(WithTest(mlp(), adam), backend="eager"))
    assert compiled.adapter.last == pytest.approx(plain.adapter.last, rel=1e-4)


def test_a_module_that_saves_a_part_of_its_weights_is_averaged_whole(tmp_path: Path) -> None:
    module, again = PartlySaved(mlp(), adam), PartlySaved(mlp(), adam)
    fit(trainer(tmp_path, AdaptLearningRate(loss), saver(tmp_path)), module)
    fit(trainer(tmp_path, AdaptLearningRate(loss), epochs=4), again, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(module.network[0].weight, again.network[0].weight)  # type: ignore[index]
    assert not torch.equal(module.network[2].weight, again.network[2].weight)  # type: ignore[index]


def test_what_is_saved_where_the_adapter_is_refused_is_the_average_still(tmp_path: Path) -> None:
    fit(trainer(tmp_path, AdaptLearningRate(loss), saver(tmp_path)), WithTest(mlp(), adam))
    refused = AdaptLearningRate(loss, part=7)
    with pytest.raises(ValueError, match="part is above 0"):
        fit(
            trainer(tmp_path, refused, saver(tmp_path, "refused", save_on_exception=True), epochs=5),
            WithTest(mlp(), adam),
            ckpt_path=tmp_path / "last.ckpt",
        )
    first, second = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("last", "refused"))
    for name in ("state_dict", "current"):
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items())


def test_clipping_that_is_switched_off_clips_no_hypothetical_step(tmp_path: Path) -> None:
    """`gradient_clip_val=0`, as Lightning has it."""
    found = []
    for clip in (None, 0.0):
        adapt = AdaptLearningRate(loss)
        running = Trainer(
            accelerator="cpu",
            max_epochs=6,
            callbacks=[adapt],
            gradient_clip_val=clip,
            default_root_dir=tmp_path,
            **QUIET,
        )
        fit(running, WithTest(mlp(), adam))
        found.append(adapt.adapter.last)
    assert found[0] == found[1]
