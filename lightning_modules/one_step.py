"""Train by the plain one-step rule: at each step, the rate follows the gradient of the validation loss."""

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from hypergradient import check_supported, hypergradient, lookahead, no_trace, real_step
from lightning_modules.supervised import OptimizerFactory, Pair, SupervisedModule


class OneStepModule(SupervisedModule):
    """Trains by the plain rule: before each real step, the rate moves along the hypergradient of that step.

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits.
        lr: the learning rate to start from.
        meta_lr: the learning rate of the meta-optimizer: with Adam, about the largest change in one step, which is
            relative for log_rate.
        adapt: what the meta-optimizer updates: the logarithm of the rate, or the rate itself, which is then kept at or
            above a thousandth of lr, so that it stays positive.
        optimizer: creates the inner optimizer from the parameters and the rate; Adam by default.
        meta_optimizer: creates the meta-optimizer from what it updates and meta_lr; Adam by default.

    Raises:
        ValueError: lr or meta_lr is out of range, or the inner optimizer's step is not proportional to its rate.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        meta_lr: float = 0.05,
        adapt: Literal["log_rate", "rate"] = "log_rate",
        optimizer: OptimizerFactory | None = None,
        meta_optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(network, lr, optimizer)
        if not 0 <= meta_lr < math.inf:
            raise ValueError(f"--model.meta_lr must be a finite number, 0 or more, got {meta_lr}.")
        check_supported(self.inner_optimizer())
        self.meta_lr, self.adapt, self.make_meta_optimizer = meta_lr, adapt, meta_optimizer or Adam
        # log(rate / lr), or the rate; a parameter, so that checkpoints hold it; DDP would wait for its gradient
        self.learned = nn.Parameter(torch.tensor(lr if adapt == "rate" else 0.0), requires_grad=False)
        self.batch_size = 0
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[Optimizer]:
        """Build the inner optimizer for the network, and the meta-optimizer for the learning rate."""
        return [self.inner_optimizer(), self.make_meta_optimizer([self.learned], self.meta_lr)]

    def scale(self) -> Tensor:
        """Return rate / lr, 0-d; exactly 1 at the start."""
        learned = self.learned.detach()
        return learned / self.lr if self.adapt == "rate" else learned.exp()

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Take the hypothetical step, compute the hypergradient, move the rate, and correct the step."""
        optimizer, meta_optimizer = cast(list[Any], self.optimizers())
        loss = self.loss(batch["train"])
        self.manual_backward(loss)
        self.losses.append(loss.detach())
        # the last batch of an epoch may be smaller
        self.batch_size = max(self.batch_size, len(batch["train"][1]))
        self.passes += len(batch["val"][1]) / self.batch_size
        scale = self.scale()
        update = lookahead(optimizer, scale)
        # frees memory for the validation gradient
        optimizer.zero_grad()
        with no_trace(self.network):
            lookahead_loss = self.loss(batch["val"])
            h = hypergradient(lookahead_loss, update)
        # mean over the processes, which all have the same rate
        h = self.trainer.strategy.reduce(h, reduce_op="mean")
        if h.isfinite():
            # unwrapped: a second Lightning step would count this batch twice
            self._move(h, meta_optimizer.optimizer)
        real_step(update, self.scale() / scale)
        lr = self.lr * self.scale()
        return {"loss": loss.detach(), "lookahead_loss": lookahead_loss.detach(), "hypergradient": h, "lr": lr}

    def _move(self, h: Tensor, meta_optimizer: Optimizer) -> None:
        """Let the meta-optimizer step along h = dL_val/d log α; dL_val/dα is h / α."""
        self.learned.grad = h.to(self.learned) / (self.learned if self.adapt == "rate" else 1)
        meta_optimizer.step()
        if self.adapt == "rate":
            self.learned.clamp_(min=self.lr / 1000)
