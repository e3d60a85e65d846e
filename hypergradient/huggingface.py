"""A callback for Hugging Face's Trainer. Only this module imports transformers."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hypergradient.adapter import RateAdapter


class AdaptLearningRate(TrainerCallback):
    """Adapts learning rate and weight decay of a Trainer's optimizer by the rule of `Meta`, and averages the weights.

    The Trainer's schedule (linear decay to 0 by default) scales the adapted rate; lr_scheduler_type="constant" leaves
    the rate to the rule. `learning_rate` in the logs is the adapted rate. The averaged weights are evaluated, saved in
    checkpoints, and left in the model after training; the state is part of the optimizer's.
    `trainer.remove_callback` removes the callback; a second one replaces it.

    Args:
        trainer: the Trainer; its `compute_loss` is the loss.
        batches: validation batches, used cyclically; default: the Trainer's evaluation set.
        options: arguments of `RateAdapter`: hold, rate, decay, average, guard, settings, decays, patience, cut.

    Attributes:
        adapter: the `RateAdapter`, once training has started.

    Raises:
        ValueError: no evaluation set and no batches; in `train`: what `RateAdapter` refuses, or sharded weights (FSDP,
            DeepSpeed).

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1))
        >>> rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 32
        >>> options = {"save_strategy": "no", "report_to": "none", "dataloader_pin_memory": False}
        >>> arguments = TrainingArguments(".", max_steps=4, **options)
        >>> trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        >>> adapt = AdaptLearningRate(trainer)
        >>> trainer.train()
        {'train_runtime': ...TrainOutput(global_step=4, ...
        >>> adapt.adapter.report()["steps"]
        4
    """

    adapter: RateAdapter

    def __init__(self, trainer: Trainer, batches: Iterable[Any] | None = None, **options: Any) -> None:
        if batches is None and trainer.eval_dataset is None:
            raise ValueError(
                "AdaptLearningRate needs validation batches: give the Trainer an eval_dataset, or `batches`."
            )
        if batches is None and isinstance(trainer.eval_dataset, Mapping):
            raise ValueError(
                "AdaptLearningRate uses one validation set, but eval_dataset has several: choose one by `batches`, "
                "such as trainer.get_eval_dataloader(NAME)."
            )
        self.trainer, self.batches, self.options, self.attached = trainer, batches, options, False
        self.create_optimizer, self.compute_loss = trainer.create_optimizer, trainer.compute_loss
        self.save_model = trainer.save_model
        vars(trainer).update(compute_loss=self._compute_loss, save_model=self._save_model)
        # attached when the optimizer is created: the Trainer loads its state before `on_train_begin`
        vars(trainer)["create_optimizer"] = self._create_optimizer
        trainer.remove_callback(AdaptLearningRate)
        # before the callbacks that print and log
        trainer.callback_handler.callbacks.insert(0, self)

    def _create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Create the Trainer's optimizer, and attach to it."""
        trainer = self.trainer
        if self.attached:
            # a previous training was interrupted
            self.adapter.train()
            self._detach()
        if self not in trainer.callback_handler.callbacks:
            return self.create_optimizer(*args, **kwargs)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "AdaptLearningRate does not support sharded weights: it cannot be used with FSDP or DeepSpeed."
            )
        optimizer = self.create_optimizer(*args, **kwargs)
        # not earlier: `model_init` creates the model in `train`
        model = cast(nn.Module, trainer.model)
        batches = trainer.get_eval_dataloader() if self.batches is None else self.batches
        known: dict[str, Any] = {"length": None, "clip": trainer.args.max_grad_norm or None}
        self.adapter = adapter = RateAdapter(optimizer, model, self._loss, batches, **known | self.options)
        # the Trainer calls these, which exist for Schedule-Free, before it trains and evaluates
        vars(adapter.optimizer).update(train=adapter.train, eval=adapter.eval)
        self.attached = True
        return optimizer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the length of the run."""
        self.adapter.meta.length = self.options.get("length", state.max_steps)

    def _save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the average; the next training step restores the weights of the run."""
        if self.attached:
            self.adapter.eval()
        self.save_model(*args, **kwargs)

    def _loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        inputs: Any = self.trainer._prepare_input(batch)
        items = self.trainer._get_num_items_in_batch([inputs], self.trainer.args.device)
        return cast(Tensor, self.compute_loss(model, inputs, num_items_in_batch=items))

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the Trainer does, and register a training batch."""
        part = self.adapter.part(inputs) if model.training and self.attached else None
        found = self.compute_loss(model, inputs, *args, **kwargs)
        if part:
            loss = found[0] if isinstance(found, tuple) else found
            self.adapter.see(part, loss * self._parts(kwargs.get("num_items_in_batch")))
        return found

    def _parts(self, items: Any) -> int:
        """Return the number of batches by which the loss is already divided; 1 if the Trainer divides later."""
        trainer = self.trainer
        divided = getattr(trainer, "loss_is_scaled_for_ga", None)
        if divided is None:
            divided = trainer.compute_loss_func or (trainer.model_accepts_loss_kwargs and items is not None)
        return int(trainer.current_gradient_accumulation_steps) if divided else 1

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Log the adapted rate, and the results of the last look."""
        if logs and "learning_rate" in logs and self.adapter.last:
            seen = self.adapter.last | {"learning_rate": self.adapter.last["lr"]}
            for log in (logs, state.log_history[-1]):
                log.update({name: value for name, value in seen.items() if name != "lr"})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the average into the model, unless the best checkpoint was loaded; detach from the optimizer."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            mode = self.adapter.network.training
            self.adapter.eval()
            self.adapter.network.train(mode)
        self._detach()

    def _detach(self) -> None:
        self.adapter.remove()
        del self.adapter.optimizer.train, self.adapter.optimizer.eval  # type: ignore[attr-defined]
        self.attached = False
