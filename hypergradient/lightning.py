"""The adapted rate as a Lightning callback, for `lightning` and `pytorch_lightning`. This file alone imports them."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hypergradient.adapter import RateAdapter
from hypergradient.average import Average
from hypergradient.batches import endless, has_len
from hypergradient.hooks import StepHooks
from hypergradient.one_step import OneStepAdapter
from hypergradient.validated import ValidatesAverage

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.utilities.combined_loader import CombinedLoader
else:  # a Trainer of either calls the hooks of a callback of the other: they are looked up by name
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
        from pytorch_lightning.utilities.combined_loader import CombinedLoader
    except ImportError:
        from lightning.pytorch import Callback, LightningModule, Trainer
        from lightning.pytorch.utilities.combined_loader import CombinedLoader

WHOLE = {"SingleDeviceStrategy", "DDPStrategy"}  # strategies that leave the weights whole, and what derives from them

Loss = Callable[[Any, Any], Tensor]


@contextmanager
def _silent(module: "LightningModule") -> Iterator[None]:
    """Let the module log nothing: what a look computes is no metric of the run."""
    names = [name for name in ("log", "log_dict") if name not in vars(module)]
    vars(module).update(dict.fromkeys(names, lambda *_, **__: None))
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]


class _Adapt(Callback):
    """What the callbacks have in common: they attach an adapter, keep its state, and log what it saw."""

    adapter: StepHooks

    def __init__(self, loss: Loss, batches: Iterable[Any] | None = None, **options: Any) -> None:
        self.loss, self.batches, self.options = loss, batches, options
        self._state: dict[str, Any] = {}
        self._fits = True  # whether what is loaded is for training

    def attach(self, trainer: Trainer, pl_module: LightningModule, batches: "Batches", loss: Loss) -> StepHooks:
        """Return the adapter of the trainer's optimizer."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take note of what follows: a checkpoint is loaded for a test, too."""
        self._fits = stage == "fit"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer."""
        name = type(self).__name__
        bases = {base.__name__ for base in type(trainer.strategy).__mro__}
        if not WHOLE & bases or "DeepSpeedStrategy" in bases:  # which derives from DDPStrategy
            strategy = type(trainer.strategy).__name__
            raise ValueError(f"{name} cannot be used under {strategy}, which cuts up the weights: use DDP.")
        if len(trainer.optimizers) != 1:
            raise ValueError(f"{name} adapts one optimizer, and there are {len(trainer.optimizers)}.")

        def loss(module: LightningModule, batch: Any) -> Tensor:
            batch = trainer.precision_plugin.convert_input(batch)
            with trainer.precision_plugin.forward_context(), _silent(module):
                return self.loss(module, batch)

        if hasattr(self, "adapter") and not self._state:
            warnings.warn(f"{name} begins anew: this is another fit, without a checkpoint.", stacklevel=2)
        self.adapter = self.attach(trainer, pl_module, Batches(self, trainer), loss)
        if self._state:
            self.adapter.load_state_dict(self._state)
        self._state = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log what was seen, every `log_every_n_steps` steps: a call costs as much as a small step."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.adapter.last and every and trainer.global_step % every == 0:
            pl_module.log_dict({name: torch.as_tensor(x).double().mean() for name, x in self.adapter.last.items()})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer as it was."""
        if hasattr(self, "adapter"):
            self.adapter.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the adapter; before training starts, the one that was loaded."""
        return self._state or (self.adapter.state_dict() if hasattr(self, "adapter") else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, when training starts."""
        if self._fits:
            self._state = state_dict


def require_whole_checkpoints(trainer: Any, name: str) -> None:
    """Refuse checkpoints of weights alone: Lightning would save other weights in them than it validated."""
    if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
        raise ValueError(f"{name} averages the weights: ModelCheckpoint(save_weights_only=True) would save others.")


