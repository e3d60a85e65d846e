"""Another hyperparameter by the same gradient: the shrink of the weights, during the run."""

from typing import Any

import torch
from torch import Tensor

from hypergradient import no_trace
from lightning_modules.classifier import Pair
from lightning_modules.meta_classifier import MetaClassifier


class ShrinkClassifier(MetaClassifier):
    """A `MetaClassifier` whose shrink follows the hypergradient of the validation loss at the averaged weights A.

        hypergradient    h = dL_val(A)/d log η = -η ⟨∇L_val(A), θ⟩      what shrinking by a little more would do
        shrink           log η ← log η - meta_lr / √k · h / rms(h)      at the k-th look

    Takes the options of `MetaClassifier`, and needs `callbacks.TailAverage`.

    Args:
        meta_lr: the greatest relative change of η at the first look.
        every: training samples between looks.
    """

    k: Tensor
    square: Tensor
    log_scale: Tensor

    def __init__(self, *args: Any, meta_lr: float = 0.4, every: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meta_lr, self.every, self.batch_size = meta_lr, every, 0
        for name in ("k", "square", "log_scale"):  # buffers: checkpoints hold them
            self.register_buffer(name, torch.zeros(()))

    def shrink(self, group: dict[str, Any]) -> float:
        """Return η, the part of each weight that a step takes away."""
        return super().shrink(group) * float(self.log_scale.exp())

    def on_train_batch_end(self, outputs: Any, batch: Pair, batch_idx: int) -> None:
        """Look, every so many samples, and move the shrink."""
        size = len(batch["train"][1])
        if (self.trainer.global_step * size) % self.every >= size:
            return
        h = self._hypergradient(batch)
        self.batch_size = max(self.batch_size, size)  # an epoch's last batch may be smaller: a pass is of a whole one
        self.passes += len(batch["val"][1]) / self.batch_size
        self.k += 1
        self.square += 0.1 * (h**2 - self.square)
        rms = (self.square / (1 - 0.9**self.k)).sqrt()
        self.log_scale -= self.meta_lr / self.k.sqrt() * h / rms.clamp(min=1e-30)

    def on_train_end(self) -> None:
        """Log the passes again: the looks are among them now."""
        if self.logger:
            self.logger.log_metrics({"search/passes": self.passes}, step=self.trainer.global_step)

    def _hypergradient(self, batch: Pair) -> Tensor:
        [average] = [callback.average for callback in self.trainer.callbacks if hasattr(callback, "average")]  # type: ignore[attr-defined]
        params = list(average.network.parameters())
        with torch.enable_grad(), no_trace(average.network, batch_statistics=True):
            gradient = torch.autograd.grad(average.loss(batch["val"]), params)
        pairs = zip(gradient, self.network.parameters(), strict=True)
        return -self.shrink({}) * sum((torch.sum(g * p.detach()) for g, p in pairs), torch.zeros_like(self.k))
