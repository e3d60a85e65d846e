"""The command line of one run: an arm and a task become the first --config files of Lightning's CLI."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from experiment import options
from experiment.options import BASE, CONFIGS, DEFAULT_ARM, DEFAULT_TASK
from experiment.process import refusing
from tracking.runs import config_of


@dataclass(frozen=True)
class Line:
    """A command line: Lightning's command, the names of arm and task, and the options for Lightning's CLI."""

    command: str
    arm: str
    task: str
    checkpoint: str | None
    options: list[str]


def read(args: Sequence[str]) -> Line:
    """Put base, task, arm and the user's files before all other options, in any order they were typed.

    An arm is `--optimizer NAME`, or a YAML file that names the module's class; there is one. `validate` and `test` take
    the arm and the data of the run that wrote the checkpoint. Wrong arguments end with status 2 and one line.
    """
    words = list(args)
    command = words.pop(0) if words and words[0] in options.SUBCOMMANDS else "fit"
    parser = options.one_run()
    own, rest = parser.parse_known_args(words)
    if own.ckpt_path and not Path(own.ckpt_path).is_file():
        parser.error(f"--ckpt_path: no file {own.ckpt_path}. A run prints the path of its checkpoint.")
    # name -> the options that are the arm; the other files are read over it
    arms = {name: ["--config", str(CONFIGS / f"{name}.yaml")] for name in own.optimizer}
    tasks, over = list(own.task), []
    for file in own.config:
        with refusing(f"--config: {file} cannot be read: "):
            said = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            parser.error(f"--config: {file} is not a mapping with `model:`, `data:` or `trainer:`")
        if isinstance(said.get("model"), dict) and "class_path" in said["model"]:
            arms[said.get("optimizer") or Path(file).stem] = ["--config", file]
        else:
            over += ["--config", file]
        tasks += [said["task"]] if said.get("task") and not own.task else []
    if command != "fit" and own.ckpt_path and (trained := config_of(own.ckpt_path)):
        parts = ("seed_everything", "model", "data")
        # not as JSON, whose Infinity is a word to YAML
        arms[trained["arm"]] = [f"--{part}={yaml.safe_dump(trained[part], default_flow_style=True)}" for part in parts]
        tasks.append(trained["task"])
    elif command != "fit" and not arms:
        parser.error(f"{command} needs --ckpt_path of a run in MLflow, or an arm (--optimizer) and --ckpt_path.")
    arms = arms or {DEFAULT_ARM: ["--config", str(CONFIGS / f"{DEFAULT_ARM}.yaml")]}
    for kind, found in (("arms", arms), ("tasks", own.task)):
        if len(found) > 1:
            parser.error(f"{' and '.join(found)} are two {kind}: a run has one. Compare them by compare.py.")
    [(name, arm)], task = arms.items(), (tasks or [DEFAULT_TASK])[0]
    chosen = ["--config", str(CONFIGS / "tasks" / f"{task}.yaml")] if own.task else []
    labels = [f"--optimizer={name}", f"--task={task}"]
    return Line(command, name, task, own.ckpt_path, ["--config", str(BASE), *chosen, *arm, *over, *labels, *rest])
