from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lightning_modules import MLP, HypergradientDescentModule
from tests.lightning_modules.fitting import fit


def test_the_rate_follows_the_published_rule(tmp_path: Path) -> None:
    """Against the rule written out for SGD: α ← α + β ⟨∇L(θ_t), ∇L(θ_{t-1})⟩ (Baydin et al. 2018, equation 5)."""
    gradients = []

    class Watched(HypergradientDescentModule):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            gradients.append(torch.cat([p.grad.flatten().clone() for p in self.network.parameters()]))  # type: ignore[union-attr]
            super().on_before_optimizer_step(optimizer)

    torch.manual_seed(0)
    fitting = fit(Watched(MLP(), lr=0.1, hyper_lr=0.01, optimizer=torch.optim.SGD), tmp_path, max_steps=5)
    rate = 0.1 + 0.01 * sum(float(before @ now) for before, now in pairwise(gradients))
    assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate, rel=1e-4)
