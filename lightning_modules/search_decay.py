"""The rate found before the first step, the decay of the weights adapted during the run."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import no_trace
from hypergradient.sets import TensorSet
from lightning_modules.search import SearchModule
from lightning_modules.supervised import Batch, Pair


class SearchDecayModule(SearchModule):
    """A `SearchModule` whose weights decay, as the validation loss at their average A tells.

        each real step    θ ← (1 - η) θ + Δ(α)             at first η = 1 / (time constant · steps an epoch)
        hypergradient     h = dL_val(A)/d log η = -η ⟨∇L_val(A), θ⟩     what a little more decay would do
        decay             log η ← log η - meta_lr / √k · h / rms(h)     at the k-th look

    Meant to return averaged weights: `callbacks.TailAverage`. Without it, A is θ.

    Takes the options of `SearchModule`, and:

    Args:
        time_constant: of the decay at first: epochs after which a weight has forgotten 63 % of its past; inf for none.
        meta_lr: the greatest relative change of η at the first look; 0 for no look.
        every: training samples between looks.

    Raises:
        ValueError: an argument is out of range, or the optimizer's step is not proportional to its rate.
    """

    k: Tensor
    square: Tensor
    log_scale: Tensor

    def __init__(
        self, network: nn.Module, time_constant: float = 12.0, meta_lr: float = 0.6, every: int = 4096, **options: Any
    ) -> None:
        super().__init__(network, **options)
        for name, value in {"time_constant": time_constant, "every": every}.items():
            if not value > 0:
                raise ValueError(f"--model.{name} must be positive, got {value}.")
        if not 0 <= meta_lr < 10:
            raise ValueError(f"--model.meta_lr must lie between 0 and 10, got {meta_lr}.")
        self.time_constant, self.meta_lr, self.every, self.batch_size = time_constant, meta_lr, every, 0
        self.scale: float | None = None  # η over the first one; read from the buffer once after each look
        self.waiting: Batch | None = None  # the validation batch of the look that comes before the next step
        for name in ("k", "square", "log_scale"):  # buffers: checkpoints hold them
            self.register_buffer(name, torch.zeros(()))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Shrink the weights. The gradient is already that at the weights before."""
        with torch.no_grad():
            torch._foreach_mul_([p for p in self.network.parameters() if p.requires_grad], 1 - self.decay())

    def decay(self) -> float:
        """Return η, the part of each weight that a step takes away."""
        steps = float(self.trainer.num_training_batches) / self.trainer.accumulate_grad_batches
        self.scale = float(self.log_scale.exp()) if self.scale is None else self.scale
        return self.scale / (self.time_constant * steps)

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Look, if it is time after the last step, and move the decay; then train."""
        self._look()
        self.batch_size = max(self.batch_size, len(batch["train"][1]))  # an epoch's last batch may be smaller
        batches = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1  # not steps: gradients may be accumulated
        if self.meta_lr and (batches * self.batch_size) % self.every < self.batch_size:
            self.waiting = batch["val"]
        return super().training_step(batch, batch_idx)

    def _look(self) -> None:
        if self.waiting is None:
            return
        h = self._hypergradient(self.waiting)
        self.passes += len(self.waiting[1]) / self.batch_size
        self.waiting = None
        self.k += 1
        self.square += 0.1 * (h**2 - self.square)
        rms = (self.square / (1 - 0.9**self.k)).sqrt()
        self.log_scale -= self.meta_lr / self.k.sqrt() * h / rms.clamp(min=1e-30)
        self.scale = None

    def on_train_end(self) -> None:
        """Look, where the last step left it to the next."""
        self._look()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is to be looked at too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["look"] = self.waiting, self.batch_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(checkpoint)
        self.waiting, self.batch_size = checkpoint["look"]
        self.scale = None

    def _hypergradient(self, batch: Batch) -> Tensor:
        averaging = self.averaging()
        # without an average, BatchNorm's statistics alone are put aside
        average = (averaging and averaging.average) or TensorSet(self.network, [])
        weights = [p.detach() for p in self.network.parameters() if p.requires_grad]
        params = [p for p in self.network.parameters() if p.requires_grad]
        with torch.enable_grad(), no_trace(self.network, batch_statistics=True), average.in_place(keep=False):
            gradient = torch.autograd.grad(self._loss(batch), params, materialize_grads=True)
        pairs = zip(gradient, weights, strict=True)
        return -self.decay() * sum((torch.sum(g * p) for g, p in pairs), torch.zeros_like(self.k))
