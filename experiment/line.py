"""What was typed, before it is parsed: one arm, read before the options that change it, wherever they stand."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from experiment.files import check_yaml
from experiment.presets import ARMS, CONFIGS


def did_you_mean(word: str, names: Sequence[str]) -> str:
    """Return a hint at the nearest name, with a blank in front; nothing where none is near."""
    near = get_close_matches(word, names, 1)
    return f" Did you mean {near[0]}?" if near else ""


def presets_first(args: Sequence[str]) -> list[str]:
    """Return the options in the order in which they are read over each other: arm, task, files, the others."""
    named = option_value(args, "--optimizer") is not None

    def rank(option: Sequence[str]) -> int:
        [(name, value)] = _given(option)
        if name in ("--config", "-c"):  # an arm of somebody's own, unless one is named: then it is read over that
            return 0 if module_of(Path(value)) and not named else 2
        return {"--optimizer": 0, "--task": 1}.get(name, 3)

    return [word for option in sorted(_options(args), key=rank) for word in option]


def option_value(args: Sequence[str], wanted: str) -> str | None:
    """Return the value of an option, the last one given; None where it is not there."""
    values = [value for name, value in _given(args) if name == wanted]
    return values[-1] if values else None


def require_one_arm(args: Sequence[str]) -> None:
    """Refuse two arms on one line, by whatever options, and files that cannot be read.

    Raises:
        ValueError: there are two, or a file is none.
    """
    arms: list[Path] = []
    for name, value in _given(args):
        if name == "--optimizer":
            if value not in ARMS:
                raise ValueError(
                    f"--optimizer: there is no arm {value!r}.{did_you_mean(value, ARMS)} Arms: {', '.join(ARMS)}."
                )
            arms.append(CONFIGS / f"{value}.yaml")
        elif name in ("--config", "-c") and Path(value).is_file():
            try:
                check_yaml(Path(value))
            except ValueError as error:
                raise ValueError(f"--config: {error}.") from error
            _require_no_name(Path(value))
            arms += [Path(value)] if module_of(Path(value)) else []
    for one, other in pairwise(dict.fromkeys(arm.resolve() for arm in arms)):
        ours = one.parent == other.parent == CONFIGS
        if ours or module_of(one) != module_of(other):
            raise ValueError(f"{one.stem} and {other.stem} are two arms: a run has one. Compare them by compare.py.")


def _require_no_name(file: Path) -> None:
    """Refuse a file that names an arm or a task, and does not hold them: it would be a label alone."""
    config = _read(file)
    for name in ("optimizer", "task"):
        if config.get(name) and not module_of(file):
            raise ValueError(f"--config: {name}: {config[name]} in {file} would be a label alone: type --{name}.")


def module_of(file: Path) -> str | None:
    """Return the class that a file says is trained; of one that says none, and is read over an arm, None."""
    model = _read(file).get("model") if file.is_file() else None  # else named by another file, relative to its folder
    return model.get("class_path") if isinstance(model, dict) else None


def _read(file: Path) -> dict[str, Any]:
    """Return what the file holds; nothing where it cannot be read: the parser says what is wrong with it."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}


def _options(args: Sequence[str]) -> Iterator[list[str]]:
    """Yield each option with its values."""
    option: list[str] = []
    for word in args:
        if word.startswith("-") and not _number(word) and option:
            yield option
            option = []
        option.append(word)
    if option:
        yield option


def _given(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, *values in _options(args):
        option, _, written = name.partition("=")
        yield option, written or (values[0] if values else "")


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
