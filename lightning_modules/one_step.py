"""The plain one-step rule: the learning rate follows the gradient of the validation loss, step by step."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import check_supported, hypergradient, lookahead, no_trace, real_step, scaled
from lightning_modules.supervised import Batch, OptimizerFactory, Pair, SupervisedModule


class OneStepModule(SupervisedModule):
    """The plain rule: before each real step, the rate moves along the hypergradient of that step.

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits.
        lr: the learning rate to start from.
        meta_lr: the step of the meta-optimizer (Adam) on log lr: at most about this relative change of the rate a step.
        every: adapt in every k-th step; the steps between are plain ones at the rate so far.
        optimizer: makes the inner optimizer from the parameters and the rate.

    Raises:
        ValueError: lr or meta_lr is out of range, or the inner optimizer's step is not proportional to its rate.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        meta_lr: float = 0.05,
        every: int = 1,
        optimizer: OptimizerFactory = torch.optim.Adam,
    ) -> None:
        super().__init__(network, lr, optimizer)
        if not 0 <= meta_lr < math.inf:
            raise ValueError(f"--model.meta_lr must be a finite number, 0 or more, got {meta_lr}.")
        if every < 1:
            raise ValueError(f"--model.every must be 1 or more, got {every}.")
        check_supported(self.inner_optimizer())
        self.meta_lr, self.every = meta_lr, every
        # of the rate over `lr`; made here, so that checkpoints hold it; has no gradient, which DDP would wait for
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[Optimizer]:
        """Build the inner optimizer on the network, and the meta-optimizer on the learning rate."""
        return [self.inner_optimizer(), torch.optim.Adam([self.log_scale], lr=self.meta_lr)]

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Take one step, an adapted one where it is due, and return what it saw."""
        optimizer, meta_optimizer = cast(list[Any], self.optimizers())
        loss = self.loss(batch["train"])
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.losses.append(loss.detach())
        if self.trainer.global_step % self.every:
            scale = self.log_scale.detach().exp()
            with scaled(optimizer, scale):
                optimizer.step()
            return {"loss": loss.detach(), "lr": self.lr * scale}
        return {"loss": loss.detach()} | self._adapted_step(optimizer, meta_optimizer, batch["val"])

    def _adapted_step(self, optimizer: Any, meta_optimizer: Any, batch: Batch) -> dict[str, Tensor | float]:
        """Take one adapted step (`hypergradient.step` has the letters)."""
        scale = self.log_scale.detach().exp()
        update = lookahead(optimizer, scale)
        optimizer.zero_grad()  # done with: the validation gradient takes its memory
        with no_trace(self.network):
            lookahead_loss = self.loss(batch)
            h = hypergradient(lookahead_loss, optimizer, update).sum()
        h = self.trainer.strategy.reduce(h, reduce_op="mean")  # over processes: one rate for all
        self.log_scale.grad = h.to(self.log_scale)
        meta_optimizer.optimizer.step()  # unwrapped: a second Lightning step would count this batch twice
        new_scale = self.log_scale.detach().exp()
        real_step(optimizer, update, new_scale / scale)
        return {"lookahead_loss": lookahead_loss.detach(), "hypergradient": h, "lr": self.lr * new_scale}
