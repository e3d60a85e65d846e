import pytest
import torch
from experiment.presets import QUIET
from experiment.training import train

from benchmarks import accelerator, raw, step
from benchmarks.run import ARMS, LR
from benchmarks.workloads import WORKLOADS
from lightning_modules import ByteTransformer
from tests.store import history, schedule


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["adam", "meta", "meta_onestep"])
def test_a_run_is_the_raw_loop_that_it_is_measured_against(arm: str) -> None:
    """A second implementation, without Lightning, of the whole method: the same numbers to the last digit."""
    rate = [f"--model.lr={LR}"] if arm == "adam" else []
    cli = train(["--optimizer", arm, *rate, QUIET])
    record = raw.run((ARMS | {"meta_onestep": raw.OneStep})[arm], 50)
    assert [lr for _, lr in schedule(str(cli.run_id))] == record.rates
    assert [loss for _, loss in history(str(cli.run_id), "val/loss")] == [loss for loss, _ in record.validation]
    assert cli.test_metrics["test/loss"] == record.test_loss


def test_the_timed_step_adapts_and_skips_as_it_says() -> None:
    adapted = step.ours(WORKLOADS["MLP 40-100-10, batch 128"], torch.float64, every=3)
    seen = [adapted() for _ in range(7)]
    assert [h is not None for h in seen] == [True, False, False] * 2 + [True]


@pytest.mark.slow
def test_the_benchmark_for_accelerators_runs_in_its_small_form_on_the_processor() -> None:
    table = accelerator.main(["--device", "cpu", "--size", "small"])
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:7]] == list(accelerator.STEPS)
    assert table.count("±") == 2 * len(accelerator.STEPS)  # fp32, bf16
    tokens, width, layers, heads, _ = accelerator.SIZES["large"]
    with torch.device("meta"):
        assert sum(p.numel() for p in ByteTransformer(tokens, width, layers, heads).parameters()) > 1e8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_an_accelerator_its_benchmark_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        accelerator.main([])
    assert "no CUDA device is here: --device cpu --size small" in capsys.readouterr().err
