"""Hypergradient descent (Baydin et al. 2018, arXiv 1703.04782): the strongest of the simple rivals."""

import torch
from torch import Tensor, nn

from lightning_modules.supervised import OptimizerFactory, Pair, SupervisedModule


class HypergradientDescentModule(SupervisedModule):
    """A classifier whose rate descends the *training* loss: one dot product of this gradient and the last step.

        α ← α - β ⟨∇L_train(θ), Δ(1)⟩        Δ(1): the last step, at rate 1

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits.
        lr: the learning rate to start from.
        hyper_lr: β. Nothing keeps the rate positive, as published.
        optimizer: makes the optimizer from the parameters and the rate.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        hyper_lr: float = 1e-7,
        optimizer: OptimizerFactory = torch.optim.Adam,
    ) -> None:
        super().__init__(network, lr, optimizer)
        self.hyper_lr = hyper_lr
        self.last: list[Tensor] = []

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Keep the weights: their change is the step."""
        self.before = [p.detach().clone() for p in self.network.parameters()]
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the rate along the product of the gradient with the last step at rate 1."""
        if not self.last:
            return
        products = [torch.sum(p.grad * u) for p, u in zip(self.network.parameters(), self.last, strict=True)]  # type: ignore[operator]
        for group in optimizer.param_groups:
            group["lr"] -= self.hyper_lr * float(sum(products))

    def on_train_batch_end(self, outputs: object, batch: Pair, batch_idx: int) -> None:
        """Keep the step at rate 1."""
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        pairs = zip(self.network.parameters(), self.before, strict=True)
        self.last = [(p.detach() - before) / rate for p, before in pairs]
