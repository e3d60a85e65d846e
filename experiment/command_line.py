"""Translate the command line of a run: arm and task become the first --config files of LightningCLI."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from experiment import options
from experiment.options import BASE, CONFIGS, DEFAULT_ARM, DEFAULT_TASK
from experiment.process import refusing
from experiment.resume import read_checkpoint

load = get_loader("yaml")


def load_once(text: str) -> Any:
    """Load YAML as jsonargparse does, but refuse duplicate keys, of which YAML would use the last."""
    nodes = [yaml.compose(text, Loader=yaml.CSafeLoader)]
    for node in nodes:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            if twice := [str(key) for key in keys if keys.count(key) > 1]:
                raise yaml.YAMLError(f"duplicate key {twice[0]} in the mapping at line {node.start_mark.line + 1}")
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return load(text)


# for options and files alike
set_loader("yaml", load_once, (yaml.YAMLError,))


@dataclass(frozen=True)
class Line:
    """A parsed command line: subcommand, names of arm and task, path and content of the checkpoint, CLI options."""

    command: str
    arm: str
    task: str
    checkpoint: str | None
    saved: dict[str, Any] | None
    options: list[str]


def read(args: Sequence[str]) -> Line:
    """Put the files of base, task and arm, then the user's files, before all other options, whatever their order.

    The arm is given by `--optimizer NAME`, or by a YAML file that names the module's class. Without arm and task, a
    checkpoint supplies the configuration of its run. Invalid arguments end the process with status 2 and one line.
    """
    words = list(args)
    command = words.pop(0) if words and words[0] in options.SUBCOMMANDS else "fit"
    parser = options.one_run()
    own, rest = parser.parse_known_args(words)
    if own.ckpt_path and not Path(own.ckpt_path).is_file():
        parser.error(f"--ckpt_path: no file {own.ckpt_path}. A run prints the path of its checkpoint.")
    for before, word in pairwise(["", *rest]):
        if better := options.better(before, word):
            parser.error(f"unknown option {word}. Did you mean {better}?")
    # name -> options that define the arm; the other files override it
    arms = {name: ["--config", str(CONFIGS / f"{name}.yaml")] for name in own.optimizer}
    tasks, named, over = list(own.task), list[str](), list[str]()
    for file in own.config:
        with refusing(f"--config: {file} cannot be read: "):
            content = load_once(Path(file).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            parser.error(f"--config: {file} is not a mapping with `model:`, `data:` or `trainer:`")
        model, name = content.get("model"), content.get("optimizer")
        with refusing(f"--config: {file}: "):
            module = model.get("class_path") if isinstance(model, dict) else model
            if module:
                # if the file names a known arm, it overrides it; with another class, the arm is named after the file
                base = CONFIGS / f"{name}.yaml" if name in options.ARMS else None
                known = base is None or load(base.read_text(encoding="utf-8"))["model"]["class_path"] == module
                below = ["--config", str(base)] if base else []
                arms[options.label((name if known else None) or Path(file).stem)] = [*below, "--config", file]
            else:
                over += ["--config", file]
                if name:
                    arms[options.label(Path(file).stem)] = ["--config", str(CONFIGS / f"{options.arm(name)}.yaml")]
            named += [options.task(content["task"])] if content.get("task") and not own.task else []
    saved = read_checkpoint(own.ckpt_path) if own.ckpt_path else None
    if saved and not arms and not own.task:
        arms[saved["config"]["optimizer"]] = ["--config", yaml.safe_dump(saved["config"])]
        named.append(saved["config"]["task"])
    elif command != "fit" and not saved:
        parser.error(f"{command} needs --ckpt_path.")
    arms = arms or {DEFAULT_ARM: ["--config", str(CONFIGS / f"{DEFAULT_ARM}.yaml")]}
    for kind, found in (("arms", arms), ("tasks", tasks)):
        if len(found) > 1:
            parser.error(f"{' and '.join(found)} are two {kind}: a run has one. Use compare.py to compare arms.")
    [(name, arm)], task = arms.items(), (tasks + named + [DEFAULT_TASK])[0]
    chosen = ["--config", str(CONFIGS / "tasks" / f"{task}.yaml")] if tasks or named else []
    labels = [f"--optimizer={name}", f"--task={task}"]
    first = ["--config", str(BASE), *chosen, *arm, *over, *labels]
    return Line(command, name, task, own.ckpt_path, saved, [*first, *rest])
