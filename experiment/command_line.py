"""The command line of one run: an arm and a task become the first --config files of Lightning's CLI."""

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
    """Read YAML as jsonargparse does; refuse a key that stands twice, of which YAML would take the last one."""
    nodes = [yaml.compose(text, Loader=yaml.CSafeLoader)]
    for node in nodes:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            if twice := [str(key) for key in keys if keys.count(key) > 1]:
                raise yaml.YAMLError(f"the key {twice[0]} stands twice, from line {node.start_mark.line + 1} on")
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return load(text)


# for all that the options and their files say
set_loader("yaml", load_once, (yaml.YAMLError,))


@dataclass(frozen=True)
class Line:
    """A command line: Lightning's command, names of arm and task, the checkpoint's content, Lightning's options."""

    command: str
    arm: str
    task: str
    checkpoint: str | None
    saved: dict[str, Any] | None
    options: list[str]


def read(args: Sequence[str]) -> Line:
    """Put base, task, arm and the user's files before all other options, in any order they were typed.

    An arm is `--optimizer NAME`, or a YAML file that names the module's class; there is one. With a checkpoint, and
    without an arm and a task, the configuration of its run takes their place. Wrong arguments end with status 2 and one
    line.
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
    # name -> the options that are the arm; the other files are read over it
    arms = {name: ["--config", str(CONFIGS / f"{name}.yaml")] for name in own.optimizer}
    tasks, named, over = list(own.task), list[str](), list[str]()
    for file in own.config:
        with refusing(f"--config: {file} cannot be read: "):
            said = load_once(Path(file).read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            parser.error(f"--config: {file} is not a mapping with `model:`, `data:` or `trainer:`")
        model, name = said.get("model"), said.get("optimizer")
        with refusing(f"--config: {file}: "):
            module = model.get("class_path") if isinstance(model, dict) else model
            if module:
                # of a known arm, all is kept that the file does not replace; with another class it is another arm
                base = CONFIGS / f"{name}.yaml" if name in options.ARMS else None
                known = base is None or load(base.read_text(encoding="utf-8"))["model"]["class_path"] == module
                below = ["--config", str(base)] if base else []
                arms[options.label((name if known else None) or Path(file).stem)] = [*below, "--config", file]
            else:
                over += ["--config", file]
                arms |= {name: ["--config", str(CONFIGS / f"{options.arm(name)}.yaml")]} if name else {}
            named += [options.task(said["task"])] if said.get("task") and not own.task else []
    saved = read_checkpoint(own.ckpt_path) if own.ckpt_path else None
    if saved and not arms and not own.task:
        arms[saved["config"]["optimizer"]] = ["--config", yaml.safe_dump(saved["config"])]
        named.append(saved["config"]["task"])
    elif command != "fit" and not saved:
        parser.error(f"{command} needs --ckpt_path.")
    arms = arms or {DEFAULT_ARM: ["--config", str(CONFIGS / f"{DEFAULT_ARM}.yaml")]}
    for kind, found in (("arms", arms), ("tasks", tasks)):
        if len(found) > 1:
            parser.error(f"{' and '.join(found)} are two {kind}: a run has one. Compare them by compare.py.")
    [(name, arm)], task = arms.items(), (tasks + named + [DEFAULT_TASK])[0]
    chosen = ["--config", str(CONFIGS / "tasks" / f"{task}.yaml")] if tasks or named else []
    labels = [f"--optimizer={name}", f"--task={task}"]
    first = ["--config", str(BASE), *chosen, *arm, *over, *labels]
    return Line(command, name, task, own.ckpt_path, saved, [*first, *rest])
