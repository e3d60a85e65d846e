"""The learning rate adapted during the run: a hypothetical step beside each real one, looks at the validation loss."""

import math
from typing import Any, cast

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import Adaptation, Settings, check_supported
from hypergradient.settings import LEAST
from lightning_modules.supervised import Batch, OptimizerFactory, Pair, SupervisedModule, objective


class MetaModule(SupervisedModule):
    """Training whose learning rate and weight decay follow their hypergradients (`hypergradient.adaptation`).

    Meant to return averaged weights: A is that of `callbacks.TailAverage`. Without it, A is θ.

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits, or (batch, 1) values.
        lr: the learning rate to start from, where it is lower than the method's own start; None for that one.
        meta_lr: κ, how far the logarithm of the rate moves while the number of steps grows e-fold; 0 holds the rate.
        start: c, the first step's length over that of the weights.
        weight_decay: λ at first, in units of rms(Δ(1)) / rms(θ); 0 for none.
        factor: of the hypothetical rate over the real one.
        pull: the part of the way that the hypothetical run goes back to the real one after each step.
        part: of a batch, for the hypothetical step; at least 16 samples.
        optimizer: makes it from the parameters and the rate; Adam by default. Without a weight decay of its own.
        gradient_clip_val: the norm to which gradients are clipped, those of hypothetical steps too; None for none.
        accumulate_grad_batches: batches whose gradients make a step. Under manual optimization Lightning leaves both to
            the module; on the command line, the Trainer's options go here.

    Raises:
        ValueError: an argument is out of range, or the optimizer's step is not proportional to its rate.
    """

    reads_validation = True

    def __init__(
        self,
        network: nn.Module,
        lr: float | None = None,
        meta_lr: float = 2.0,
        start: float = 0.03,
        weight_decay: float = 0.005,
        factor: float = 2.0,
        pull: float = 0.1,
        part: float = 0.375,
        optimizer: OptimizerFactory | None = None,
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__(network, 1.0 if lr is None else lr, optimizer)
        self.settings = Settings(meta_lr, start, weight_decay, factor, pull)
        if not 0 < part <= 1:
            raise ValueError(f"--model.part must be above 0 and at most 1, got {part}.")
        if accumulate_grad_batches < 1:
            raise ValueError(f"--model.accumulate_grad_batches must be 1 or more, got {accumulate_grad_batches}.")
        check_supported(self.inner_optimizer())
        self.settings.check(self.inner_optimizer())
        self.given_lr, self.part = lr, part
        self.gradient_clip_val, self.accumulate_grad_batches = gradient_clip_val, accumulate_grad_batches
        self.parts: list[Batch] = []  # of the batches whose gradients make the step
        self.adaptation: Adaptation | None = None
        self.kept: dict[str, Any] = {}
        self.automatic_optimization = False

    def setup(self, stage: str) -> None:
        """Forget, before a fit, what a checkpoint brought that was loaded for something else."""
        super().setup(stage)
        if stage == "fit":
            self.kept = {}
            self.parts.clear()  # of a fit that broke off

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer; an adaptation that was there belongs to another."""
        self.adaptation = None
        return super().configure_optimizers()

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Add to the gradient; where the step is due, take it, and return what was seen."""
        optimizer = cast(Any, self.optimizers())
        loss = self.loss(batch["train"])
        if not self.parts:
            self.zero_grad()  # not the optimizer's, which records itself for a profiler: 2 % of a step
        several = self.accumulate_grad_batches > 1  # else nothing is divided, averaged or joined: it costs kernels
        self.manual_backward(loss / self.accumulate_grad_batches if several else loss)
        self.losses.append(loss.detach())
        self.parts.append(self._part(batch["train"]))
        if len(self.parts) < self.accumulate_grad_batches and not self.trainer.is_last_batch:
            return {"loss": loss.detach()}
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val)
        mean = torch.stack(self.losses[-len(self.parts) :]).mean() if several else loss.detach()
        return {"loss": loss.detach()} | self._step(optimizer, batch, mean)

    def _step(self, optimizer: Any, batch: Pair, loss: Tensor) -> dict[str, Tensor | float]:
        """Move the rate, if it is time; take the real step and the hypothetical one; return what was seen."""
        adaptation = self.adaptation or self._begin(optimizer.optimizer)
        seen: dict[str, Any] = {}
        if adaptation.due:
            seen |= adaptation.look(lambda network: _loss(network, batch["val"]))
            self.passes += len(batch["val"][1]) / len(batch["train"][1]) / self.accumulate_grad_batches
        seen |= {"lr": adaptation.rate, "decay": adaptation.decay}
        adaptation.shrink()
        optimizer.step()
        rewound, parts = adaptation.rewound, self.parts.copy()
        self.parts.clear()
        x, y = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        adaptation.step(loss, lambda network: _loss(network, (x, y)))
        if adaptation.rewound > rewound:  # mended: what watches for divergence is not to see it
            seen["loss"] = self.losses[-1] = torch.full_like(loss, adaptation.losses.first)
        return seen

    def _part(self, batch: Batch) -> Batch:
        x, y = batch
        least = -(-LEAST // self.trainer.world_size)  # of all processes together
        samples = min(len(y), max(least, int(self.part * len(y))))
        self.passes += samples / len(y) / self.accumulate_grad_batches
        return x[:samples], y[:samples]

    def _begin(self, optimizer: Optimizer) -> Adaptation:
        """Start from the first batch's gradients, or go on from the checkpoint."""
        averaging = self.averaging()
        average, window = (averaging.average.network, averaging.window) if averaging else (self.network, 0.0)
        batches = (self.trainer.max_epochs or -1) * self.trainer.num_training_batches
        ends = (self.trainer.max_steps, batches / self.accumulate_grad_batches)
        length = int(min((end for end in ends if 0 < end < math.inf), default=0))
        clips_norm = self.trainer.gradient_clip_algorithm in (None, "norm")  # the hypothetical run clips by it alone
        clip = self.gradient_clip_val if clips_norm else None
        self.adaptation = Adaptation(self.network, optimizer, self.settings, average, window, length, clip)
        if self.kept:
            self.adaptation.load_state_dict(self.kept)
            self.kept = {}
        elif self.adaptation.begin(self.given_lr) and self.trainer.is_global_zero:
            print(f"--model.lr {self.given_lr:g} is lowered to {self.adaptation.rate:.3g}, where this method starts")
        return self.adaptation

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the adaptation too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["adaptation"] = self.adaptation.state_dict() if self.adaptation else self.kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(checkpoint)
        self.kept = checkpoint["adaptation"]


def _loss(network: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return objective(network(x), y)
