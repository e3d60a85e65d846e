"""What cannot be trained, or gone on with, is found before a run is made of it."""

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule

from hypergradient import no_trace
from lightning_modules import SupervisedModule

SAMPLES = 2
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")  # of a checkpoint to go on from


def rehearse(module: SupervisedModule, data: LightningDataModule, trains: bool = True) -> None:
    """Compute the loss of two training samples; module and random stream are left as they were.

    trains: whether the network is to be trained, not evaluated alone.

    Raises:
        ValueError: the data, the network, or the two together, cannot be trained.
    """
    data.setup("fit")
    if trains and not any(p.requires_grad for p in module.parameters()):
        raise ValueError("the network has no weight to train: all are frozen")
    x, y = (tensor[:SAMPLES] for tensor in data.train)  # type: ignore[attr-defined]
    with no_trace(module.network, batch_statistics=True):
        try:
            loss = module.loss((x, y))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            given = f"inputs {tuple(x.shape[1:])} {x.dtype}, targets {tuple(y.shape[1:])} {y.dtype}"
            raise ValueError(f"the network cannot take the samples ({given}): {_line(error)}") from error
    if trains and (loss.dim() or not loss.requires_grad):
        raise ValueError("the loss must be a number that depends on the weights: is it detached, or not reduced?")


def check_checkpoint(path: Path, module: SupervisedModule, goes_on: bool) -> None:
    """Refuse a file that is damaged, foreign, or of another network.

    goes_on: whether training does, not evaluation alone.

    Raises:
        ValueError: what is wrong with it.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{path} is damaged, in its part {damaged}")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if missing := [part for part in PARTS[: None if goes_on else 1] if part not in checkpoint]:
        raise ValueError(f"{path} has no {', no '.join(missing)}: it is no checkpoint that train.py wrote")
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: value.shape for name, value in checkpoint["state_dict"].items()}
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            has, wants = (
                tuple(shape) if shape is not None else "nothing" for shape in (found.get(name), shapes.get(name))
            )
            raise ValueError(f"{path} is of another network: {name} is {has} there, and {wants} here")
    if goes_on:
        try:
            module.on_load_checkpoint(checkpoint)
        except KeyError as error:
            raise ValueError(f"{path} has no {error}: another arm, or another version, wrote it") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def note_other_data(trained: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Print a note where a checkpoint was trained on other data: this test set may have been among its samples.

    trained: the configuration of its run; empty where the store does not have that. now: of this one.
    """
    was, reads = (
        f"{data['class_path']}, data seed {data.get('init_args', {}).get('seed', 0)}"
        for data in (trained.get("data", now["data"]), now["data"])
    )
    if was != reads:
        print(f"note: the checkpoint was trained on {was}; this reads {reads}", file=sys.stderr)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
