"""Hypergradient descent (Baydin et al. 2018, arXiv 1703.04782), a baseline."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.supervised import OptimizerFactory, SupervisedModule


class HypergradientDescentModule(SupervisedModule):
    """Adapts the rate to the *training* loss, by the dot product of the gradient and the last step.

        α ← α - β ⟨∇L_train(θ), Δ(1)⟩        Δ(1): the last step, at rate 1

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits.
        lr: the learning rate to start from.
        hyper_lr: β. As published, the rate may become negative.
        optimizer: creates the optimizer from the parameters and the rate; Adam by default.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        hyper_lr: float = 1e-7,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(network, lr, optimizer)
        self.hyper_lr = hyper_lr
        self.before: list[Tensor] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the rate by the dot product of the gradient and the last step at rate 1; store the weights."""
        rate, params = optimizer.param_groups[0]["lr"], list(self.network.parameters())
        if self.before:
            pairs = [(p, before) for p, before in zip(params, self.before, strict=True) if p.grad is not None]
            product = sum(torch.sum(p.grad * ((p.detach() - before) / rate)) for p, before in pairs)
            for group in optimizer.param_groups:
                group["lr"] -= self.hyper_lr * float(product)
        self.before = [p.detach().clone() for p in params]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the weights before the last step too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["before"] = list(self.before)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the weights before the last step too."""
        super().on_load_checkpoint(checkpoint)
        self.before = list(checkpoint["before"])
