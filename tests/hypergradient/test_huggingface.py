"""Variants of Hugging Face's Trainer: hypergradients are evaluated; at a constant rate, training is unchanged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hypergradient import Settings
from tests.hypergradient.problem import equal

pytest.importorskip("transformers")  # of tests/requirements.txt
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from hypergradient.huggingface import AdaptLearningRate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of packages that are not ours
HELD: dict[str, Any] = {"settings": Settings(meta_lr=0.0, weight_decay=0.0, window=0.0, race=1)}
# an average that differs from the weights from the second step on
AVERAGED: dict[str, Any] = {"settings": Settings(window=1.0, race=4)}
STEPS = 12


def model() -> Any:
    """A GPT-2 of one layer, with dropout; it divides its loss by the tokens of the whole step."""
    set_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=12, n_embd=8, n_layer=1, n_head=2))


def noise(seed: int, size: int = 96) -> list[dict[str, Tensor]]:
    """Random tokens, of which each sample predicts another number."""
    draw, rows = torch.Generator().manual_seed(seed), []
    for tokens in torch.randint(16, (size, 12), generator=draw):
        first = int(torch.randint(1, 10, (), generator=draw))
        rows.append({"input_ids": tokens, "labels": tokens.where(torch.arange(12) >= first, -100)})
    return rows


class OfSubclass(Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + outputs["logits"].square().mean()
        return (loss, outputs) if return_outputs else loss


class RunsOutOfMemory(Trainer):
    """Until its batches are small enough."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if len(inputs["input_ids"]) > 4:
            raise RuntimeError("CUDA out of memory.")
        found: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return found


