"""Trainers of other packages: their rate is adapted, and nothing else changes."""

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypergradient import Settings
from tests.hypergradient import clients
from tests.hypergradient.clients import CLIENTS, STEPS, Client, LanguageModel, Loop, loader, loss, rows, trainer
from tests.hypergradient.problem import SHORT, equal

pytest.importorskip("transformers")  # of tests/requirements.txt
from hypergradient.huggingface import AdaptLearningRate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of packages that are not ours
every_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
HELD: dict[str, Any] = {"settings": Settings(meta_lr=0.0, weight_decay=0.0, window=0.0, race=1)}


def validation_loss(model: nn.Module) -> float:
    return sum(float(loss(model, batch)) for batch in loader(16)) / 4


@every_client
def test_with_the_rate_held_the_weights_are_those_of_the_client_alone_at_that_rate_bit_for_bit(client: Client) -> None:
    held, adapter = client.run(HELD, 1e-4)
    plain, _ = client.run(None, adapter.last["lr"])
    assert equal(held.state_dict(), plain.state_dict())
    assert not equal(held.state_dict(), LanguageModel().state_dict())


@every_client
def test_from_too_low_a_rate_the_adapted_run_ends_below_the_client_alone(client: Client) -> None:
    plain, _ = client.run(None, 1e-4)
    model, adapter = client.run({"length": STEPS}, 1e-4)
    report = adapter.report()
    assert report["steps"] == STEPS
    assert report["highest"] > 1.3 * report["lowest"] > 0
    adapter.eval()
    assert validation_loss(model) < 0.8 * validation_loss(plain)
    adapter.train()
    assert math.isfinite(validation_loss(model))


def test_accelerate_resumes_from_its_own_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole, rest = (Loop({"length": STEPS}, 1e-4, clients.accelerated) for _ in range(2))
    whole.run(STEPS // 2)
    whole.launched.save_state(str(tmp_path))
    whole.run(STEPS // 2)
    rest.launched.load_state(str(tmp_path))
    rest.run(STEPS // 2)
    assert equal(whole.model.state_dict(), rest.model.state_dict())
    assert whole.adapter.report() == rest.adapter.report()


def test_hugging_face_resumes_from_its_own_checkpoint_logs_the_real_rate_and_returns_the_average(
    tmp_path: Path,
) -> None:
    found, checkpoint = [], tmp_path / "checkpoint-20"
    for start in (None, str(checkpoint)):
        made = trainer(tmp_path, evaluated=rows(), lr_scheduler_type="linear", logging_steps=1, save_steps=20)
        adapt = AdaptLearningRate(made, settings=SHORT)
        made.train(resume_from_checkpoint=start)
        found.append((made, adapt.adapter))
    (whole, adapter), (rest, again) = found
    assert equal(whole.model.state_dict(), rest.model.state_dict())
    assert adapter.report() == again.report()
    assert adapter.meta.average.exchanged
    assert torch.load(checkpoint / "optimizer.pt", weights_only=True)["rate_adapter"]["told"] == 20
    logged = [log["learning_rate"] for log in whole.state.log_history if "learning_rate" in log]
    assert (max(logged), min(logged)) == (adapter.highest, adapter.lowest)
    assert "hypergradient" in whole.state.log_history[-2]


class Divides(LanguageModel):
    """A model that divides by the samples of the whole step itself."""

    def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        found = super().forward(input_ids, labels)
        share = input_ids.numel() / kwargs.get("num_items_in_batch", input_ids.numel())
        return found | {"loss": found["loss"] * share}


class Masks(LanguageModel):
    """Writes into its batch."""

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = super().forward(input_ids.clone(), labels.clone())
        input_ids[:, ::2] = labels[:, ::2] = 0
        return found


def test_a_hugging_face_model_may_write_into_its_batch(tmp_path: Path) -> None:
    ends = []
    for model in (Masks, LanguageModel):
        made = trainer(tmp_path, model, rows(), save_strategy="no", logging_strategy="no")
        adapt = AdaptLearningRate(made)
        made.train()
        ends.append([made.model.state_dict(), adapt.adapter.report()])
    assert equal(*ends)


@pytest.mark.parametrize("model", [LanguageModel, Divides])
def test_a_hugging_face_step_of_fewer_batches_has_a_loss_of_the_same_size(model: Any, tmp_path: Path) -> None:
    """The guard compares the losses of steps: here two of four batches, and one of a single batch."""
    made = trainer(tmp_path, model, rows(), per_device_train_batch_size=4, gradient_accumulation_steps=4)
    made.train_dataset, made.args.max_steps, made.args.num_train_epochs = rows()[:36], -1, 1
    with pytest.raises(ValueError, match="needs validation batches"):
        AdaptLearningRate(trainer(tmp_path, evaluated=None))
    adapt = AdaptLearningRate(made)
    made.train()
    assert adapt.adapter.meta.steps == 3
    assert adapt.adapter.meta.guard.smooth == pytest.approx(math.log(32), rel=0.2)


def test_the_table_of_clients_in_the_documents_is_this_list() -> None:
    page = (Path(__file__).parents[2] / "docs" / "support.md").read_text(encoding="utf-8")
    for name, client in CLIENTS.items():
        assert f"| {name} | {client.package} {version(client.package).split('+')[0]} | {client.lines} |" in page
