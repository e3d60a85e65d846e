"""The plain rule as a Lightning callback, for `lightning` and `pytorch_lightning`. This file alone imports them."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hypergradient.adapter import RateAdapter

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:  # a Trainer of either calls the hooks of a callback of the other: they are looked up by name
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError:
        from lightning.pytorch import Callback, LightningModule, Trainer

WHOLE = {"SingleDeviceStrategy", "DDPStrategy"}  # strategies that leave the weights whole; others derive from them

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


class AdaptLearningRate(Callback):
    """Adapts the rate of a module's optimizer by the gradient of the validation loss, and changes nothing else.

    Precision, clipping, accumulation, schedules, averaging, compilation, DDP: all as they were. The learned factor and
    the place in the validation batches are in every checkpoint. Logs `lr`, `hypergradient`, ... as Lightning logs.

    Args:
        loss: (module, batch) -> the mean validation loss of the batch, 0-d: `MyModule.loss`.
        batches: validation batches, taken in turn, again and again; default: the fit's validation loader.
        options: of `RateAdapter`: meta_lr, every, per_group, bounds, max_change, patience.

    Raises:
        ValueError: in `fit`, before the first step: several optimizers, one that cannot be adapted, a strategy that
            cuts up the weights, or no validation batches.
    """

    adapter: RateAdapter

    def __init__(self, loss: Loss, batches: Iterable[Any] | None = None, **options: Any) -> None:
        self.loss, self.batches, self.options = loss, batches, options
        self.position = 0
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer."""
        if not WHOLE & {base.__name__ for base in type(trainer.strategy).__mro__}:
            name = type(trainer.strategy).__name__
            raise ValueError(f"AdaptLearningRate cannot be used under {name}, which cuts up the weights: use DDP.")
        if len(trainer.optimizers) != 1:
            raise ValueError(f"AdaptLearningRate adapts one optimizer, and there are {len(trainer.optimizers)}.")
        self.looks = islice(self._endless(trainer), self.position, None)

        def validation_loss() -> Tensor:
            self.position += 1
            batch = trainer.precision_plugin.convert_input(next(self.looks))
            with trainer.precision_plugin.forward_context(), _silent(pl_module):
                return self.loss(pl_module, trainer.strategy.batch_to_device(batch))

        self.adapter = RateAdapter(trainer.optimizers[0], pl_module, validation_loss, **self.options)
        if self._state:
            self.adapter.load_state_dict(self._state)

    def _endless(self, trainer: Trainer) -> Iterator[Any]:
        loaders = trainer.val_dataloaders if self.batches is None else [self.batches]
        loaders = loaders if isinstance(loaders, list) else [loaders]
        if all(loader is None or (isinstance(loader, Sized) and len(loader) == 0) for loader in loaders):
            raise ValueError("AdaptLearningRate needs validation batches: a validation loader in fit(), or `batches`.")
        return chain.from_iterable(chain.from_iterable(repeat(loaders)))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log what the look saw, every `log_every_n_steps` steps: a call costs as much as a small step."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.adapter.last and every and trainer.global_step % every == 0:
            pl_module.log_dict({name: value.double().mean() for name, value in self.adapter.last.items()})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer as it was."""
        if hasattr(self, "adapter"):
            self.adapter.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the adapter, and the place in the validation batches."""
        return {"position": self.position, "adapter": self.adapter.state_dict()} if hasattr(self, "adapter") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, when training starts."""
        self.position, self._state = state_dict["position"], state_dict["adapter"]
