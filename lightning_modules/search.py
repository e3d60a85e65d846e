"""A classifier that finds its learning rate before the first step, by hypothetical steps."""

import copy
import math
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import check_supported, no_trace, search_rate, starting_rate
from lightning_modules.supervised import Batch, OptimizerFactory, Pair, SupervisedModule

REFERENCE_BATCH = 64  # samples: the batch at which the bracket's rate is right as it is
JUDGES = 1024  # validation samples that judge a stretch


class SearchModule(SupervisedModule):
    """A classifier that needs no learning rate: the validation loss of hypothetical steps gives it, before step 1.

        bracket       s                    where the hypergradient of the first step changes sign
        rate          α = s √(b / 64)      b: samples a batch
        stretches     α ← the best of α/3, α, 3α, ... after a twelfth of the run, from θ₀; a smaller one by a tenth;
                      ties go twice as long

    A stretch is training as it will be, hooks `on_before_optimizer_step` included; but a batch a step, and not clipped.

    Args:
        network: (batch, ...) inputs -> (batch, classes) logits.
        lr: the learning rate to start from where `bracket` is off; not read otherwise.
        bracket: start at the rate at which the hypergradient changes sign.
        stretch: the length of a hypothetical stretch as a fraction of the run; 0 for none.
        trust: in the bracket's rate: a smaller rate must be better by this fraction of the validation loss.
        tie: larger rates than the best that end within this fraction of it go on twice as long, with the bracket.
        optimizer: makes the optimizer from the parameters and the rate; Adam by default.

    Raises:
        ValueError: an argument is out of range, or the optimizer's step is not proportional to its rate.
    """

    reads_validation = True

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        bracket: bool = True,
        stretch: float = 0.08,
        trust: float = 0.1,
        tie: float = 0.06,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(network, lr, optimizer)
        if not 0 <= stretch < 1:
            raise ValueError(f"--model.stretch is a fraction of the run, 0 or more and below 1, got {stretch}.")
        if not 0 <= trust < 1:
            raise ValueError(f"--model.trust is a fraction of the validation loss, 0 or more and below 1, got {trust}.")
        if not 0 <= tie < math.inf:
            raise ValueError(f"--model.tie is a fraction of the validation loss, 0 or more, got {tie}.")
        check_supported(self.inner_optimizer())
        self.bracket, self.stretch, self.trust, self.tie = bracket, stretch, trust, tie
        self.tried: list[dict[str, float]] = []  # what the search looked at

    @property
    def reads_lr(self) -> bool:  # type: ignore[override]
        """Whether the rate that was given is where the search begins."""
        return not self.bracket

    def require_one_process(self, processes: int) -> None:
        """Refuse several: stretches are trained outside of what joins their gradients."""
        if processes > 1:
            raise MisconfigurationException(
                f"--trainer.devices must be 1: {type(self).__name__} trains its stretches in one process. In several, "
                "take --optimizer meta, or `replay` the schedule that one process found."
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
        except ValueError as error:  # before step 1, so it is the set-up that is at fault
            over = "--trainer.max_time was over before one stretch of the search had ended: give more."
            raise MisconfigurationException(over if self._over() else str(error)) from error
        _set_rate(optimizer, rate)
        if self.logger:
            self.logger.log_hyperparams({"search/rate": rate})

    def _search(self, optimizer: Optimizer, batches: list[Pair]) -> float:
        """Return the rate; network and optimizer are left as they were."""
        # the bracket changes BatchNorm's statistics
        start = copy.deepcopy((self.network.state_dict(), optimizer.state_dict()))
        try:
            rate = self._bracketed_rate(optimizer, batches[0]) if self.bracket else self.lr
            if not self.stretch:
                return rate
            # who names the rate may be wrong either way
            trust, tie = (self.trust, self.tie) if self.bracket else (0.0, 0.0)
            untrained = self._validation_loss(batches)
            return search_rate(partial(self._judge, optimizer, start), rate, trust, tie, untrained)
        finally:
            self._set(optimizer, start, self.lr)

    def _first_batches(self, times: int = 1) -> list[Pair]:
        """Return the batches that the run begins with, on its device: one, or those of a stretch `times` as long."""
        if math.isinf(self.trainer.estimated_stepping_batches):
            raise ValueError("A stretch is part of a run that ends: give --trainer.max_epochs or --trainer.max_steps.")
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            name = type(self).__name__
            raise ValueError(f"{name} reads the first batches twice, so it needs a datamodule: fit(datamodule=).")
        length = max(1, times * math.ceil(self.stretch * self.trainer.estimated_stepping_batches))
        loader = data.train_dataloader()  # a fresh one: the same order
        epochs = chain.from_iterable(repeat(loader))  # each iter() is an epoch
        placed = (self.trainer.strategy.batch_to_device(batch) for batch, *_ in islice(epochs, length))
        return [self.trainer.precision_plugin.convert_input(batch) for batch in placed]

    def _bracketed_rate(self, optimizer: Optimizer, batch: Pair) -> float:
        def validation_loss() -> Tensor:
            self.passes += _samples(batch["val"]) / _samples(batch["train"])
            return self._loss(batch["val"])

        with no_trace(self.network, batch_statistics=True):
            return starting_rate(validation_loss, optimizer) * math.sqrt(_samples(batch["train"]) / REFERENCE_BATCH)

    def _loss(self, batch: Batch) -> Tensor:
        """Return the loss in the precision that the run will have."""
        with self.trainer.precision_plugin.forward_context():
            return self.loss(batch)

    def _judge(self, optimizer: Optimizer, start: Any, rate: float, times: int) -> float:
        loss = self._stretch(optimizer, start, rate, times)
        self.tried.append({"lr": rate, "times": times, "val_loss": loss})
        return loss

    def _stretch(self, optimizer: Optimizer, start: Any, rate: float, times: int) -> float:
        """Train from `start` and return the validation loss at the average of the second half."""
        if self._over():
            return math.inf
        batches = self._first_batches(times)
        self._set(optimizer, start, rate)
        params: list[Tensor] = list(self.network.parameters())
        average = [p.detach().clone() for p in params]
        with torch.random.fork_rng():  # dropout draws what the run will draw, and the run still does
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
        looks = looks[: math.ceil(JUDGES / _samples(looks[0]))]
        self.passes += sum(map(_samples, looks)) / _samples(batches[0]["train"]) / 3  # a forward pass is a third
        with no_trace(self.network, batch_statistics=True):
            return float(sum(self._loss(look) for look in looks) / len(looks))

    def _set(self, optimizer: Optimizer, start: Any, rate: float) -> None:
        network, state = copy.deepcopy(start)
        self.network.load_state_dict(network)
        optimizer.load_state_dict(state)
        optimizer.zero_grad()
        _set_rate(optimizer, rate)


def _set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _samples(batch: Batch) -> int:
    return len(batch[1])
