"""Check, before a run resumes, that its checkpoint is undamaged, has the same configuration and can be loaded."""

import math
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from experiment.identity import SHOWS_OR_STORES
from experiment.process import refusing

NOT_COMPARED = {"config", "hyper_parameters", "random"}
"""Parts of a checkpoint that are not needed to resume, or that depend on the machine."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """Return the content of a checkpoint, with the configuration of its run as `config`, or exit with status 2."""
    with refusing(f"--ckpt_path: {path} is damaged or from another version: "):
        # torch does not check the checksums
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"its part {damaged} is damaged")
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        labels = [saved["config"][name] for name in ("optimizer", "task")]
        if not all(isinstance(label, str) for label in labels):
            raise ValueError(f"invalid names of arm and task: {labels}")
    return saved


def differences(then: dict[str, Any], now: dict[str, Any], command: str, any_length: bool) -> tuple[list[str], ...]:
    """Return the differences to the checkpoint's configuration: those that change the run, and all others.

    An evaluation may use other data; a fit may be longer if nothing in it depends on its length (`any_length`).
    """
    one, other = flat(then), flat(now)
    refused, listed = list[str](), list[str]()
    others = [at for at in sorted(one.keys() | other.keys()) if one.get(at) != other.get(at)]
    classes = [at.removesuffix(".class_path") for at in others if at.endswith(".class_path")]
    for name in others:
        a, b = one.get(name), other.get(name)
        # if the class differs, its arguments are not compared
        if any(name.startswith(f"{above}.init_args.") for above in classes):
            continue
        part, _, option = name.partition(".")
        if command != "fit":
            changes = part == "model" or name == "trainer.precision"
        elif name == "trainer.max_epochs":
            changes = not (any_length and isinstance(a, int) and isinstance(b, int) and (b > a or b == -1))
        else:
            changes = part not in ("optimizer", "task") and option.split(".")[0] not in SHOWS_OR_STORES
        shown = name.replace(".init_args", "").removesuffix(".class_path")
        (refused if changes else listed).append(f"{shown} {a} → {b}")
    return refused, listed


def flat(config: Any, name: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by their dotted names."""
    if not isinstance(config, dict) or not config:
        return {name: config}
    return {at: value for key, part in config.items() for at, value in flat(part, f"{name}.{key}".strip(".")).items()}


def rehearse(trainer: Trainer, module: LightningModule, data: Any, path: str, saved: dict[str, Any]) -> None:
    """Resume a run for one step in copies of all its parts, or exit with status 2.

    trainer, module, data: copies, built from the configuration of the checkpoint. After they have loaded the file, they
    must save one of the same structure, so that no part is missing, superfluous or of another shape.
    """
    trainer.callbacks.append(Rehearsal(saved))  # type: ignore[attr-defined]
    with refusing(f"--ckpt_path: {path} cannot be resumed: "), suppress(StepTakenError):
        trainer.fit(module, datamodule=data, ckpt_path=path)


class StepTakenError(Exception):
    """Ends a rehearsal."""


class Rehearsal(Callback):
    """Compares the loaded state with the checkpoint and ends the fit after its first step."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self.saved = saved

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the types of values with those of a new run, in which only the weights are loaded."""
        self._compare(trainer, lambda saved, fresh: alike(fresh, saved))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the structure after everything is loaded."""
        self._compare(trainer, lambda saved, loaded: structure(loaded) == structure(saved))
        self.states = self._states(trainer)

    def _compare(self, trainer: Trainer, fits: Callable[[Any, Any], bool]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "copy.ckpt")
            trainer.save_checkpoint(file)
            own = torch.load(file, map_location="cpu", weights_only=True)
        for name in sorted((self.saved.keys() | own.keys()) - NOT_COMPARED):
            if not fits(self.saved.get(name), own.get(name)):
                raise ValueError(f"its {name} is incomplete, or from another network, optimizer or version")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """End the fit; fail if the optimizer had to initialize missing state."""
        if self._states(trainer) != self.states:
            raise ValueError("its optimizer_states are incomplete")
        raise StepTakenError

    def _states(self, trainer: Trainer) -> list[Any]:
        return [structure(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers]


def structure(value: Any) -> Any:
    """Return keys, lengths, and shapes and types of tensors, without values."""
    if isinstance(value, dict):
        return {key: structure(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [structure(part) for part in value]
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def alike(fresh: Any, saved: Any) -> bool:
    """Return whether values at common keys have the same types."""
    if isinstance(fresh, dict) and isinstance(saved, dict):
        return all(alike(fresh[key], saved[key]) for key in fresh.keys() & saved.keys())
    if isinstance(fresh, (list, tuple)) and isinstance(saved, (list, tuple)):
        return all(map(alike, fresh, saved))
    return fresh is None or type(fresh) is type(saved) or (isinstance(fresh, Real) and isinstance(saved, Real))


def unfinished(trainer: Trainer) -> str | None:
    """Return why a fit is incomplete, or None if it is complete."""
    done, loop = trainer.global_step, trainer.fit_loop
    batches = (trainer.max_epochs or 0) * trainer.num_training_batches
    if not done:
        return "no step was taken"
    if trainer.should_stop or 0 < trainer.max_steps <= done or not 0 < batches < math.inf:
        return None
    seen = loop.total_batch_idx + 1
    return f"the run saw {seen} of {batches:.0f} batches" if seen < batches else None
