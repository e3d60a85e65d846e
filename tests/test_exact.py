"""Every arm, killed and resumed, equals the uninterrupted run; its checkpoint has the tested weights."""

import os
import signal
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from data.mnist1d import generate
from experiment.options import ARMS, QUIET
from experiment.run import Run, train
from tests.store import checkpoint_of, checkpoints, runs
from tracking.store import client

NETWORKS = {
    "mlp": ["--model.network.dropout=0.2"],
    "conv_batchnorm": ["--task=conv_batchnorm"],
    "gru": ["--task=gru"],
    "post_layernorm": ["--task=post_layernorm"],
}
OPTIONS = [QUIET, "--trainer.max_epochs=4", "--data.batch_size=800"]
# arms with a state of their own run on every network, the others on one of them each, in turn
OWN_STATE = ("meta", "meta_onestep", "descent", "schedule_free", "adamw_average")
CASES = [
    (arm, network)
    for number, arm in enumerate(ARMS)
    for network in (NETWORKS if arm in OWN_STATE else [list(NETWORKS)[number % len(NETWORKS)]])
]


class Kill(Callback):
    """Ends the process as `kill -9` does, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let each epoch leave a checkpoint, however short it is."""
        trainer.checkpoint_callback.seconds = 0  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work: Callable[[], object]) -> int:
    """Do it in a process forked from this one, which has imported everything; return its status."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same(one: Run, other: Run) -> None:
    """The two runs are equal to the bit: weights, schedule, and test."""
    assert one.test_metrics == other.test_metrics
    first, second = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    files = [client().download_artifacts(str(run.run_id), "schedule.csv") for run in (one, other)]
    assert Path(files[0]).read_text() == Path(files[1]).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "network"), CASES)
def test_a_killed_run_resumes_to_the_bit_and_its_checkpoint_is_what_was_tested(
    arm: str, network: str, store: Path
) -> None:
    """Killed in the third epoch, resumed, killed in the fourth, resumed."""
    generate(42), generate(43)
    options = ["--optimizer", arm, *NETWORKS[network], *OPTIONS]
    resume: list[str] = []
    for step in (13, 18):
        work = partial(train, [*options, *resume], callbacks=[Kill(step)])
        assert in_a_child(work) == -signal.SIGKILL
        path = checkpoints(store)[-1]
        resume = [f"--ckpt_path={path}"]
    [killed] = runs()

    resumed, whole = train([*options, *resume]), train(options)
    assert resumed.run_id == killed.info.run_id
    same(resumed, whole)
    tested = train(["test", f"--ckpt_path={checkpoint_of(whole)}", *OPTIONS])
    assert tested.trainer.callback_metrics == whole.trainer.callback_metrics


@pytest.mark.slow
def test_a_finished_run_continues_in_a_new_one() -> None:
    options = ["--optimizer", "adam", *OPTIONS]
    first = train(options)
    resume = f"--ckpt_path={checkpoint_of(first)}"
    assert train([*options, resume]).run_id != first.run_id
    client().set_terminated(str(first.run_id), "KILLED")
    assert train([*options, resume]).run_id == first.run_id
    assert train([*options, "--trainer.max_epochs=5", resume]).run_id != first.run_id
