"""The rate found before the first step by hypothetical stretches, the decay of the weights adapted during the run."""

import copy
import math
from itertools import chain, islice, repeat
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import check_supported, no_trace, search_rate, starting_rate
from hypergradient.sets import TensorSet
from lightning_modules.supervised import Batch, OptimizerFactory, Pair, SupervisedModule

# samples: the batch size at which the bracket's rate is right as it is; validation samples that judge a stretch
REFERENCE_BATCH, JUDGES = 64, 1024


class SearchModule(SupervisedModule):
    """Training that needs no learning rate, and whose weights decay as the validation loss at their average A tells.

        bracket        s                    where the hypergradient of the first step changes sign
        rate           α = s √(b / 64)      b: samples a batch
        stretches      α ← the best of α/3, α, 3α, ... after a part of the run, from θ₀ (`hypergradient.search`)
        each step      θ ← (1 - η) θ + Δ(α)             at first η = 1 / (time constant · steps an epoch)
        hypergradient  h = dL_val(A)/d log η = -η ⟨∇L_val(A), θ⟩
        decay          log η ← log η - meta_lr / √k · h / rms(h)     at the k-th look

    A stretch is training as it will be, but a batch a step, and not clipped. Meant to return averaged weights:
    `callbacks.TailAverage`. Without it, A is θ.

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits.
        stretch: the length of a hypothetical stretch as a fraction of the run.
        time_constant: of the decay at first: epochs after which a weight has lost 63 % of its past; inf for no decay.
        meta_lr: the greatest relative change of η at the first look; 0 for no look.
        every: training samples between looks.
        optimizer: makes the optimizer from the parameters and the rate; Adam by default.
    """

    k: Tensor
    square: Tensor
    log_scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        stretch: float = 0.08,
        time_constant: float = 12.0,
        meta_lr: float = 0.6,
        every: int = 4096,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(network, optimizer=optimizer)
        for name, value, valid in (
            ("stretch", stretch, 0 < stretch < 1),
            ("time_constant", time_constant, time_constant > 0),
            ("every", every, every > 0),
            ("meta_lr", meta_lr, 0 <= meta_lr < 10),
        ):
            if not valid:
                raise ValueError(f"--model.{name} is out of range, got {value}: see --model.help SearchModule.")
        check_supported(self.inner_optimizer())
        self.stretch, self.time_constant, self.meta_lr, self.every = stretch, time_constant, meta_lr, every
        self.tried: list[dict[str, float]] = []  # what the search looked at
        self.batch_size = 0
        # η over the first one, read from the buffer once after each look
        self.scale: float | None = None
        self.waiting: Batch | None = None  # the validation batch of the look that comes before the next step
        # buffers: checkpoints hold them
        for name in ("k", "square", "log_scale"):
            self.register_buffer(name, torch.zeros(()))

    def require_one_process(self, processes: int) -> None:
        """Refuse several: stretches are trained outside of what joins their gradients."""
        if processes > 1:
            raise MisconfigurationException(
                "--trainer.devices must be 1: SearchModule trains its stretches in one process. For several, take "
                "--optimizer meta."
            )

    def on_train_start(self) -> None:
        """Find the rate, unless the run is resumed: then the optimizer has it."""
        super().on_train_start()
        self.require_one_process(self.trainer.world_size)
        if self.trainer.global_step:
            return
        [optimizer] = self.trainer.optimizers
        try:
            rate = self._search(optimizer, self._first_batches())
        except ValueError as error:
            # before step 1, so it is the set-up that is at fault
            over = "--trainer.max_time was over before one stretch of the search had ended: give more."
            raise MisconfigurationException(over if self._over() else str(error)) from error
        _set_rate(optimizer, rate)
        if self.logger:
            self.logger.log_hyperparams({"search/rate": rate})

    def _search(self, optimizer: Optimizer, batches: list[Pair]) -> float:
        """Return the rate; network and optimizer are left as they were."""

        def validation_loss() -> Tensor:
            self.passes += len(batches[0]["val"][1]) / len(batches[0]["train"][1])
            return self._loss(batches[0]["val"])

        def stretch(rate: float, times: int) -> float:
            loss = self._stretch(optimizer, start, rate, times)
            self.tried.append({"lr": rate, "times": times, "val_loss": loss})
            return loss

        # the bracket moves the weights and puts them back; BatchNorm's statistics are put back with the rest
        start = copy.deepcopy((self.network.state_dict(), optimizer.state_dict()))
        try:
            with no_trace(self.network, batch_statistics=True):
                bracket = starting_rate(validation_loss, optimizer)
            self._set(optimizer, start, self.lr)
            rate = bracket * math.sqrt(len(batches[0]["train"][1]) / REFERENCE_BATCH)
            return search_rate(stretch, rate, untrained=self._validation_loss(batches))
        finally:
            self._set(optimizer, start, self.lr)

    def _first_batches(self, times: int = 1) -> list[Pair]:
        """Return the batches that the run begins with, on its device: one, or those of a stretch `times` as long."""
        if math.isinf(self.trainer.estimated_stepping_batches):
            raise ValueError("A stretch is part of a run that ends: give --trainer.max_epochs or --trainer.max_steps.")
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError("SearchModule reads the first batches twice, so it needs a datamodule: fit(datamodule=).")
        length = max(1, times * math.ceil(self.stretch * self.trainer.estimated_stepping_batches))
        # a fresh loader: the same order; each iter() is an epoch
        epochs = chain.from_iterable(repeat(data.train_dataloader()))
        placed = (self.trainer.strategy.batch_to_device(batch) for batch, *_ in islice(epochs, length))
        return [self.trainer.precision_plugin.convert_input(batch) for batch in placed]

    def _loss(self, batch: Batch) -> Tensor:
        """Return the loss in the precision that the run will have."""
        with self.trainer.precision_plugin.forward_context():
            return self.loss(batch)

    def _stretch(self, optimizer: Optimizer, start: Any, rate: float, times: int) -> float:
        """Train from `start` and return the validation loss at the average of the second half."""
        batches = self._first_batches(times)
        self._set(optimizer, start, rate)
        params: list[Tensor] = list(self.network.parameters())
        average = [p.detach().clone() for p in params]
        # dropout draws what the run will draw, and the run still does
        with torch.random.fork_rng():
            for step, batch in enumerate(batches, 1):
                if self._over():
                    return math.inf
                optimizer.zero_grad()
                loss = self._loss(batch["train"])
                if not loss.isfinite():
                    return math.inf
                loss.backward()
                self.passes += 1
                self.on_before_optimizer_step(optimizer)
                optimizer.step()
                torch._foreach_lerp_(average, [p.detach() for p in params], 1 / max(1, step / 2))
        with torch.no_grad():
            torch._foreach_copy_(params, average)
        return self._validation_loss(batches)

    def _over(self) -> bool:
        """Return whether --trainer.max_time is over; end here where the process is to end."""
        if self.trainer.received_sigterm:
            raise SIGTERMException
        timers = [callback for callback in self.trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        return any((timer.time_remaining() or math.inf) <= 0 for timer in timers)

    @torch.no_grad()
    def _validation_loss(self, batches: list[Pair]) -> float:
        """Return the mean loss over the first validation batches, about JUDGES samples."""
        looks = [batch["val"] for batch in batches]
        looks = looks[: math.ceil(JUDGES / len(looks[0][1]))]
        # a forward pass is a third
        self.passes += sum(len(look[1]) for look in looks) / len(batches[0]["train"][1]) / 3
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        with no_trace(self.network, batch_statistics=True):
            loss = float(sum(self._loss(look) for look in looks) / len(looks))
        for buffer, value in zip(self.network.buffers(), buffers, strict=True):
            buffer.copy_(value)
        return loss

    def _set(self, optimizer: Optimizer, start: Any, rate: float) -> None:
        network, state = copy.deepcopy(start)
        self.network.load_state_dict(network)
        optimizer.load_state_dict(state)
        optimizer.zero_grad()
        _set_rate(optimizer, rate)

    def decay(self) -> float:
        """Return η, the fraction of each weight that a step takes away."""
        steps = float(self.trainer.num_training_batches) / self.trainer.accumulate_grad_batches
        self.scale = float(self.log_scale.exp()) if self.scale is None else self.scale
        return self.scale / (self.time_constant * steps)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Shrink the weights. The gradient is already that at the weights before."""
        with torch.no_grad():
            torch._foreach_mul_([p for p in self.network.parameters() if p.requires_grad], 1 - self.decay())

    def training_step(self, batch: Pair, batch_idx: int) -> dict[str, Tensor | float]:
        """Look, if it is time after the last step, and move the decay; then train."""
        if self.waiting is not None:
            self._look(self.waiting)
            self.waiting = None
        # an epoch's last batch may be smaller
        self.batch_size = max(self.batch_size, len(batch["train"][1]))
        # batches, not steps: gradients may be accumulated
        batches = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self.meta_lr and (batches * self.batch_size) % self.every < self.batch_size:
            self.waiting = batch["val"]
        return super().training_step(batch, batch_idx)

    def _look(self, batch: Batch) -> None:
        averaging, params = self.averaging(), [p for p in self.network.parameters() if p.requires_grad]
        # without an average, BatchNorm's statistics alone are put aside
        average = (averaging and averaging.average) or TensorSet(self.network, [])
        weights = [p.detach() for p in params]
        with torch.enable_grad(), no_trace(self.network, batch_statistics=True), average.in_place(keep=False):
            gradient = torch.autograd.grad(self._loss(batch), params, materialize_grads=True)
        pairs = zip(gradient, weights, strict=True)
        h = -self.decay() * sum((torch.sum(g * p) for g, p in pairs), torch.zeros_like(self.k))
        self.passes += len(batch[1]) / self.batch_size
        self.k += 1
        self.square += 0.1 * (h**2 - self.square)
        rms = (self.square / (1 - 0.9**self.k)).sqrt()
        self.log_scale -= self.meta_lr / self.k.sqrt() * h / rms.clamp(min=1e-30)
        self.scale = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is to be looked at too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["look"] = self.waiting, self.batch_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume with it."""
        super().on_load_checkpoint(checkpoint)
        self.waiting, self.batch_size = checkpoint["look"]
        self.scale = None


def _set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
