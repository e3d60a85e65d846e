import math

import pytest
import torch
from torch import Tensor

from experiment.grid import read_run
from experiment.run import train
from lightning_modules import SupervisedModule
from tests.store import SHORT, runs


class Hopeless(SupervisedModule):
    """A loss that is never finite."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss(batch) * torch.tensor(math.nan)


def test_a_search_without_a_result_is_a_run_that_diverged_with_an_infinite_loss() -> None:
    """It does not train at a rate that was not found."""
    model = f"--model={__name__}.Hopeless"
    run = train(["--optimizer=lr_find", model, *SHORT])
    assert (run.trainer.global_step, run.diverged) == (0, "lr_find found no learning rate: the loss is not finite.")
    [kept] = runs()
    assert (kept.info.status, "diverged" in kept.data.tags) == ("FAILED", True)
    assert read_run(kept.info.run_id)["test_loss"] == math.inf


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_search_takes_its_steps_in_a_short_run_too(epochs: int) -> None:
    run = train(["--optimizer=lr_find", *SHORT, f"--trainer.max_epochs={epochs}"])
    [finder] = [found for found in run.trainer.callbacks if type(found).__name__ == "FindLearningRate"]  # type: ignore[attr-defined]
    assert len(finder.optimal_lr.results["lr"]) > 50
    assert run.trainer.global_step == 4 * epochs
