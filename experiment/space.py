"""What tuning searches: option -> values, written as they are typed, `log:1e-5:1e-1`; and each arm's default."""

import argparse
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiment.options import SEARCHES

Space = dict[str, str]
RATE: Space = {"model.lr": "log:1e-5:1e-1"}
WITH_DECAY: Space = {"model.lr": "log:1e-4:1e-1", "model.optimizer.weight_decay": "log:1e-3:1.0"}
WITH_HYPER_RATE: Space = RATE | {"model.hyper_lr": "log:1e-8:1e-4"}


def default_space(arm: str) -> Space:
    """Return what is searched of an arm where nothing is said."""
    if Path(arm).stem.startswith("adamw"):
        return WITH_DECAY
    return WITH_HYPER_RATE if arm == "descent" else RATE


def dimension(text: str) -> tuple[str, str]:
    """Read one of SEARCHES into an option and its values.

    Raises:
        ArgumentTypeError: it does not read like one.
    """
    option, _, values = text.partition("=")
    try:
        if not option.startswith(("model.", "data.", "trainer.")) or option.startswith("trainer.logger"):
            raise ValueError(option)
        distribution(values)
    except (ValueError, yaml.YAMLError):
        raise argparse.ArgumentTypeError(f"must read like {SEARCHES}, got {text!r}") from None
    return option, values


def distribution(values: str) -> BaseDistribution:
    """Return what the values mean: log-uniform, uniform (whole numbers where both bounds are), or a choice.

    Raises:
        ValueError: nothing.
    """
    log, bounds = values.startswith("log:"), values.removeprefix("log:")
    if "," in values:
        return CategoricalDistribution([_choice(text) for text in values.split(",")])
    if all(bound.isdecimal() for bound in bounds.split(":")):
        low, high = map(int, bounds.split(":"))
        return IntDistribution(low, high, log=log)
    lowest, highest = map(float, bounds.split(":"))
    if not lowest < highest:
        raise ValueError(bounds)
    return FloatDistribution(lowest, highest, log=log)


def _choice(text: str) -> Any:
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value  # 1e-3 is a word to YAML
    except ValueError:
        return value


def suggest(trial: optuna.Trial, option: str, values: str) -> Any:
    """Return what the sampler proposes for an option."""
    match distribution(values):
        case FloatDistribution(low=low, high=high, log=log):
            return trial.suggest_float(option, low, high, log=log)
        case IntDistribution(low=low, high=high, log=log):
            return trial.suggest_int(option, low, high, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(option, choices)


def extremes(values: str) -> list[Any]:
    """Return the lowest and the highest value, or all choices: where one can be refused, one of these is."""
    match distribution(values):
        case CategoricalDistribution(choices=choices):
            return list(choices)
        case bounds:
            return [bounds.low, bounds.high]  # type: ignore[attr-defined]
