"""Lightning's checkpoints of an adapted run, saved at usual and at unusual moments, and what continues from them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from hypergradient import Settings
from hypergradient.lightning import AdaptLearningRate
from tests.hypergradient.lightning_cases import CASES, WARNINGS, Case, Plain, SavesBefore, fit, loss, same, samples

pytestmark = WARNINGS


def saved(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


class Rates(Callback):
    """Keeps the rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0].get("used_lr", 0.0))


@pytest.mark.parametrize(
    "name",
    ["Adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("LR warm-up", "BatchNorm", "tied parameters"))],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    case, path, stop = CASES[name], tmp_path / "stop.ckpt", 12
    saver, first, second = ModelCheckpoint(tmp_path, "stop", every_n_train_steps=stop), Rates(), Rates()
    whole, _ = fit(case, tmp_path, AdaptLearningRate(loss, length=36), first)
    fit(case, tmp_path, AdaptLearningRate(loss, length=36), saver, max_steps=stop)
    rest, _ = fit(case, tmp_path, AdaptLearningRate(loss, length=36), second, ckpt_path=path)
    assert first.seen[stop:] == second.seen
    assert len(set(first.seen)) > 3
    assert same(whole.state_dict(), rest.state_dict())
    # the state is in the optimizer's
    assert not any("AdaptLearningRate" in key for key in saved(path)["callbacks"])
    assert saved(path)["optimizer_states"][0]["rate_adapter"]["meta"]["steps"] >= stop - 1


class SavesInValidation(Callback):
    """Saves in the middle of the last validation, which may fail there."""

    def __init__(self, path: Path, fails: bool = False) -> None:
        self.path, self.fails = path, fails

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2 and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            if self.fails:
                raise InterruptedError


@pytest.mark.parametrize(
    "moment", ["after the fit", "after a fit that was over", "before training", "in validation", "in a failed one"]
)
def test_a_checkpoint_holds_the_average_and_the_weights_of_the_run_whenever_it_is_saved(
    moment: str, tmp_path: Path
) -> None:
    last, other, adapt = tmp_path / "last.ckpt", tmp_path / "other.ckpt", AdaptLearningRate(loss)
    module, trainer = fit(Case(), tmp_path, AdaptLearningRate(loss), ModelCheckpoint(tmp_path, "last"), max_epochs=3)
    if moment == "after a fit that was over":
        module, trainer = fit(Case(), tmp_path, adapt, max_epochs=3, ckpt_path=last)
    elif moment == "before training":
        fit(Case(), tmp_path, adapt, SavesBefore(other), max_epochs=4, ckpt_path=last)
    elif moment == "in validation":
        fit(Case(), tmp_path, adapt, SavesInValidation(other), max_epochs=3)
    elif moment == "in a failed one":
        with pytest.raises(InterruptedError):
            fit(Case(), tmp_path, adapt, SavesInValidation(other, fails=True), max_epochs=3)
        # the module has its own weights back
        assert same(adapt.adapter.network.state_dict(), saved(last)["current"])
    if "after" in moment:
        trainer.save_checkpoint(other)
    first, second = saved(last), saved(other)
    assert same(first["state_dict"], module.state_dict())
    assert not same(first["state_dict"], first["current"])
    assert all(same(first[name], second[name]) for name in ("state_dict", "current"))
    whole, rest = (fit(Case(), tmp_path, AdaptLearningRate(loss), ckpt_path=path)[0] for path in (last, other))
    assert same(whole.state_dict(), rest.state_dict())


def test_the_average_is_validated_and_a_checkpoint_tests_as_its_run_did(tmp_path: Path) -> None:
    case, adapt = CASES["BatchNorm"], AdaptLearningRate(loss)
    module, trainer = fit(case, tmp_path, adapt, ModelCheckpoint(tmp_path, "last"))
    validated = float(trainer.callback_metrics["val/loss"])
    module.eval()
    with torch.no_grad():
        assert validated == pytest.approx(sum(float(module.loss(batch)) for batch in samples("classes")) / 6)
    [tested] = trainer.test(module, samples("classes"), verbose=False)
    [again] = trainer.test(case.build(), samples("classes"), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert tested == again
    with pytest.warns(UserWarning, match="AdaptLearningRate starts again: this is another fit, without a checkpoint"):
        trainer.fit(case.build(), samples("classes"), samples("classes"))
    # the Trainer's epochs are over
    assert adapt.adapter.finite.steps == 0


class PartlySaved(Plain):
    """Has frozen weights that come from elsewhere, and are in no checkpoint: Lightning's `strict_loading`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.strict_loading = False
        self.network[0].requires_grad_(False)  # type: ignore[index]

    def state_dict(self, *args: Any, **options: Any) -> Any:
        own = super().state_dict(*args, **options)
        return {name: value for name, value in own.items() if not name.startswith("network.0")}


def test_a_module_that_saves_a_part_of_its_weights_resumes_bit_for_bit(tmp_path: Path) -> None:
    case, saver = Case(module=PartlySaved), ModelCheckpoint(tmp_path, "stop", every_n_train_steps=12)
    whole, _ = fit(case, tmp_path, AdaptLearningRate(loss), saver, max_epochs=3)
    rest, _ = fit(case, tmp_path, AdaptLearningRate(loss), max_epochs=3, ckpt_path=tmp_path / "stop.ckpt")
    assert same(whole.state_dict(), rest.state_dict())


def test_what_is_made_of_the_average_after_the_fit_is_what_is_saved(tmp_path: Path) -> None:
    module, trainer = fit(Case(), tmp_path, AdaptLearningRate(loss), max_epochs=2)
    with torch.no_grad():
        module.network[0].bias.fill_(7.0)  # type: ignore[index]
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert same(saved(tmp_path / "after.ckpt")["state_dict"], module.state_dict())


def test_without_a_window_the_weights_themselves_may_be_saved_alone(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "last", save_weights_only=True)
    module, _ = fit(Case(), tmp_path, AdaptLearningRate(loss, settings=Settings(window=0.0)), saver)
    assert same(saved(tmp_path / "last.ckpt")["state_dict"], module.state_dict())
