"""Real trainers of other packages: what is adapted, and that nothing else is changed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.presets import ROOT
from hypergradient import Settings
from tests.hypergradient.clients import CLIENTS, STEPS, Client, LanguageModel, loss, rows, validation

pytest.importorskip("transformers")  # of tests/requirements.txt
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of packages that are not ours
every_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
HELD: dict[str, Any] = {"settings": Settings(meta_lr=0.0, weight_decay=0.0), "window": 0}


def validation_loss(model: nn.Module) -> float:
    model.eval()
    return sum(float(loss(model, batch)) for batch in validation()) / len(validation())


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@every_client
def test_with_the_rate_held_the_weights_are_those_of_the_client_alone_at_that_rate_to_the_bit(client: Client) -> None:
    held, adapter = client.run(HELD, 1e-4)
    plain, _ = client.run(None, adapter.last["lr"])
    assert same(held, plain)
    assert not same(held, LanguageModel())


@every_client
def test_from_too_low_a_rate_the_adapted_run_ends_below_the_client_alone(client: Client) -> None:
    plain, _ = client.run(None, 1e-4)
    model, adapter = client.run({"length": STEPS}, 1e-4)
    report = adapter.report()
    assert report["steps"] == STEPS
    assert report["highest"] > 1.3 * report["lowest"] > 0
    assert validation_loss(adapter.averaged) < 0.8 * validation_loss(plain)
    assert math.isfinite(validation_loss(model))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_hugging_face_run_goes_on_from_its_checkpoint_logs_the_real_rate_and_returns_the_average(
    schedule: str, tmp_path: Path
) -> None:
    from transformers import Trainer, TrainingArguments

    from hypergradient.huggingface import STATE_FILE, AdaptLearningRate

    def trainer(folder: Path) -> tuple[Any, AdaptLearningRate]:
        arguments = TrainingArguments(
            str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=8,
            lr_scheduler_type=schedule,
            logging_steps=1,
            save_steps=20,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=1,
        )
        made = Trainer(LanguageModel(), arguments, train_dataset=rows(), eval_dataset=rows())
        return made, AdaptLearningRate(made)

    whole, adapt = trainer(tmp_path)
    whole.train()
    rest, again = trainer(tmp_path)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert same(whole.model, rest.model)
    assert same(whole.model, adapt.adapter.averaged)
    assert adapt.adapter.report() == again.adapter.report()
    logged = [log["learning_rate"] for log in whole.state.log_history if "learning_rate" in log]
    assert (max(logged), min(logged)) == (adapt.adapter.highest, adapt.adapter.lowest)
    assert "hypergradient" in whole.state.log_history[-2]
    (tmp_path / "checkpoint-20" / STATE_FILE).unlink()
    with pytest.raises(ValueError, match=r"cannot go on: there is no .*rate_adapter\.pt"):
        trainer(tmp_path)[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))


def test_a_hugging_face_run_goes_on_from_the_folder_that_was_named_and_a_model_may_be_made_in_train(
    tmp_path: Path,
) -> None:
    from transformers import Trainer, TrainingArguments

    from hypergradient.huggingface import AdaptLearningRate

    def trainer(folder: Path) -> tuple[Any, AdaptLearningRate]:
        quiet: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_steps": 10}
        arguments = TrainingArguments(str(folder), max_steps=20, lr_scheduler_type="constant", **quiet)
        made_in_train: Any = LanguageModel
        made = Trainer(model_init=made_in_train, args=arguments, train_dataset=rows(), eval_dataset=rows())
        return made, AdaptLearningRate(made)

    whole, adapt = trainer(tmp_path / "first")
    whole.train()
    rest, again = trainer(tmp_path / "other")
    rest.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-10"))
    assert adapt.adapter.report() == again.adapter.report()
    assert same(whole.model, rest.model)


def test_a_hugging_face_trainer_with_several_validation_sets_is_refused(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from hypergradient.huggingface import AdaptLearningRate

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    sets = {"one": rows(), "two": rows()}
    with pytest.raises(ValueError, match="one validation set, and eval_dataset has several: name one by `batches`"):
        AdaptLearningRate(Trainer(LanguageModel(), arguments, train_dataset=rows(), eval_dataset=sets))


@pytest.mark.parametrize("divides", [True, False])
def test_a_hugging_face_step_of_fewer_batches_has_a_loss_of_the_same_size(divides: bool, tmp_path: Path) -> None:
    """Of models that divide by the samples of the whole step themselves, and of others: the guard compares steps."""
    from transformers import Trainer, TrainingArguments

    from hypergradient.huggingface import AdaptLearningRate

    class Model(LanguageModel):
        def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
            found = super().forward(input_ids, labels)
            share = input_ids.numel() / kwargs.get("num_items_in_batch", input_ids.numel())
            return found | {"loss": found["loss"] * share}

    quiet: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=1, **quiet
    )
    data = rows()[:36]  # two steps of four batches, one of a single one
    trainer = Trainer(Model() if divides else LanguageModel(), arguments, train_dataset=data, eval_dataset=data)
    adapt = AdaptLearningRate(trainer)
    trainer.train()
    assert adapt.adapter.adaptation.steps == 3
    assert adapt.adapter.adaptation.losses.first == pytest.approx(math.log(32), rel=0.2)  # the mean of the three


def test_a_hugging_face_trainer_without_validation_data_is_refused(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from hypergradient.huggingface import AdaptLearningRate

    trainer = Trainer(LanguageModel(), TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    with pytest.raises(ValueError, match="needs validation batches: give the Trainer an eval_dataset, or `batches`"):
        AdaptLearningRate(trainer)


def test_the_table_of_clients_in_the_documents_is_this_list() -> None:
    rows = [
        f"| {name} | {client.package} {client.version.split('+')[0]} | {client.lines} |"
        for name, client in CLIENTS.items()
    ]
    table = "\n".join(["| client | package | lines added |", "| --- | --- | --- |", *rows])
    assert table in (ROOT / "docs" / "lightning.md").read_text(), table
