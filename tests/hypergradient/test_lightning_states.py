"""Lightning's checkpoints of an adapted run, saved at usual and unusual times, and the runs resumed from them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from hypergradient.lightning import AdaptLearningRate
from tests.hypergradient.lightning_cases import CASES, WARNINGS, Case, Plain, fit, loss
from tests.hypergradient.problem import SHORT, equal

pytestmark = [*WARNINGS, pytest.mark.usefixtures("wins_its_races")]


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


class FailsInValidation(Callback):
    """Saves in the middle of the validation of the second epoch, which then fails."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1 and not trainer.sanity_checking:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "failed.ckpt")
            raise InterruptedError


@pytest.mark.parametrize("moment", ["stop", "ended", "over", "failed"])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(CASES["LR warm-up"], id="LR warm-up"),
        pytest.param(Case(module=PartlySaved), id="saved in part", marks=pytest.mark.slow),
        pytest.param(CASES["BatchNorm"], id="BatchNorm", marks=pytest.mark.slow),
    ],
)
def test_a_run_resumed_from_a_checkpoint_of_any_moment_is_the_uninterrupted_one_bit_for_bit(
    case: Case, moment: str, tmp_path: Path
) -> None:
    """At an epoch's end; after the fit; after a fit that was over; in a validation, which has the average in place."""
    saver, path = ModelCheckpoint(tmp_path, "stop", every_n_train_steps=12), tmp_path / f"{moment}.ckpt"
    adapted = [AdaptLearningRate(loss, length=18, settings=SHORT) for _ in range(3)]
    whole, _ = fit(case, tmp_path, adapted[0], saver, max_epochs=3)
    if moment in ("ended", "over"):
        start = tmp_path / "stop.ckpt" if moment == "over" else None
        module, trainer = fit(case, tmp_path, adapted[1], max_epochs=2, ckpt_path=start)
        trainer.save_checkpoint(path)
        assert equal(saved(path)["state_dict"], module.state_dict())
    elif moment == "failed":
        with pytest.raises(InterruptedError):
            fit(case, tmp_path, adapted[1], FailsInValidation(), max_epochs=3)
        # the module has its own weights back
        assert equal(adapted[1].adapter.network.state_dict(), saved(path)["current"])
    stopped, now = saved(tmp_path / "stop.ckpt"), saved(path)
    assert not equal(now["state_dict"], now["current"])
    assert all(equal(stopped[name], now[name]) for name in ("state_dict", "current"))
    # the state is in the optimizer's
    assert not any("AdaptLearningRate" in key for key in now["callbacks"])
    rest, _ = fit(case, tmp_path, adapted[2], max_epochs=3, ckpt_path=path)
    assert equal(whole.state_dict(), rest.state_dict())
    report, again = (adapt.adapter.report() for adapt in (adapted[0], adapted[2]))
    assert report == again
    assert report["highest"] > report["lowest"]
