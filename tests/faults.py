"""What goes wrong, and the answer: the tests run over these tables; `python -m tests.faults` writes docs/faults.md."""

import re
from typing import NamedTuple

from experiment.options import ROOT
from reporting.tables import markdown

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
    "tune.py": r"the following arguments are required: --optimizer",
    "tune.py --optimizer nowhere.yaml": r"--optimizer: unknown arm or file 'nowhere.yaml'",
    "tune.py --optimizer adam --trials 0": r"--trials: must be a whole number of 1 or more, got '0'",
    "tune.py --optimizer adam --seed -1": r"--seed: must be a whole number from 0 to 2\^32 - 1, got '-1'",
    "tune.py --optimizer adam --search model.lr=log:1:0.1": r"--search: model.lr=log:1:0.1 must read like ",
    "tune.py --optimizer adam --search data.batch_size=3999:9000": r"--data.batch_size must lie between 1 and 4000",
    "tune.py --optimizer adam --trainer.logger=false": r"--trainer.logger cannot be given here: the runs are read back",
    "tune.py --optimizer adam --ckpt_path x.ckpt": r"--ckpt_path cannot be given here: each run starts at its own",
    "tune.py --optimizer adam --storage sqlite:////nowhere/o.db": r"--storage sqlite:.* cannot be used .*unable to",
    "tune.py --optimizer adam --storage postgresql://u:secret@h/o": r"--storage: .* set MLFLOW_TRACKING_URI",
    "compare.py --optimizers adamm": r"--optimizers: unknown arm or file 'adamm'",
    "compare.py --optimizers adam adam": r"--optimizers: two of one name would be one row of the table",
    "compare.py --optimizer adam": r"--optimizer cannot be given here: use --optimizers",
    "compare.py --initial-lrs 0": r"--initial-lrs: must be a positive finite number, got '0'",
    "compare.py --cluster tcp://127.0.0.1:1": r"--cluster: .* set MLFLOW_TRACKING_URI",
    "results.py --stages nothing": r"--stages: invalid choice: 'nothing'",
    "train.py --data tests.broken.Broken --data.fault empty": r"train has 0 inputs and 0 targets",
    "train.py --data tests.broken.Broken --data.fault mismatch": r"train has 200 inputs and 199 targets",
    "train.py --data tests.broken.Broken --data.fault float64-targets": r"targets of train are torch.float64",
    "train.py --data tests.broken.Broken --data.fault nan": r"train holds numbers that are not finite",
    "train.py --data tests.broken.Broken --data.fault integer-inputs": r"the network cannot take .*40,\) torch.int64",
    "train.py --data tests.broken.Broken --data.fault classes": r"the network cannot take the samples",
    "train.py --data tests.broken.Broken --data.fault wide": r"the network cannot take .*inputs \(80,\) torch.float32",
    "train.py --model.network tests.broken.Frozen": r"the loss must be a scalar that depends on weights",
    "train.py --model tests.broken.Unreduced": r"the loss must be a scalar that depends on weights",
}
"""What is typed -> the one line of the answer, a pattern. Each ends with status 2, before a run is kept."""


class Fault(NamedTuple):
    """A pattern of the answer, and the status of the command."""

    line: str
    status: int


FAULTS = {
    "the disk is full": Fault(r"error: .*(No space left on device|disk is full).*Finished work is kept", 1),
    "`mlruns` cannot be written": Fault(r"error: The MLflow store .* cannot be used: .*Read-only file system", 2),
    "`mlruns` is a file": Fault(r"error: The MLflow store .* cannot be used: .*exists: .*mlruns", 2),
    "the store is locked": Fault(r"error: The MLflow store .* cannot be used: .*database is locked", 2),
    "the store is in memory": Fault(r"MLFLOW_TRACKING_URI sqlite:// is in memory", 2),
    "the store is a folder": Fault(r"The MLflow store sqlite:////tmp cannot be used: .*unable to open database", 2),
    "PostgreSQL is down": Fault(r"The MLflow store postgresql://.* cannot be used: .*refused", 2),
    "the address of the store means nothing": Fault(r"The MLflow store nonsense://.* cannot be used", 2),
    "no tracking server at the start": Fault(r"The MLflow store http://me:\*\*\*@127.* cannot be used: .*refused", 2),
    "a tracking server that does not answer": Fault(r"error: The MLflow store .* cannot be used", 2),
    "the tracking server stops during a run": Fault(r"", 0),
    "a YAML file of random bytes": Fault(r"--config: .*arm.yaml cannot be read: .*codec can't decode", 2),
    "a YAML file that is empty": Fault(r"--config: .*arm.yaml is not a mapping", 2),
    "a YAML file with a brace too few": Fault(r"--config: .*arm.yaml cannot be read: .*line", 2),
    "a YAML file that would run code": Fault(r"--config: .*python/object/apply", 2),
    "a checkpoint of which one bit is flipped": Fault(r"--ckpt_path: .* is damaged", 2),
    "a checkpoint that is text": Fault(r"--ckpt_path: .* is damaged, .*File is not a zip file", 2),
    "a checkpoint of another shape": Fault(r"the run was another one; .*: model.network.hidden 100 → 30", 2),
    "a checkpoint of another arm": Fault(r"model lightning_modules.MetaModule → lightning_modules.SupervisedModule", 2),
    "a checkpoint of another optimizer": Fault(r"model.optimizer torch.optim.Adam → torch.optim.SGD", 2),
    "Ctrl-C in a run": Fault(r"interrupted; finished work is kept", 130),
    "SIGTERM in a run": Fault(r"terminated; finished work is kept", 143),
    "LANG=C, PYTHONOPTIMIZE=2, warnings are errors": Fault(r"", 0),
}
"""What a command is started into: tests/test_faults.py."""


def readable(pattern: str) -> str:
    """Return what a pattern stands for, as a reader of a table takes it."""
    first = re.sub(r"(?<!\\)\(([^()|]*)\|[^()]*\)", r"\1", pattern)
    text = re.sub(r"\\(.)", r"\1", first.replace(".*", "…"))
    return f"`{text.replace('|', chr(92) + '|')}`" if text else "–"


def document() -> str:
    """Return docs/faults.md."""
    wrong = [[f"`{words}`", readable(line)] for words, line in BAD_INPUT.items()]
    rows = [[name, readable(fault.line), str(fault.status)] for name, fault in FAULTS.items()]
    return f"""# When things go wrong

Each row is a test ([tests/faults.py](../tests/faults.py), from which `python -m tests.faults` writes this file). The
messages are shortened: … stands for any text. Exit status 2: nothing was started; 1: a started run failed; 130: Ctrl-C;
143: SIGTERM. Finished work is always kept.

**A YAML file and a class path are code**: `class_path: any.thing` imports it and calls it, with the rights of whoever
typed the command. Do not train from a file that you would not run. A checkpoint is not: it is read as tensors, numbers
and text alone.

## Tested faults

{markdown(["what happens", "message", "status"], rows)}

## Wrong options, data and networks: a one-line error, status 2, no run is kept

{markdown(["command", "message"], wrong)}
"""


if __name__ == "__main__":
    (ROOT / "docs" / "faults.md").write_text(document(), encoding="utf-8")
