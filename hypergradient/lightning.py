"""A callback for `lightning` and `pytorch_lightning`."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypergradient.adapter import NAME, RateAdapter
from hypergradient.batches import has_len
from hypergradient.lightning_average import LightningModule, ReturnsAverage, Trainer
from hypergradient.sets import Average

# strategies that do not shard the weights; subclasses included
WHOLE = {"SingleDeviceStrategy", "DDPStrategy"}


class AdaptLearningRate(ReturnsAverage):
    """Adapts learning rate and weight decay of a module's optimizer by the rule of `Meta`, and averages its weights.

    Precision, clipping, accumulation, schedules, compilation and DDP work as without it. The averaged weights are
    validated, saved in checkpoints, and left in the module after the fit. Logs `lr`, `decay`, `hypergradient` and
    `lookahead_loss` every `log_every_n_steps` steps.

    Args:
        loss: (module, batch) -> the mean loss of a training or validation batch, a scalar: `MyModule.loss`.
        batches: validation batches, used cyclically; default: the fit's validation loaders.
        options: arguments of `RateAdapter`: length, hold, rate, decay, average, guard, settings, clip, decays,
            patience, cut.

    Attributes:
        adapter: the `RateAdapter`, once a fit has started.

    Raises:
        ValueError: in `fit`, before the first step: several optimizers, one that is not supported, a strategy that
            shards the weights, no validation batches, or checkpoints of weights alone.

    Example:
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> adapt = AdaptLearningRate(BoringModel.step)  # step(module, batch) returns the loss of a batch
        >>> trainer = Trainer(barebones=True, accelerator="cpu", max_epochs=1, callbacks=[adapt])
        >>> trainer.fit(BoringModel())
        >>> adapt.adapter.report()["steps"]
        64
    """

    adapter: RateAdapter

    def __init__(self, loss: Callable[[Any, Any], Any], batches: Iterable[Any] | None = None, **options: Any) -> None:
        self.loss, self.batches, self.options = loss, batches, options
        self.averages = options.get("average", True)

    @property
    def average(self) -> Average | None:
        """The average; None before training, and where the weights are not averaged."""
        meta = self.adapter.meta if hasattr(self, "adapter") else None
        return meta.average if self.averages and meta and meta.params else self.restored

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer, before that loads the state of a checkpoint."""
        bases, strategy = {base.__name__ for base in type(trainer.strategy).__mro__}, type(trainer.strategy).__name__
        # DeepSpeedStrategy derives from DDPStrategy
        if not WHOLE & bases or "DeepSpeedStrategy" in bases:
            raise ValueError(f"AdaptLearningRate cannot be used with {strategy}, which shards the weights: use DDP.")
        if len(trainer.optimizers) != 1:
            raise ValueError(f"AdaptLearningRate adapts one optimizer, but the module has {len(trainer.optimizers)}.")
        if not pl_module.automatic_optimization:
            raise ValueError("AdaptLearningRate needs automatic optimization: otherwise use RateAdapter.")
        if self.averages:
            self.refuse_other_weights(trainer)
        if not trainer.ckpt_path:
            self.restored = None
            if hasattr(self, "adapter"):
                warnings.warn("AdaptLearningRate starts again: this fit has no checkpoint.", stacklevel=2)
        precision = trainer.precision_plugin

        def loss(module: LightningModule, batch: Any) -> Any:
            with _silent(module), precision.forward_context():
                if not isinstance(batch, _Validation):
                    return self.loss(module, batch)
                with _validating(trainer):
                    # as Lightning transfers its own validation batches
                    on_host = module._on_before_batch_transfer(precision.convert_input(batch.values), batch.loader)
                    return self.loss(module, trainer.strategy.batch_to_device(on_host, dataloader_idx=batch.loader))

        known: dict[str, Any] = {
            "length": None,
            "clip": None if trainer.gradient_clip_algorithm == "value" else trainer.gradient_clip_val,
        }
        self.batches_of_fit = _Batches(self.batches, trainer)
        self.adapter = RateAdapter(trainer.optimizers[0], pl_module, loss, self.batches_of_fit, **known | self.options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the length of the run, and check that there are validation batches."""
        if has_len(self.batches_of_fit) and not len(self.batches_of_fit):
            wanted = "a validation loader in fit(), a validation_step and limit_val_batches above 0, or `batches`"
            raise ValueError(f"AdaptLearningRate needs validation batches: {wanted}.")
        steps = trainer.estimated_stepping_batches
        if "length" not in self.options and 0 < steps < math.inf:
            self.adapter.meta.length = int(steps)
        self.adapter.meta.prepare()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Copy a part of the batch for the hypothetical step, before the module can modify it."""
        self.part = self.adapter.part(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Register the batch and its loss, without Lightning's division and scaling."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.adapter.see(self.part, loss * trainer.accumulate_grad_batches / (scaler.get_scale() if scaler else 1))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log the rate and the last look every `log_every_n_steps` steps: a call costs as much as a small step."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.adapter.last and every and trainer.global_step % every == 0:
            pl_module.log_dict(self.adapter.last)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the adapter's state also after the fit, when it is detached from the optimizer."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        for state in checkpoint.get("optimizer_states", ()) if hasattr(self, "adapter") else ():
            state.setdefault(NAME, self.adapter.state_dict())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach from the optimizer."""
        if hasattr(self, "adapter"):
            self.adapter.remove()


class _Validation(NamedTuple):
    values: Any
    loader: int


class _Batches:
    """The given validation batches, or those of the fit, within its limits. A reload starts a new round."""

    def __init__(self, batches: Iterable[Any] | None, trainer: Trainer) -> None:
        self.batches, self.trainer = batches, trainer

    @property
    def loaders(self) -> list[Any]:
        """The loaders, whose random streams looks do not change."""
        return [self.batches] if self.batches is not None else list(self.combined.flattened)

    @property
    def combined(self) -> Any:
        """The fit's combined validation loader; created here, if the fit has not validated yet."""
        loop = self.trainer.fit_loop.epoch_loop.val_loop
        if loop._combined_loader is None:
            with torch.random.fork_rng(devices=[]), _validating(self.trainer):
                loop.setup_data()
        return loop._combined_loader

    def __len__(self) -> int:
        if self.batches is not None:
            return len(self.batches)  # type: ignore[arg-type]
        count: Any = {"sequential": sum, "min_size": min}.get(getattr(self.combined, "_mode", ""), max)
        return count(self.trainer.num_val_batches or [0])  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[_Validation]:
        if self.batches is not None:
            yield from (_Validation(batch, 0) for batch in _unshared(self.batches))
            return
        shared = self.combined
        own = copy.copy(shared)
        own.flattened, own.limits = [_unshared(loader) for loader in shared.flattened], self.trainer.num_val_batches
        for batch, _, number in own:
            yield _Validation(batch, number)
            if self.combined is not shared:
                return


def _unshared(loader: Any) -> Any:
    """Return a copy of a loader with its own iterator: a validation would restart a shared one."""
    if hasattr(loader, "_iterator"):
        loader = copy.copy(loader)
        loader._iterator = None
    return loader


@contextmanager
def _validating(trainer: Trainer) -> Iterator[None]:
    """Set the Trainer to its validation stage, which modules and loaders read."""
    trainer.validating = True
    try:
        yield
    finally:
        trainer.training = True


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Disable the module's logging: the losses of looks are not metrics of the run."""
    names = [name for name in ("log", "log_dict") if name not in vars(module)]
    vars(module).update(dict.fromkeys(names, lambda *_, **__: None))
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]
