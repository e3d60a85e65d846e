import pytest
import torch

from benchmarks import raw, step
from benchmarks.workloads import WORKLOADS
from experiment.presets import QUIET
from experiment.training import train


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["adam", "meta"])
def test_a_run_is_the_raw_loop_that_it_is_measured_against(arm: str) -> None:
    """A second implementation, without Lightning, of the whole method: same rates, same validation and test loss."""
    rate = ["--model.lr=0.003"] if arm == "adam" else []
    cli = train(["--optimizer", arm, *rate, QUIET, "--trainer.max_epochs=2"])
    record = raw.adam(2, 0.003) if arm == "adam" else raw.meta(2)
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(record.rates[-1], rel=1e-5)
    assert cli.test_metrics["test/loss"] == pytest.approx(record.test_loss, rel=1e-5)


def test_the_timed_step_adapts_and_skips_as_it_says() -> None:
    adapted = step.ours(WORKLOADS["MLP 40-100-10, batch 128"], torch.float64, every=3)
    seen = [adapted() for _ in range(7)]
    assert [h is not None for h in seen] == [True, False, False] * 2 + [True]