class Batches:
    """The validation batches of a fit, or those that were given, on the fit's device."""

    def __init__(self, callback: _Adapt, trainer: Trainer) -> None:
        own, loaders = callback.batches, trainer.val_dataloaders
        self.loaders: list[Any] = CombinedLoader(loaders, "sequential").flattened if own is None else [own]
        self.trainer = trainer
        if all(loader is None or (has_len(loader) and len(loader) == 0) for loader in self.loaders):
            name = type(callback).__name__
            raise ValueError(f"{name} needs validation batches: a validation loader in fit(), or `batches`.")

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders)

    def __iter__(self) -> Iterator[Any]:
        for loader in self.loaders:
            for batch in loader:
                yield self.trainer.strategy.batch_to_device(batch)


class AdaptLearningRate(ValidatesAverage, _Adapt):
    """Adapts rate and weight decay of a module's optimizer by the rule of `meta`, and returns averaged weights.

    Precision, clipping, accumulation, schedules, compilation, DDP: as they were. The average is what is validated, what
    a checkpoint holds as the module's weights, and what the module has after the fit. Logs `lr`, `decay`,
    `hypergradient`, `lookahead_loss` as Lightning logs.

    Args:
        loss: (module, batch) -> the mean loss of a batch, 0-d, in training and validation: `MyModule.loss`.
        batches: validation batches, taken in turn, again and again; default: the fit's validation loader.
        options: of `RateAdapter`: lr, settings, window, part, decays, patience. window=0 leaves the averaging to you.

    Raises:
        ValueError: in `fit`, before the first step: several optimizers, one that cannot be adapted, a strategy that
            cuts up the weights, no validation batches, or checkpoints of weights alone, which would not be the average.
    """

    adapter: RateAdapter

    @property
    def running(self) -> Average | None:
        """The average; None before training, and with window=0."""
        return self.adapter.average if hasattr(self, "adapter") else None

    @property
    def averages(self) -> bool:
        """Whether there is to be one."""
        return self.options.get("window") != 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer."""
        super().on_train_start(trainer, pl_module)
        self.begin()

    def attach(self, trainer: Trainer, pl_module: LightningModule, batches: Batches, loss: Loss) -> RateAdapter:
        """Attach the whole rule."""
        if self.averages:
            require_whole_checkpoints(trainer, type(self).__name__)
        steps = trainer.estimated_stepping_batches
        clips_norm = trainer.gradient_clip_algorithm in (None, "norm")
        known = {"length": int(steps) if 0 < steps < math.inf else 0, "clip": trainer.gradient_clip_val}
        known = known if clips_norm else known | {"clip": None}
        return RateAdapter(trainer.optimizers[0], pl_module, loss, batches, **known | self.options)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take note of the batch."""
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Tell the adapter the batch, and its loss as it was before Lightning divided and scaled it."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.adapter.see(self.batch, loss * trainer.accumulate_grad_batches / (scaler.get_scale() if scaler else 1))


class AdaptOneStep(_Adapt):
    """Adapts the rate of a module's optimizer by the plain rule, one step ahead, and changes nothing else.

    Precision, clipping, accumulation, schedules, averaging, compilation, DDP: all as they were. The learned factor and
    the place in the validation batches are in every checkpoint. Logs `lr`, `hypergradient`, ... as Lightning logs.

    Args:
        loss: (module, batch) -> the mean validation loss of the batch, 0-d: `MyModule.loss`.
        batches: validation batches, taken in turn, again and again; default: the fit's validation loader.
        options: of `OneStepAdapter`: meta_lr, every, per_group, bounds, max_change, patience.

    Raises:
        ValueError: as `AdaptLearningRate`.
    """

    adapter: OneStepAdapter
    position = 0  # in the validation batches

    def attach(self, trainer: Trainer, pl_module: LightningModule, batches: Batches, loss: Loss) -> OneStepAdapter:
        """Attach the plain rule."""
        self.position = self.position if self._state else 0
        self.looks = endless(batches, self.position)

        def validation_loss() -> Tensor:
            self.position += 1
            return loss(pl_module, next(self.looks))

        return OneStepAdapter(trainer.optimizers[0], pl_module, validation_loss, **self.options)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the adapter, and the place in the validation batches."""
        state = super().state_dict()
        return {"position": self.position, "adapter": state} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, when training starts."""
        super().load_state_dict(state_dict.get("adapter", {}))
        if self._fits:
            self.position = state_dict.get("position", 0)