def per_token(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


def metrics(found: Any) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


class Rates(TrainerCallback):
    """Keeps the rates that are used, or trains at those that are given."""

    def __init__(self, given: list[list[float]] | None = None) -> None:
        self.given, self.used = given, list[list[float]]()

    def on_pre_optimizer_step(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if self.given:
            self.own = [group["lr"] for group in optimizer.param_groups]
            for group, rate in zip(optimizer.param_groups, self.given[len(self.used)], strict=True):
                group["lr"] = rate

    def on_optimizer_step(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.used.append([group.get("used_lr", 0.0) for group in optimizer.param_groups])
        if self.given:
            for group, lr in zip(optimizer.param_groups, self.own, strict=True):
                group["lr"] = lr


@dataclass(frozen=True)
class Variant:
    """Arguments of the training, others of the Trainer, and its class."""

    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    trainer: type[Any] = Trainer

    def build(self, folder: Path, *callbacks: Any, evaluated: Any = None) -> Any:
        fixed: dict[str, Any] = {"max_steps": STEPS, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
        fixed |= {"report_to": [], "disable_tqdm": True, "learning_rate": 1e-2}
        arguments = TrainingArguments(str(folder), **fixed | self.arguments)
        made = {"train_dataset": noise(0), "eval_dataset": evaluated or noise(1, 32), "callbacks": list(callbacks)}
        options = self.options if "model_init" in self.options else {"model": model()} | self.options
        return self.trainer(args=arguments, **made | options)


EVALUATED = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
SCHEDULES = ("constant", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "reduce_lr_on_plateau")
OPTIMIZERS = ("adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad")
VARIANTS: dict[str, Variant] = {
    "as it comes": Variant(),
    "evaluation and checkpoints": Variant(EVALUATED),
    "the best model at the end": Variant(EVALUATED | {"load_best_model_at_end": True}),
    "evaluation at the start": Variant({"eval_on_start": True}),
    "model_init": Variant(options={"model_init": model}),
    "compute_metrics": Variant(EVALUATED, {"compute_metrics": metrics}),
    "compute_loss_func": Variant({"gradient_accumulation_steps": 2}, {"compute_loss_func": per_token}),
    "a subclass with its own loss": Variant(trainer=OfSubclass),
    "label_smoothing_factor": Variant({"label_smoothing_factor": 0.1}),
    "accumulation, normalized by tokens": Variant({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}),
    "group_by_length": Variant({"train_sampling_strategy": "group_by_length"}),
    "auto_find_batch_size": Variant({"auto_find_batch_size": True}, trainer=RunsOutOfMemory),
    "bf16": Variant({"bf16": True}),
    "warm-up": Variant({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4}),
    **{name: Variant({"lr_scheduler_type": name, "eval_strategy": "steps", "eval_steps": 3}) for name in SCHEDULES},
    **{name: Variant({"optim": name}) for name in OPTIMIZERS},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_held_the_weights_are_bit_for_bit_those_of_the_trainer_alone(variant: Variant, tmp_path: Path) -> None:
    rates = Rates()
    made = variant.build(tmp_path / "held", rates)
    adapt = AdaptLearningRate(made, **HELD)
    made.train()
    plain = variant.build(tmp_path / "plain", Rates(rates.used))
    plain.train()
    assert equal(made.model.state_dict(), plain.model.state_dict())
    assert not equal(made.model.state_dict(), model().state_dict())
    assert adapt.adapter.meta.looks > 1
    assert made.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


class Keeps(TrainerCallback):
    """Keeps the weights that are evaluated, by step."""

    def __init__(self) -> None:
        self.kept = dict[int, dict[str, Tensor]]()

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


def saved(path: Path) -> dict[str, Tensor]:
    loaded: nn.Module = GPT2LMHeadModel.from_pretrained(path)
    return loaded.state_dict()


@pytest.mark.parametrize("best", [False, True])
def test_the_average_is_evaluated_saved_and_returned(best: bool, tmp_path: Path) -> None:
    """Also where nothing is evaluated at the step of a checkpoint."""
    keeps = Keeps()
    variant = Variant(EVALUATED | {"save_steps": 6 if best else 2, "load_best_model_at_end": best})
    made = variant.build(tmp_path, keeps)
    adapt = AdaptLearningRate(made, **AVERAGED)
    made.train()
    folders = {int(path.name.split("-")[1]): path for path in tmp_path.glob("checkpoint-*")}
    assert len(folders) == (2 if best else 6)
    for step, path in folders.items():
        optimizer = torch.load(path / "optimizer.pt", weights_only=True)["rate_adapter"]["meta"]
        current = optimizer["average"]["current"]["weights"]
        names = [name for name, _ in made.model.named_parameters()]
        assert not equal([saved(path)[name] for name in names], current)
        if step in keeps.kept:
            assert equal(saved(path), keeps.kept[step])
    at = made.state.best_model_checkpoint if best else folders[STEPS]
    assert equal(made.model.state_dict(), saved(Path(at)))
    assert adapt.adapter.meta.steps == STEPS


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "reduce_lr_on_plateau"])
def test_a_run_resumed_from_any_checkpoint_is_the_uninterrupted_one_bit_for_bit(
    schedule: str, step: int, tmp_path: Path
) -> None:
    """From one of a step that was evaluated, and of one that was not."""
    variant, found = Variant(EVALUATED | {"save_steps": 2, "lr_scheduler_type": schedule}), []
    for start in (None, str(tmp_path / f"checkpoint-{step}")):
        made = variant.build(tmp_path)
        adapt = AdaptLearningRate(made, **AVERAGED)
        made.train(resume_from_checkpoint=start)
        found.append((made.model.state_dict(), adapt.adapter.report(), made.evaluate()["eval_loss"]))
    assert equal(*found)


def test_trained_twice_it_is_adapted_twice_and_taken_back_it_is_the_trainer_alone(tmp_path: Path) -> None:
    made = Variant().build(tmp_path)
    first = AdaptLearningRate(made, **HELD)
    # as in a cell of a notebook that is run again
    adapt = AdaptLearningRate(made, **HELD)
    made.train()
    once = adapt.adapter
    made.train()
    assert adapt.adapter is not once
    assert adapt.adapter.meta.steps == once.meta.steps == STEPS
    assert not hasattr(first, "adapter")
    plain = Variant().build(tmp_path)
    AdaptLearningRate(plain)
    plain.remove_callback(AdaptLearningRate)
    plain.train()
    usual = Variant().build(tmp_path)
    usual.train()
    assert equal(plain.model.state_dict(), usual.model.state_dict())


class Interrupts(TrainerCallback):
    """Stops the first training in an evaluation, and keeps the weights that the next one begins with."""

    stopped = False

    def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.begun = [p.detach().clone() for p in model.parameters()]

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if not self.stopped:
            self.stopped = True
            raise KeyboardInterrupt


@pytest.mark.parametrize("removed", [True, False])
def test_after_an_interruption_another_one_or_none_starts_from_the_weights_of_the_run(
    removed: bool, tmp_path: Path
) -> None:
    interrupts = Interrupts()
    made = Variant(EVALUATED).build(tmp_path, interrupts)
    adapt = AdaptLearningRate(made, **AVERAGED)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    average = adapt.adapter.meta.average
    run = [weights.clone() for weights in average.weights]
    assert average.exchanged
    if removed:
        made.remove_callback(AdaptLearningRate)
    else:
        again = AdaptLearningRate(made, **AVERAGED)
    made.train()
    assert equal(interrupts.begun, run)
    assert adapt.adapter.told == 3
    assert removed or again.adapter.meta.steps == STEPS


def test_without_an_evaluation_the_best_model_is_the_average(tmp_path: Path) -> None:
    late = {"eval_strategy": "steps", "eval_steps": 100, "save_strategy": "steps", "save_steps": 100}
    made = Variant(late | {"load_best_model_at_end": True}).build(tmp_path)
    adapt = AdaptLearningRate(made)
    made.train()
    assert adapt.adapter.meta.average.exchanged


def refusal(arguments: dict[str, Any], evaluated: Any = None) -> Callable[[Path], Any]:
    def train(folder: Path) -> None:
        made = Variant(arguments).build(folder, evaluated=evaluated)
        AdaptLearningRate(made)
        made.train()

    return train


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (refusal({}, {"one": noise(1), "two": noise(2)}), "uses one validation set, but eval_dataset has several"),
        (refusal({"optim": "schedule_free_adamw"}), "AdamWScheduleFree cannot be adapted"),
    ],
    ids=["several sets", "Schedule-Free"],
)
def test_what_cannot_be_adapted_is_refused(train: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path)
