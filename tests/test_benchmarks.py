import pytest
import torch

from benchmarks import raw, step
from benchmarks.run import ARMS, LR
from benchmarks.workloads import WORKLOADS
from experiment.presets import QUIET
from experiment.training import train
from tests.store import history, schedule


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["adam", "meta"])
def test_a_run_is_the_raw_loop_that_it_is_measured_against(arm: str) -> None:
    """A second implementation, without Lightning, of the whole method: the same numbers to the last digit."""
    rate = [f"--model.lr={LR}"] if arm == "adam" else []
    cli = train(["--optimizer", arm, *rate, QUIET])
    record = raw.run(ARMS[arm], 50)
    assert [lr for _, lr in schedule(str(cli.run_id))] == record.rates
    assert [loss for _, loss in history(str(cli.run_id), "val/loss")] == [loss for loss, _ in record.validation]
    assert cli.test_metrics["test/loss"] == record.test_loss


def test_the_timed_step_adapts_and_skips_as_it_says() -> None:
    adapted = step.ours(WORKLOADS["MLP 40-100-10, batch 128"], torch.float64, every=3)
    seen = [adapted() for _ in range(7)]
    assert [h is not None for h in seen] == [True, False, False] * 2 + [True]
