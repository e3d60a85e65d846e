"""A hypothetical copy of the run at a larger learning rate, which says what a larger rate would have done.

real step            θ  ← θ  + Δ(α; g)
hypothetical step    θ' ← θ' + Δ'(2α; g')          g': the gradient at θ', of a part of the same batch
pull                 θ' ← θ' + .1 (θ - θ')         the state of its optimizer likewise
averages             A ← A + (θ - A) / max(1, .1 t)       Z ← Z + (θ' - θ - Z) / max(1, .1 t)
hypergradient        h = ⟨∇L_val(A), Z⟩

Without the pull and for a factor near 1, (θ' - θ) / log(factor) is dθ/d log α of the whole run so far, by forward-mode
differentiation; the pull discounts what lies more than about ten steps back. One step ahead is blind to what a rate
does later (Wu et al. 2018, arXiv 1803.02021). A is what validation measures: its noise is averaged away, so h does not
mistake noise for curvature.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient.copies import clear_state, copy_network, copy_onto, follow_modes, load_state, paired_states
from hypergradient.processes import mean_over_processes
from hypergradient.trace import gpus, no_trace

PARTS = ("network", "optimizer", "difference", "steps")  # of its state
SCHEDULED = ("momentum", "betas", "weight_decay")  # what schedules change beside the rate


class Twin:
    """The hypothetical run beside a real one, and what the difference of the two makes of the validation loss.

    Args:
        network: of the real run; copied.
        optimizer: of the real run, before or between steps; copied with its state.
        factor: of the hypothetical learning rate over the real one.
        pull: the part of the way back to the real run, after each step.
        window: the part of the run over which weights and differences are averaged.
        clip: the norm to which gradients are clipped, as the real run's are; None for none.
        decays: whether the weight decay shrinks a parameter; None: all are shrunk.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        factor: float = 2.0,
        pull: float = 0.1,
        window: float = 0.1,
        clip: float | None = None,
        decays: Callable[[Tensor], bool] | None = None,
    ) -> None:
        self.real_optimizer, self.factor, self.pull, self.window = optimizer, factor, pull, window
        self.clip = clip if clip and clip > 0 else None  # as Lightning has it
        self.source, self.network = network, copy_network(network)
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.mask = [p.requires_grad and id(p) in moved for p in network.parameters()]
        self.real, self.own = self.trained(network), self.trained(self.network)
        self.optimizer = copy_onto(optimizer, dict(zip(self.real, self.own, strict=True)))
        self.decays = [decays is None or decays(p) for p in self.real]
        # 16-bit numbers would round each step's part away
        self.difference = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in self.real]
        self.steps = 0

    def trained(self, network: nn.Module) -> list[Tensor]:
        """Return the parameters, of the network or of a copy of it, that the optimizer moves."""
        return [p for p, moved in zip(network.parameters(), self.mask, strict=True) if moved]

    @torch.no_grad()
    def shrink(self, params: list[Tensor], decay: float) -> None:
        """Take that part of each weight away, of the real run's or of the hypothetical one's."""
        if shrunk := [p for p, decays in zip(params, self.decays, strict=True) if decays]:
            torch._foreach_mul_(shrunk, 1 - decay)

    def step(self, loss: Callable[[nn.Module], Tensor], decay: float = 0.0) -> None:
        """Take the hypothetical step, after the real one, and average the difference.

        loss: of a network on a part of the real step's batch, 0-d. decay: the part of each weight that the real step
        took away.
        """
        follow_modes(self.network, self.source)
        with torch.enable_grad(), torch.random.fork_rng(devices=gpus(self.network)):  # dropout: the real stream stays
            gradients = gradients_of(loss(self.network), self.own)
        for p, q, g in zip(self.real, self.own, mean_over_processes(gradients), strict=True):
            q.grad = None if p.grad is None else g  # what the real step left alone
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.own, self.clip)
        for group, real in zip(self.optimizer.param_groups, self.real_optimizer.param_groups, strict=True):
            group.update({name: real[name] for name in SCHEDULED if name in real}, lr=self.factor * real["lr"])
        self.shrink(self.own, decay)
        with torch.no_grad():
            self.optimizer.step()
            torch._foreach_lerp_(self.own, self.real, self.pull)
            averages, real_averages = paired_states(self.optimizer, self.own, self.real_optimizer, self.real)
            if averages:
                torch._foreach_lerp_(averages, real_averages, self.pull)
            self.steps += 1
            weight = 1 / max(1.0, self.window * self.steps)
            steps = torch._foreach_sub(self.own, self.real)
            torch._foreach_lerp_(
                self.difference, [s.to(z) for s, z in zip(steps, self.difference, strict=True)], weight
            )

    def hypergradients(self, validation_loss: Callable[[nn.Module], Tensor], average: nn.Module) -> Tensor:
        """Return the validation loss and its derivatives along the rate and the decay: (3,) float64 on the CPU.

            ⟨∇L_val(A), Z⟩       -⟨∇L_val(A), θ⟩            (the first with the other sign for a factor below 1)

        validation_loss: of a network, 0-d, on a validation batch. average: the network at A, same layout.
        """
        params, up = self.trained(average), math.copysign(1.0, math.log(self.factor))
        with torch.enable_grad(), no_trace(average, batch_statistics=True):
            loss = validation_loss(average)
            gradients = gradients_of(loss, params)
        with torch.no_grad():
            products = [
                torch.stack([up * torch.sum((g.conj() * z).real), -decays * torch.sum((g.conj() * p).real)])
                for g, z, p, decays in zip(gradients, self.difference, self.real, self.decays, strict=True)
            ]
            h = torch.stack(products).sum(0)
            [seen] = mean_over_processes([torch.cat([loss.detach().reshape(1).to(h), h])])
        return seen.cpu().double()  # at once: the processor waits once

    def reset(self) -> None:
        """Begin again where the real run stands, whose optimizer has been cleared."""
        with torch.no_grad():
            torch._foreach_copy_([*self.own, *self.network.buffers()], [*self.real, *self.source.buffers()])
            torch._foreach_zero_(self.difference)
        clear_state(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on: tensors, numbers and dictionaries alone."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "difference": self.difference,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        load_state(self.network, state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch._foreach_copy_(self.difference, list(state["difference"]))
        self.steps = state["steps"]


def gradients_of(loss: Tensor, params: list[Tensor]) -> list[Tensor]:
    """Return the gradient of a network's loss along its parameters.

    Raises:
        ValueError: it depends on none of them, so that nothing could be adapted.
    """
    gradients = torch.autograd.grad(loss, params, allow_unused=True)
    if params and all(g is None for g in gradients):
        raise ValueError(
            "The loss does not depend on the weights of the network that it was given, a copy of the one in training: "
            "compute it with that network."
        )
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, params, strict=True)]
