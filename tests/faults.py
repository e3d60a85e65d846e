"""Faults and their messages, as tables for the tests; `python -m tests.faults` writes them to docs/faults.md."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from experiment.options import ROOT
from reporting.tables import markdown
from tests import injections
from tests.injections import (
    database_stops,
    file_limit,
    full_disk,
    full_tmpdir,
    no_stdout,
    read_only,
    removed,
    server_restarts,
    server_silent,
    server_stops,
)

BAD_INPUT = {
    "train.py --optimizer adamm": r"--optimizer: unknown arm 'adamm'. Did you mean adam\? Choose from: adam, ",
    "train.py --optimizer adam --optimizer meta": r"adam and meta are two arms: a run has one",
    "train.py --config nowhere.yaml": r"--config: nowhere.yaml cannot be read: .*No such file",
    "train.py --model.lr -0.1": r"--model.lr must be a positive finite number, got -0.1",
    "train.py --model.lrr 0.1": r"Option 'lrr' is not accepted",
    "train.py --optimizer adam --model.meta_lr 1": r"Option 'meta_lr' is not accepted",
    "train.py --model.network.hidden 0": r"--model.network.hidden must be 1 or more, got 0",
    "train.py --data.batch_size 4001": r"--data.batch_size must lie between 1 and 4000 here, got 4001",
    "train.py --data.seed -1": r"--data.seed must lie between 0 and 1000 here, got -1",
    "train.py --optimizer meta_onestep --trainer.gradient_clip_val 1": r"gradient clipping is not supported",
    "train.py --lr 0.1": r"unknown option --lr. Did you mean --model.lr\?",
    "train.py --trainer.accumulate_grad_batches -1": r"batches must be a positive finite number, got -1",
    "train.py --ckpt_path last": r"--ckpt_path: no file last",
    "train.py test": r"test needs --ckpt_path",
    "train.py predict": r"unrecognized arguments: predict",
    "tune.py": r"the following arguments are required: --optimizer",
    "tune.py --optimizer nowhere.yaml": r"--optimizer: unknown arm or file 'nowhere.yaml'",
    "tune.py --optimizer adam --trials 0": r"--trials: must be a whole number of 1 or more, got '0'",
    "tune.py --optimizer adam --seed -1": r"--seed: must be a whole number from 0 to 2\^32 - 1, got '-1'",
    "tune.py --optimizer adam --search model.lr=log:1:0.1": r"--search: model.lr=log:1:0.1 must read like ",
    "tune.py --optimizer adam --search data.batch_size=3999:9000": r"--data.batch_size must lie between 1 and 4000",
    "tune.py --optimizer adam --trainer.logger=false": r"--trainer.logger cannot be given here: the runs are read back",
    "tune.py --optimizer adam --ckpt_path x.ckpt": r"--ckpt_path cannot be given here: each run starts from its first",
    "tune.py --optimizer adam --storage sqlite:////nowhere/o.db": r"--storage sqlite:.* cannot be used .*unable to",
    "tune.py --optimizer adam --storage postgresql://u:secret@h/o": r"--storage: .* set MLFLOW_TRACKING_URI",
    "compare.py --optimizers adamm": r"--optimizers: unknown arm or file 'adamm'",
    "compare.py --optimizers adam adam": r"--optimizers: two arms have the same name",
    "compare.py --optimizer adam": r"--optimizer cannot be given here: use --optimizers",
    "compare.py --initial-lrs 0": r"--initial-lrs: must be a positive finite number, got '0'",
    "compare.py --cluster tcp://127.0.0.1:1": r"--cluster: .* set MLFLOW_TRACKING_URI",
    "results.py --stages nothing": r"--stages: invalid choice: 'nothing'",
    "train.py --data tests.broken.Broken --data.fault empty": r"train has 0 inputs and 0 targets",
    "train.py --data tests.broken.Broken --data.fault mismatch": r"train has 200 inputs and 199 targets",
    "train.py --data tests.broken.Broken --data.fault float64-targets": r"train has torch.float64 targets; classes",
    "train.py --data tests.broken.Broken --data.fault nan": r"train holds numbers that are not finite",
    "train.py --data tests.broken.Broken --data.fault integer-inputs": r"the network cannot take .*40,\) torch.int64",
    "train.py --data tests.broken.Broken --data.fault classes": r"the network cannot take the samples",
    "train.py --data tests.broken.Broken --data.fault no-label": r"train has the label -100; classes count from 0",
    "train.py --data tests.broken.Broken --data.fault last-label": r"the network cannot take .*Target 10 is out of",
    "train.py --data tests.broken.Broken --data.fault values": r"the network cannot take .*targets \(\) torch.float32",
    "train.py --data tests.broken.Broken --data.fault wide": r"the network cannot take .*inputs \(80,\) torch.float32",
    "train.py --model.network tests.broken.Pair": r"the network cannot take .*output must be one tensor, not a tuple",
    "train.py --model.network tests.broken.Frozen": r"the loss must be a scalar that depends on weights",
    "train.py --model nowhere.Mine": r"No module named 'nowhere': its folder must be in PYTHONPATH, or the package in",
    "train.py --model tests.broken.Unreduced": r"the loss must be a scalar that depends on weights",
}
"""Command -> pattern of its one line of output. Each exits with status 2 before a run is stored."""


class Fault(NamedTuple):
    """The expected message (a pattern) and exit status of a fault, what is saved, and how it is injected.

    inject: bytes of a YAML file, the address of a store, options to resume a run of `meta`, or a context manager in
    `tests.injections`; None if the test injects the fault itself.
    run: the final status in MLflow, of the run or of the parent run of a sweep.
    """

    line: str
    status: int
    kept: str = ""
    inject: bytes | str | list[str] | Callable[[Path], AbstractContextManager[injections.Struck]] | None = None
    run: str = ""


# number of wrong options on the page
SHOWN = 6
STATE = "the last checkpoint, all metrics; FAILED"
LATER = "everything; FINISHED after `tracking.deliver`"
FAULTS = {
    "the disk becomes full": Fault(
        r"error: .*No space left on device.*Finished work is saved", 1, STATE, full_disk, "FAILED"
    ),
    "a file exceeds `ulimit -f`": Fault(
        r"error: .*File too large.*Finished work is saved", 1, STATE, file_limit, "FAILED"
    ),
    "`mlruns` is removed during a run": Fault(
        r"error: .*No such file .*Finished work is saved", 1, "the metrics; FAILED", removed, "FAILED"
    ),
    "`mlflow.db` becomes read-only during a run": Fault(
        r"did not take everything .*readonly database.*The rest is in .*python -m tracking.deliver ",
        0,
        LATER,
        read_only,
        "FINISHED",
    ),
    "the tracking server stops during a run": Fault(
        r"did not take everything .*refused.*The rest is in .*python -m tracking.deliver ",
        0,
        LATER,
        server_stops,
        "FINISHED",
    ),
    "the tracking server stops answering during a run": Fault(
        r"did not take everything \(it does not answer\)\. The rest is in .*python -m tracking.deliver ",
        0,
        LATER,
        server_silent,
        "FINISHED",
    ),
    "the tracking server is restarted during a run": Fault(r"", 0, "everything; FINISHED", server_restarts, "FINISHED"),
    "PostgreSQL stops during a sweep": Fault(
        r"error: a run was refused; .*Finished work is saved", 1, "all finished runs; FAILED", database_stops, "FAILED"
    ),
    "TMPDIR, on another disk, becomes full": Fault(r"", 0, "everything; FINISHED", full_tmpdir, "FINISHED"),
    "stdout is closed (`>&-`)": Fault(r"", 0, "everything; FINISHED", no_stdout, "FINISHED"),
    "Optuna's journal ends in an incomplete line": Fault(r"", 0, "all earlier trials and all other studies"),
    "Ctrl-C in a run": Fault(r"interrupted; finished work is saved", 130, "the last checkpoint, all metrics; KILLED"),
    "SIGTERM in a run": Fault(r"terminated; finished work is saved", 143, "the last checkpoint, all metrics; KILLED"),
    "LANG=C, PYTHONOPTIMIZE=2, warnings are errors": Fault(r"", 0, "everything; FINISHED"),
    "`mlruns` cannot be written": Fault(r"error: The MLflow store .* cannot be used: .*Read-only file system", 2),
    "`mlruns` is a file": Fault(r"error: The MLflow store .* cannot be used: .*exists: .*mlruns", 2),
    "the store is locked": Fault(r"error: The MLflow store .* cannot be used: .*database is locked", 2),
    "the store is in memory": Fault(r"MLFLOW_TRACKING_URI sqlite:// is in memory", 2, inject="sqlite://"),
    "the store is a folder": Fault(
        r"The MLflow store sqlite:////tmp cannot be used: .*unable to open database", 2, inject="sqlite:////tmp"
    ),
    "PostgreSQL is down": Fault(
        r"The MLflow store postgresql://.* cannot be used: .*refused",
        2,
        inject="postgresql://me:hush-hush@127.0.0.1:1/o",
    ),
    "the address of the store is invalid": Fault(
        r"The MLflow store nonsense://.* cannot be used", 2, inject="nonsense://me:hush-hush@x"
    ),
    "the tracking server is down": Fault(
        r"The MLflow store http://me:\*\*\*@127.* cannot be used: .*refused",
        2,
        inject="http://me:hush-hush@127.0.0.1:1",
    ),
    "the tracking server does not answer": Fault(r"error: The MLflow store http://.* cannot be used: .*timed out", 2),
    "PostgreSQL does not answer": Fault(r"error: The MLflow store postgresql://.* cannot be used: .*timeout", 2),
    "a YAML file with random bytes": Fault(
        r"--config: .*arm.yaml cannot be read: .*codec can't decode", 2, inject=bytes(range(255, 0, -1))
    ),
    "an empty YAML file": Fault(r"--config: .*arm.yaml is not a mapping", 2, inject=b""),
    "a YAML file with a missing brace": Fault(
        r"--config: .*arm.yaml cannot be read: .*line", 2, inject=b"model: {lr: 1"
    ),
    "a YAML file that would run code": Fault(
        r"--config: .*python/object/apply",
        2,
        inject=b"seed_everything: !!python/object/apply:os.system ['touch sprung']",
    ),
    "a checkpoint with one flipped bit": Fault(r"--ckpt_path: .* is damaged", 2, inject=[]),
    "a text file as checkpoint": Fault(r"--ckpt_path: .* is damaged .*File is not a zip file", 2, inject=[]),
    "a checkpoint of another network size": Fault(
        r"the checkpoint is of another run\. .*: model.network.hidden 100 → 30", 2, inject=["--model.network.hidden=30"]
    ),
    "a checkpoint of another arm": Fault(
        r"model lightning_modules.MetaModule → lightning_modules.SupervisedModule", 2, inject=["--optimizer=adam"]
    ),
    "a checkpoint of another optimizer": Fault(
        r"model.optimizer torch.optim.Adam → torch.optim.SGD", 2, inject=["--model.optimizer=torch.optim.SGD"]
    ),
    "a checkpoint with a modified schedule.csv": Fault(
        r"error: .*schedule.csv was changed after its run wrote it", 2, inject=[]
    ),
}
"""Faults at the start of a command or during it: tests/test_faults.py."""


def readable(pattern: str) -> str:
    """Return a pattern as a readable example of a message."""
    first = re.sub(r"(?<!\\)\(([^()|]*)\|[^()]*\)", r"\1", pattern)
    text = re.sub(r"\\(.)", r"\1", first.replace(".*", "…"))
    return f"`{text.replace('|', chr(92) + '|')}`" if text else "–"


def document() -> str:
    """Return docs/faults.md."""
    kinds: dict[str, list[str]] = {}
    for words, line in BAD_INPUT.items():
        command, option = (*words.split(), "")[:2]
        kinds.setdefault(command + option.partition(".")[0], [f"`{words}`", readable(line)])
    during, before = [], []
    for name, fault in FAULTS.items():
        row = [name, readable(fault.line)]
        if fault.kept:
            during.append([*row, str(fault.status), fault.kept])
        else:
            before.append(row)
    return f"""# When things go wrong

Each row is tested; `python -m tests.faults` writes this page from [tests/faults.py](../tests/faults.py). Messages are
shortened: … stands for any text. Finished work is always saved: rerun the command to do what is missing.
Exit status 1: a started run failed; 2: nothing was started; 130: Ctrl-C; 143: SIGTERM.

**YAML files and class paths are code**: `class_path: any.thing` is imported and called with your rights. Do not use a
file that you would not run. Checkpoints are not code: only tensors, numbers and text are read from them.

## During a run or a sweep

A run that ends early prints the path of its last checkpoint. If the MLflow store did not take all records, the rest is
in a file, and a printed command sends it. Until then the run is marked FAILED, if the store is reachable.

{markdown(["fault", "message", "exit status", "what is saved; status in MLflow"], during)}

## Before a run

Each fault gives one line and exit status 2; nothing is stored.

{markdown(["fault", "message"], before)}

## Wrong options, data and networks

These also give one line and exit status 2. The table has one example per option; all {len(BAD_INPUT)} cases are in
[tests/faults.py](../tests/faults.py).

{markdown(["command", "message"], list(kinds.values())[:SHOWN])}
"""


if __name__ == "__main__":
    (ROOT / "docs" / "faults.md").write_text(document(), encoding="utf-8")
