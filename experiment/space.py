"""What tuning searches: option -> values, written as they are typed (`log:1e-5:1e-1`), and each arm's default."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Space = dict[str, str]
RATE: Space = {"model.lr": "log:1e-5:1e-1"}
WITH_DECAY: Space = {"model.lr": "log:1e-4:1e-1", "model.optimizer.weight_decay": "log:1e-3:1.0"}
WITH_HYPER_RATE: Space = RATE | {"model.hyper_lr": "log:1e-8:1e-4"}
EXAMPLES = "model.lr=log:1e-5:1e-1, model.network.hidden=32:512 or model.network.layers=1,2,3"
DEFAULTS = (
    "model.lr=log:1e-5:1e-1; of AdamW model.lr=log:1e-4:1e-1 model.optimizer.weight_decay=log:1e-3:1; of descent "
    "model.hyper_lr=log:1e-8:1e-4 too; between two whole numbers, whole numbers"
)


def default_space(arm: str) -> Space:
    """Return what is searched of an arm by default."""
    if Path(arm).stem.startswith("adamw"):
        return WITH_DECAY
    return WITH_HYPER_RATE if arm == "descent" else RATE


def dimension(text: str) -> tuple[str, str]:
    """Read an option and its values, written like one of EXAMPLES.

    Raises:
        ArgumentTypeError: it does not read like one.
    """
    option, _, values = text.partition("=")
    try:
        if not option.startswith(("model.", "data.", "trainer.")) or option.startswith("trainer.logger"):
            raise ValueError(option)
        distribution(values)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must read like {EXAMPLES}, got {text!r}") from None
    return option, values


def distribution(values: str) -> "BaseDistribution":
    """Return what the values mean: log-uniform, uniform (whole numbers where both bounds are), or a choice.

    Raises:
        ValueError: they mean nothing.
    """
    from optuna import distributions  # late: the help does not wait for Optuna

    log, bounds = values.startswith("log:"), values.removeprefix("log:")
    if "," in values:
        return distributions.CategoricalDistribution([_choice(text) for text in values.split(",")])
    low, high = bounds.split(":")
    if low.isdecimal() and high.isdecimal():
        return distributions.IntDistribution(int(low), int(high), log=log)
    if not float(low) < float(high):
        raise ValueError(bounds)
    return distributions.FloatDistribution(float(low), float(high), log=log)


def _choice(text: str) -> Any:
    for read in (int, float, {"true": True, "false": False, "null": None}.__getitem__):
        try:
            return read(text)
        except (ValueError, KeyError):
            continue
    return text


def suggest(trial: "optuna.Trial", option: str, values: str) -> Any:
    """Return what the sampler proposes for an option."""
    match distribution(values):
        case object(choices=choices):
            return trial.suggest_categorical(option, choices)
        case object(low=int(low), high=high, log=log):
            return trial.suggest_int(option, low, high, log=log)
        case object(low=low, high=high, log=log):
            return trial.suggest_float(option, low, high, log=log)


def extremes(values: str) -> list[Any]:
    """Return the lowest and the highest value, or all choices: if any value is refused, one of these is."""
    match distribution(values):
        case object(choices=choices):
            return list(choices)
        case object(low=low, high=high):
            return [low, high]
    raise ValueError(values)
