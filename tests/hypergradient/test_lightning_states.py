"""Lightning's checkpoints of an adapted run, saved at usual and at unusual moments, and what continues from them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from hypergradient.lightning import AdaptLearningRate
from tests.hypergradient.lightning_cases import CASES, WARNINGS, Case, Plain, fit, loss, same, samples

pytestmark = WARNINGS


def saved(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


class PartlySaved(Plain):
    """Has frozen weights that come from elsewhere, and are in no checkpoint: Lightning's `strict_loading`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.strict_loading = False
        self.network[0].requires_grad_(False)  # type: ignore[index]

    def state_dict(self, *args: Any, **options: Any) -> Any:
        own = super().state_dict(*args, **options)
        return {name: value for name, value in own.items() if not name.startswith("network.0")}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(CASES["LR warm-up"], id="LR warm-up"),
        pytest.param(Case(module=PartlySaved), id="saved in part"),
        pytest.param(CASES["BatchNorm"], id="BatchNorm", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(case: Case, tmp_path: Path) -> None:
    saver, path = ModelCheckpoint(tmp_path, "stop", every_n_train_steps=12), tmp_path / "stop.ckpt"
    adapted = [AdaptLearningRate(loss, length=18) for _ in range(2)]
    whole, _ = fit(case, tmp_path, adapted[0], saver, max_epochs=3)
    rest, _ = fit(case, tmp_path, adapted[1], max_epochs=3, ckpt_path=path)
    assert same(whole.state_dict(), rest.state_dict())
    report, again = (adapt.adapter.report() for adapt in adapted)
    assert report == again
    assert report["highest"] > report["lowest"]
    # the state is in the optimizer's
    assert not any("AdaptLearningRate" in key for key in saved(path)["callbacks"])
    assert saved(path)["optimizer_states"][0]["rate_adapter"]["meta"]["steps"] >= 11


class FailsInValidation(Callback):
    """Saves in the middle of the last validation, which then fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2 and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


@pytest.mark.parametrize("moment", ["after the fit", "after a fit that was over", "in a validation that fails"])
def test_a_checkpoint_holds_the_average_and_the_weights_of_the_run_whenever_it_is_saved(
    moment: str, tmp_path: Path
) -> None:
    last, other, adapt = tmp_path / "last.ckpt", tmp_path / "other.ckpt", AdaptLearningRate(loss)
    module, trainer = fit(Case(), tmp_path, AdaptLearningRate(loss), ModelCheckpoint(tmp_path, "last"), max_epochs=3)
    if moment == "in a validation that fails":
        with pytest.raises(InterruptedError):
            fit(Case(), tmp_path, adapt, FailsInValidation(other), max_epochs=3)
        # the module has its own weights back
        assert same(adapt.adapter.network.state_dict(), saved(last)["current"])
    else:
        if moment == "after a fit that was over":
            module, trainer = fit(Case(), tmp_path, adapt, max_epochs=3, ckpt_path=last)
        trainer.save_checkpoint(other)
    first, second = saved(last), saved(other)
    assert same(first["state_dict"], module.state_dict())
    assert not same(first["state_dict"], first["current"])
    assert all(same(first[name], second[name]) for name in ("state_dict", "current"))
    whole, rest = (
        fit(Case(), tmp_path, AdaptLearningRate(loss), max_epochs=4, ckpt_path=path)[0] for path in (last, other)
    )
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
