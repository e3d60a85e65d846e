"""What tuning searches: option -> distribution, from a line like `model.lr=log:1e-5:1e-1`, and each arm's default."""

import argparse
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Space = dict[str, BaseDistribution]
RATE: Space = {"model.lr": FloatDistribution(1e-5, 1e-1, log=True)}
WITH_DECAY: Space = {
    "model.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "model.optimizer.weight_decay": FloatDistribution(1e-3, 1.0, log=True),
}
WITH_HYPER_RATE: Space = RATE | {"model.hyper_lr": FloatDistribution(1e-8, 1e-4, log=True)}
EXAMPLES = "model.lr=log:1e-5:1e-1, model.network.hidden=32:512 or model.network.layers=1,2,3"


def default_space(arm: str) -> Space:
    """Return what is searched of an arm where nothing is said."""
    if arm.startswith("adamw"):
        return WITH_DECAY
    return WITH_HYPER_RATE if arm == "descent" else RATE


def dimension(text: str) -> tuple[str, BaseDistribution]:
    """Read one of EXAMPLES: log-uniform, uniform (whole numbers where both bounds are), or a choice.

    Raises:
        ArgumentTypeError: it does not read like one.
    """
    option, _, values = text.partition("=")
    try:
        if not option.startswith(("model.", "data.", "trainer.")) or option.startswith("trainer.logger"):
            raise ValueError(option)
        return option, _distribution(values)
    except (ValueError, yaml.YAMLError):
        raise argparse.ArgumentTypeError(f"must read like {EXAMPLES}, got {text!r}") from None


def _distribution(values: str) -> BaseDistribution:
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


def suggest(trial: optuna.Trial, option: str, values: BaseDistribution) -> Any:
    """Return what the sampler proposes for an option."""
    match values:
        case FloatDistribution():
            return trial.suggest_float(option, values.low, values.high, log=values.log)
        case IntDistribution():
            return trial.suggest_int(option, values.low, values.high, log=values.log)
        case CategoricalDistribution():
            return trial.suggest_categorical(option, values.choices)
    raise TypeError(values)


def extremes(values: BaseDistribution) -> list[Any]:
    """Return the lowest and the highest value, or all choices: where one can be refused, one of these is."""
    match values:
        case FloatDistribution() | IntDistribution():
            return [values.low, values.high]
        case CategoricalDistribution():
            return list(values.choices)
    raise TypeError(values)


def described(space: Space) -> str:
    """Say what is searched, as a person reads it."""
    return ", ".join(f"{option} {_range(values)}" for option, values in space.items())


def _range(values: BaseDistribution) -> str:
    match values:
        case FloatDistribution() | IntDistribution():
            return f"{values.low:g} ... {values.high:g}{' (log-uniform)' if values.log else ''}"
        case CategoricalDistribution():
            return f"one of {', '.join(map(str, values.choices))}"
    raise TypeError(values)
