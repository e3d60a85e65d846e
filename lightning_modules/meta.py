"""Train with an adapted learning rate, by manual optimization."""

import math
from typing import Any, cast

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from hypergradient import Average, Meta, Settings
from hypergradient.run import keep_state
from lightning_modules.supervised import Batch, OptimizerFactory, Pair, SupervisedModule

# key of the rule's state in that of the optimizer
NAME = "meta"


class MetaModule(SupervisedModule):
    """Trains with learning rate and weight decay adapted by their hypergradients (`hypergradient.Meta`).

    `callbacks.TailAverage` validates and returns the averaged weights that the rule keeps.

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits, or (batch, 1) values.
        lr: the learning rate to start from; None for the method's own start.
        optimizer: creates the optimizer, without a weight decay, from the parameters and the rate; Adam by default.
        gradient_clip_val: the norm to which gradients are clipped, those of hypothetical steps too; None for none.
        accumulate_grad_batches: number of batches per step. In manual optimization, Lightning leaves clipping and
            accumulation to the module; on the command line, the Trainer's options are passed on to these two.
        settings: the constants of the method: the fields of `hypergradient.Settings`.

    A subclass with `rule = Variant` trains with a variant of the rule, a subclass of `hypergradient.Meta`.

    Raises:
        ValueError: an argument is out of range, or the optimizer's step is not proportional to its rate.
    """

    rule: type[Meta] = Meta

    def __init__(
        self,
        network: nn.Module,
        lr: float | None = None,
        optimizer: OptimizerFactory | None = None,
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(network, 1.0 if lr is None else lr, optimizer)
        if accumulate_grad_batches < 1:
            raise ValueError(f"--model.accumulate_grad_batches must be 1 or more, got {accumulate_grad_batches}.")
        self.settings, self.given = Settings(**settings), lr is not None
        self.gradient_clip_val, self.accumulate_grad_batches = gradient_clip_val, accumulate_grad_batches
        # parts of the batches of the current step
        self.parts: list[Batch] = []
        self.meta = self.rule(self.network, self.inner_optimizer(), self.settings, self.given)
        self.automatic_optimization = False

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, whose state includes that of the rule."""
        optimizer = self.inner_optimizer()
        self.meta = self.rule(self.network, optimizer, self.settings, self.given)
        keep_state(optimizer, NAME, self.meta, self.meta, required=True)
        return optimizer

    @property
    def depends_on_length(self) -> bool:
        """True: the changes of the weight decay depend on the length of the run."""
        return True

    @property
    def average(self) -> Average | None:
        """The averaged weights; None if `window` is 0."""
        self.meta.prepare()
        return self.meta.average if self.settings.window else None

    def on_train_start(self) -> None:
        """Set the length of the run and the norm for clipping, which the Trainer knows now."""
        super().on_train_start()
        self.parts.clear()
        batches = (self.trainer.max_epochs or -1) * self.trainer.num_training_batches
        ends = (self.trainer.max_steps, batches / self.accumulate_grad_batches)
        self.meta.length = int(min((end for end in ends if 0 < end < math.inf), default=0))
        clips_norm = self.trainer.gradient_clip_algorithm in (None, "norm")
        self.meta.clip = self.gradient_clip_val if clips_norm else None

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Look, move the rate, take the real step, then the hypothetical one.

        Returns the loss of the batch, the rates and the results of a look. If gradients are accumulated, most batches
        only add theirs.
        """
        optimizer = cast(Any, self.optimizers())
        loss = self.loss(batch["train"])
        if not self.parts:
            # not the optimizer's method, which adds a record for the profiler: 2 % of a step
            self.zero_grad()
        self.manual_backward(loss / self.accumulate_grad_batches if self.accumulate_grad_batches > 1 else loss)
        self.losses.append(loss.detach())
        self.parts.append(self._part(batch["train"]))
        if len(self.parts) < self.accumulate_grad_batches and not self.trainer.is_last_batch:
            return {"loss": loss.detach()}
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val)

        looks = self.meta.looks
        seen: dict[str, Any] = self.meta.before_step(lambda: lambda: self.loss(batch["val"]))
        self.passes += (
            (self.meta.looks - looks) * len(batch["val"][1]) / len(batch["train"][1]) / self.accumulate_grad_batches
        )
        if len(self.losses) > 1 and all(p.grad is None for p in self.network.parameters()):
            # the run was replaced in this step, and the loss is that of its old weights
            self.losses[-1] = self.losses[-2]
        optimizer.step()
        parts = self.parts[0] if len(self.parts) == 1 else tuple(map(torch.cat, zip(*self.parts, strict=True)))
        losses = self.losses[-len(self.parts) :]
        self.meta.after_step(torch.stack(losses).mean(), lambda: self.loss(cast(Batch, parts)))
        self.parts.clear()
        return {"loss": self.losses[-1]} | seen

    def _part(self, batch: Batch) -> Batch:
        x, y = batch
        # `least` is the number for all processes together
        least = -(-self.settings.least // self.trainer.world_size)
        samples = len(y) if self.meta.racing else min(len(y), max(least, int(self.settings.part * len(y))))
        self.passes += samples / len(y) / self.accumulate_grad_batches
        return x[:samples], y[:samples]
