"""YAML files that a user names: what no parser should be given is refused first."""

from pathlib import Path

import yaml

LARGEST = 100_000  # nodes, aliases written out: a few lines can stand for billions


def check_yaml(path: Path) -> None:
    """Refuse a file that cannot be a configuration.

    Raises:
        ValueError: it is no text, no YAML, no mapping, or too large once its aliases are written out.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path} is empty, or no mapping: write `model:`, `data:`, `trainer:` with what they hold")
    if _size(root, {}) > LARGEST:
        raise ValueError(f"{path} stands for more than {LARGEST} values, by its aliases")


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    if id(node) not in known:
        known[id(node)] = float("inf")  # should it hold itself
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + (0 if isinstance(inner, str) else sum(_size(part, known) for part in inner))
    return known[id(node)]
