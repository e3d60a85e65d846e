"""Refuse values of options that Lightning accepts, but that train nothing, or not what was meant."""

import math

from jsonargparse import Namespace
from jsonargparse.typing import restricted_number_type

SEED = restricted_number_type(None, int, [(">=", 0), ("<", 2**32)])
POSITIVE = (
    *("max_epochs", "max_steps", "min_epochs", "min_steps", "accumulate_grad_batches", "gradient_clip_val"),
    *("limit_train_batches", "check_val_every_n_epoch", "val_check_interval"),
)
"""Options of the Trainer that must be positive and finite; `max_...` may also be -1, no limit."""


def refuse_out_of_range(trainer: Namespace) -> None:
    """Raise ValueError for an option of the Trainer that is out of range."""
    for option in POSITIVE:
        value = trainer[option]
        unlimited = value == -1 and option.startswith("max_")
        if isinstance(value, int | float) and not 0 < value < math.inf and not unlimited:
            raise ValueError(f"--trainer.{option} must be a positive finite number, got {value}.")
    if trainer.precision == "16-true":
        raise ValueError("--trainer.precision 16-true: Adam's eps of 1e-8 is 0 in float16. Use bf16-true.")
    callbacks = trainer.callbacks
    if callbacks is None or any(callback.class_path == "pytorch_lightning.Callback" for callback in callbacks):
        raise ValueError("--trainer.callbacks: null or an empty entry would remove the arm's callbacks. Name a class.")
