"""Every arm, killed and resumed, is the run that was never stopped; its file is what was tested."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from data.mnist1d import generate
from experiment.presets import ARMS, QUIET
from experiment.training import Run, train
from tests.store import runs
from tests.test_resume import arm
from tracking.store import client

NETWORKS = {
    "mlp": ["--model.network.dropout=0.2"],
    "conv_batchnorm": ["--task=conv_batchnorm"],
    "gru": ["--task=gru"],
    "deep_layernorm": ["--task=deep_layernorm"],
}
SHORT = [QUIET, "--trainer.max_epochs=2", "--trainer.limit_train_batches=5", "--data.batch_size=64"]
STEP = 8  # of 5 an epoch
OWN_STATE = ("meta", "meta_onestep", "meta_search", "descent", "schedule_free", "adam_average")  # beside torch's
CASES = [  # these on every network, the other arms on one of them each, in turn
    (arm, network)
    for number, arm in enumerate(ARMS)
    for network in (NETWORKS if arm in OWN_STATE else [list(NETWORKS)[number % len(NETWORKS)]])
]


class Kill(Callback):
    """Ends the process as `kill -9` does, after a step of the second epoch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.global_step == STEP:
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


def kept(run: Run) -> tuple[dict[str, torch.Tensor], str]:
    """Weights and schedule of a run."""
    path = client().download_artifacts(str(run.run_id), "schedule.csv")
    return run.model.state_dict(), Path(path).read_text()


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For `replay`."""
    path = tmp_path_factory.mktemp("schedule") / "schedule.csv"
    path.write_text("step,lr,decay\n" + "".join(f"{step},{0.1 / step},{0.001}\n" for step in range(1, 11)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("name", "network"), CASES)
def test_a_killed_run_goes_on_to_the_bit_and_its_checkpoint_is_what_was_tested(
    name: str, network: str, store: Path, tmp_path: Path, schedule: Path
) -> None:
    generate(42), generate(43)
    replayed = [f"--model.schedule.path={schedule}"] if name == "replay" else []
    options = ["--config", str(arm(tmp_path, name)), *NETWORKS[network], *SHORT, *replayed]
    assert in_a_child(lambda: train(options, callbacks=[Kill()])) == -signal.SIGKILL
    [killed] = runs()
    [path] = store.glob("mlruns/mnist1d/*/checkpoints/*.ckpt")

    resumed, whole = train([*options, f"--ckpt_path={path}"]), train(options)
    assert resumed.run_id == killed.info.run_id
    assert resumed.test_metrics == whole.test_metrics
    (weights, course), (expected, other) = kept(resumed), kept(whole)
    assert course == other
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())

    last = str(whole.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    tested = train(["test", *options, f"--ckpt_path={last}"])
    assert tested.trainer.callback_metrics == whole.trainer.callback_metrics
