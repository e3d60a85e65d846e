import pytest
import torch

from benchmarks import raw, step
from benchmarks.__main__ import SECTIONS, main, table
from benchmarks.measure import QUIET
from benchmarks.run import ARMS, LR
from experiment.run import train
from tests.store import history, schedule

SMALL, *_ = step.MLPS


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["adam", "meta", "meta_onestep"])
def test_a_run_is_the_raw_loop_that_it_is_measured_against(arm: str) -> None:
    """A second implementation, without Lightning, of the whole method: the same numbers to the last digit."""
    rate = [f"--model.lr={LR}"] if arm == "adam" else []
    run = train(["--optimizer", arm, *rate, QUIET])
    record = raw.run((ARMS | {"meta_onestep": raw.OneStep})[arm], 50)
    assert [lr for _, lr in schedule(str(run.run_id))] == record.rates
    assert [loss for _, loss in history(str(run.run_id), "val/loss")] == [loss for loss, _ in record.validation]
    assert run.test_metrics["test/loss"] == record.test_loss


def test_the_timed_rule_at_a_fixed_rate_is_the_plain_step() -> None:
    plain, adapted = step.mlp(SMALL), step.mlp(SMALL)
    steps = step.plain(plain), step.plain_rule(adapted, meta_lr=0.0)
    for _ in range(5):
        for take in steps:
            take()
    assert all(map(torch.equal, plain.network.parameters(), adapted.network.parameters()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_measures_something_in_its_quick_form(section: str) -> None:
    measure, corner = SECTIONS[section]
    found = measure(True)
    numbers = torch.tensor(list(_numbers(found)))
    assert numbers.isfinite().all()
    assert table(corner, found).count("\n") == 1 + len(next(iter(found.values())))


def _numbers(found: object) -> list[float]:
    if isinstance(found, dict):
        found = tuple(found.values())
    return [n for part in found for n in _numbers(part)] if isinstance(found, tuple) else [float(found)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "message"), [("accelerator", "accelerator needs a CUDA device"), ("peers", "unknown section peers")]
)
def test_a_section_that_cannot_be_measured_is_refused(
    section: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main([section])
    assert message in capsys.readouterr().err
