"""The adapted rate in Hugging Face's Trainer. This file alone imports transformers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hypergradient.adapter import RateAdapter

STATE_FILE = "rate_adapter.pt"  # in each of the Trainer's checkpoints


class AdaptLearningRate(TrainerCallback):
    """Adapts rate and weight decay of a Trainer's optimizer by the rule of `meta`, and returns averaged weights.

        AdaptLearningRate(trainer)
        trainer.train()

    The Trainer's schedule (linear decay to 0, by default) goes on and is scaled; lr_scheduler_type="constant" leaves
    the rate to the rule. `learning_rate` in the logs is the adapted one. The model has the averaged weights when
    training has ended; evaluations in between measure the current ones.

    Args:
        trainer: its loss, `compute_loss`, is what is looked at.
        batches: validation batches, taken in turn, again and again; default: the Trainer's evaluation set.
        options: of `RateAdapter`: lr, settings, window, part, decays, patience.

    Attributes:
        adapter: the `RateAdapter`, when training has begun.

    Raises:
        ValueError: no evaluation set and no batches; in `train`, what `RateAdapter` refuses, weights that are cut up
            (FSDP, DeepSpeed), or a checkpoint that was saved without this callback.
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
        self.compute_loss = trainer.compute_loss
        self.train, self.folder = trainer.train, ""
        vars(trainer)["train"] = self._train
        trainer.callback_handler.callbacks.insert(0, self)  # before those that print and log

    def _train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, and take note of where it goes on."""
        self.folder = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else ""
        return self.train(resume_from_checkpoint, *args, **kwargs)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the optimizer, and go on from the checkpoint, if there is one."""
        trainer = self.trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "AdaptLearningRate needs the weights in one piece: it cannot be used under FSDP or DeepSpeed."
            )
        self.model = cast(nn.Module, trainer.model)  # here: `model_init` makes it in `train`
        batches = trainer.get_eval_dataloader() if self.batches is None else self.batches
        known = {"length": state.max_steps, "clip": args.max_grad_norm or None}
        self.adapter = RateAdapter(
            cast(Optimizer, trainer.optimizer), self.model, self._loss, batches, **known | self.options
        )
        if state.global_step:
            folder = self.folder or Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            file = Path(folder, STATE_FILE)
            if not file.exists():
                raise ValueError(f"AdaptLearningRate cannot go on: there is no {file}.")
            self.adapter.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        vars(trainer)["compute_loss"] = self._told

    def _loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        device = self.trainer.args.device
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        return cast(Tensor, self.compute_loss(model, moved))

    def _told(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the Trainer does, and tell the adapter the batch."""
        batch = dict(inputs)
        found = self.compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            loss = found[0] if isinstance(found, tuple) else found
            self.adapter.see(batch, loss * self._parts(kwargs.get("num_items_in_batch")))
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

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the state of the adapter, the average in it, beside the Trainer's."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            torch.save(self.adapter.state_dict(), folder / STATE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the average into the model, unless the best checkpoint is in it, and leave the optimizer as it was."""
        vars(self.trainer)["compute_loss"] = self.compute_loss
        if not args.load_best_model_at_end:
            self.model.load_state_dict(self.adapter.averaged.state_dict())
        self.adapter.remove()
