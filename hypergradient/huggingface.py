"""The adapted rate in Hugging Face's Trainer. This file alone imports transformers."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hypergradient.adapter import RateAdapter


class AdaptLearningRate(TrainerCallback):
    """Adapts learning rate and weight decay of a Trainer's optimizer by the rule of `Meta`, and averages the weights.

        AdaptLearningRate(trainer)
        trainer.train()

    The Trainer's schedule (linear decay to 0, by default) stays and is scaled; lr_scheduler_type="constant" leaves the
    rate to the rule. `learning_rate` in the logs is the adapted one. The state is in the Trainer's own checkpoints, as
    part of the optimizer's. The model has the averaged weights when training has ended; evaluations before that measure
    the current ones.

    Args:
        trainer: its loss, `compute_loss`, is what is looked at.
        batches: validation batches, taken in turn, again and again; default: the Trainer's evaluation set.
        options: of `RateAdapter`: lr, settings, decays, patience.

    Attributes:
        adapter: the `RateAdapter`, when training has begun.

    Raises:
        ValueError: no evaluation set and no batches; in `train`, what `RateAdapter` refuses, or weights that are cut up
            (FSDP, DeepSpeed).
    """

    adapter: RateAdapter

    def __init__(self, trainer: Trainer, batches: Iterable[Any] | None = None, **options: Any) -> None:
        if batches is None and trainer.eval_dataset is None:
            raise ValueError(
                "AdaptLearningRate needs validation batches: give the Trainer an eval_dataset, or `batches`."
            )
        if batches is None and isinstance(trainer.eval_dataset, Mapping):
            raise ValueError(
                "AdaptLearningRate looks at one validation set, and eval_dataset has several: name one by `batches`, "
                "as trainer.get_eval_dataloader(NAME)."
            )
        self.trainer, self.batches, self.options = trainer, batches, options
        self.compute_loss, self.create_optimizer = trainer.compute_loss, trainer.create_optimizer
        # as soon as there is an optimizer: the Trainer loads its state before `on_train_begin`
        vars(trainer)["create_optimizer"] = self._create_optimizer
        # before those that print and log
        trainer.callback_handler.callbacks.insert(0, self)

    def _create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Create the Trainer's optimizer, and attach to it."""
        trainer = self.trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "AdaptLearningRate needs the weights in one piece: it cannot be used under FSDP or DeepSpeed."
            )
        optimizer = self.create_optimizer(*args, **kwargs)
        # here: `model_init` makes it in `train`
        model = cast(nn.Module, trainer.model)
        batches = trainer.get_eval_dataloader() if self.batches is None else self.batches
        known = {"clip": trainer.args.max_grad_norm or None}
        self.adapter = RateAdapter(optimizer, model, self._loss, batches, **known | self.options)
        return optimizer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Register the training batches from now on."""
        self.adapter.meta.length = self.options.get("length", state.max_steps)
        vars(self.trainer)["compute_loss"] = self._compute_loss

    def _loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        device = self.trainer.args.device
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        return cast(Tensor, self.compute_loss(model, moved))

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the Trainer does, and register a training batch."""
        part = self.adapter.part(inputs) if model.training else None
        found = self.compute_loss(model, inputs, *args, **kwargs)
        if part:
            loss = found[0] if isinstance(found, tuple) else found
            self.adapter.see(part, loss * self._parts(kwargs.get("num_items_in_batch")))
        return found

    def _parts(self, items: Any) -> int:
        """Return the batches of the step that the loss is already divided by; 1 where the Trainer divides later."""
        trainer = self.trainer
        divided = items is not None and (trainer.model_accepts_loss_kwargs or trainer.compute_loss_func)
        return int(trainer.current_gradient_accumulation_steps) if divided else 1

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Log the rate at which steps are taken, and what was seen."""
        if logs and "learning_rate" in logs and self.adapter.last:
            seen = self.adapter.last | {"learning_rate": self.adapter.last["lr"]}
            for log in (logs, state.log_history[-1]):
                log.update({name: value for name, value in seen.items() if name != "lr"})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the average into the model, unless the best checkpoint is in it, and leave the optimizer as it was."""
        vars(self.trainer)["compute_loss"] = self.compute_loss
        if not args.load_best_model_at_end:
            mode = self.adapter.network.training
            self.adapter.eval()
            self.adapter.network.train(mode)
        self.adapter.remove()
