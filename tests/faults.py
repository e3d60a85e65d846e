"""What goes wrong, and what the answer is: the tests run over it; `python -m tests.faults` writes docs/faults.md."""

import re
from typing import NamedTuple

from experiment.presets import ROOT
from reporting.tables import markdown

# what was typed -> what the one line of the answer says
BAD_INPUT = {
    "train.py --optimizer adamm": r"--optimizer: there is no arm 'adamm'. Did you mean adam\? Arms: adam",
    "train.py --optimizer adam --optimizer meta": r"adam and meta are two arms: a run has one",
    "train.py --model.network.hidden 0": r"--model.network.hidden must be 1 or more, got 0",
    "train.py --trainer.max_steps 0": r"--trainer.max_steps must be 1 or more, got 0: nothing would be trained",
    "train.py --trainer.max_epochs -1": r"--trainer.max_epochs -1 has no end: give --trainer.max_steps",
    "train.py --data.train_on_validation true": r"this arm judges by the validation samples: use adam_all",
    "train.py --task convv": r"--task: invalid choice: 'convv' \(choose from .*conv",
    "train.py --task conv --task gru": r"--task was given twice \(conv, gru\): name one task",
    "train.py --optimizer meta_search --model.stretch 1": r"--model.stretch is a fraction of the run, .* got 1",
    "train.py --optimizer meta_search --model.time_constant 0": r"--model.time_constant must be positive, got 0",
    "train.py --optimizer meta_search --model.every 0": r"--model.every must be positive, got 0",
    "train.py --optimizer meta_search --model.trust 1": r"--model.trust is a fraction of the validation loss, .* got 1",
    "train.py --model.meta_lr -1": r"meta_lr must be 0 or more, and finite, got -1",
    "train.py --model.start 0": r"start must be positive and finite, got 0",
    "train.py --model.factor 1": r"factor must be positive, finite, and not 1, got 1",
    "train.py --model.pull 2": r"pull must be between 0 and 1, got 2",
    "train.py --model.part 0": r"--model.part must be above 0 and at most 1, got 0",
    "train.py --model.weight_decay -1": r"weight_decay must be 0 or more, and finite, got -1",
    "train.py --optimizer meta_search --model.meta_lr -1": r"--model.meta_lr must lie between 0 and 10, got -1",
    "train.py --optimizer meta_onestep --model.every 0": r"--model.every must be 1 or more, got 0",
    "train.py --data.seed -1": r"--data.seed must lie between 0 and 1000 here, got -1",
    "train.py --task digits --data.batch_size 1001": r"--data.batch_size must lie between 1 and 1000 here, got 1001",
    "train.py --optimizer replay": r"--model.schedule.path: schedule.csv is no schedule .*schedule.csv",
    "train.py --config nowhere.yaml": r"config.*File does not exist: .*nowhere.yaml",
    "train.py --model.lr -0.1": r"--model.lr must be a positive finite number, got -0.1",
    "train.py --model.lr 0": r"--model.lr must be a positive finite number, got 0",
    "train.py --model.lr nan": r"--model.lr: .*float.* nan",
    "train.py --model.lr .inf": r"--model.lr must be a positive finite number, got inf",
    "train.py --model.lr fast": r"--model.lr: .*float.* fast",
    "train.py --model.lrr 0.1": r"--model.lrr: Option 'lrr' is not accepted",
    "train.py --optimizer adam --model.meta_lr 1": r"--model.meta_lr: Option 'meta_lr' is not accepted",
    "train.py --optimizer meta_onestep --model.meta_lr -1": r"--model.meta_lr must be a finite number",
    "train.py --model.network.hiden 3": r"--model.network.hiden: Option 'hiden' is not accepted",
    "train.py --model.optimizer torch.optim.Rprop": r"Rprop cannot be adapted: .* Use one of SGD",
    "train.py --model.optimizer torch.optim.LBFGS": r"LBFGS cannot be adapted: .* Use one of SGD",
    "train.py --model Nothing": r"model.*Nothing",
    "train.py --data.batch_size 4001": r"--data.batch_size must lie between 1 and 4000 here, got 4001",
    "train.py --data.batch_size 0": r"--data.batch_size must lie between 1 and 4000 here, got 0",
    "train.py --data.batch_size few": r"data.batch_size.*int.* few",
    "train.py --optimizer meta_original --model.adapt lr": r"--model.adapt: .*'log_rate', 'rate'.* lr",
    "train.py --data.batchsize 3": r"--data.batchsize: Option 'batchsize' is not accepted",
    "train.py --trainer.max_epochs 0": r"--trainer.max_epochs must be 1 or more, got 0",
    "train.py --trainer.max_epoch 3": r"unrecognized arguments: --trainer.max_epoch",
    "train.py --trainer.max_epochs -3": r"max_epochs.*You passed in -3",
    "train.py --optimizer meta_search --trainer.devices 2": r"--trainer.devices must be 1",
    "train.py --optimizer meta_onestep --trainer.gradient_clip_val 1": r"gradient clipping is not supported",
    "train.py --optimizer meta_onestep --trainer.accumulate_grad_batches 2": r"gradient accumulation is not supported",
    "train.py --trainer.accelerator abacus": r"accelerator.*abacus",
    "train.py --seed_everything -1": r"--seed_everything: -1 is not in bounds",
    "train.py --optimizer adam --model.optimizer.betas [0.5,2]": r"Invalid beta parameter at index 1: 2.0",
    "train.py --threads 0": r"threads.* 0 does not conform",
    "train.py --seed_everything x": r"seed_everything.* x",
    "train.py --trainer.logger.run_id 1": r"--trainer.logger.run_id: a run goes on by --ckpt_path, a checkpoint of its",
    "train.py --ckpt_path nowhere.ckpt": r"--ckpt_path: there is no file nowhere.ckpt",
    "train.py test --ckpt_path nowhere.ckpt": r"--ckpt_path: there is no file nowhere.ckpt",
    "tune.py": r"the following arguments are required: --optimizer",
    "tune.py --optimizer adamm": r"--optimizer: there is no arm, and no YAML file, 'adamm'. Did you mean adam\?",
    "tune.py --optimizer nowhere.yaml": r"--optimizer: there is no arm, and no YAML file, 'nowhere.yaml'",
    "tune.py --optimizer adam --trials 0": r"--trials: must be a whole number of 1 or more, got '0'",
    "tune.py --optimizer adam --trials few": r"--trials: must be a whole number of 1 or more, got 'few'",
    "tune.py --optimizer adam --timeout -1": r"--timeout: must be a whole number of 1 or more, got '-1'",
    "tune.py --optimizer adam --search model.lr=log:1:0.1": r"--search: must read like .*, got 'model.lr=log:1:0.1'",
    "tune.py --optimizer adam --search model.lr=log:0:1": r"--search: must read like .*, got 'model.lr=log:0:1'",
    "tune.py --optimizer adam --search lr": r"--search: must read like model.lr=log:1e-5:1e-1, .* got 'lr'",
    "tune.py --optimizer adam --search model.lrr=1:2": r"--model.lrr: Option 'lrr' is not accepted",
    "tune.py --optimizer meta_search": r"meta_search does not read model.lr: name what to search with --search",
    "tune.py --optimizer adam --seed -1": r"--seed: must be a whole number from 0 to 2\^32 - 1, got '-1'",
    "tune.py --optimizer adam --sampler best": r"--sampler: invalid choice: 'best' \(choose from .*tpe",
    "tune.py --optimizer adam --pruner axe": r"--pruner: invalid choice: 'axe' \(choose from .*none",
    "tune.py --optimizer adam --trails 3": r"unrecognized arguments: --trails",
    "tune.py --optimizer adam --output no/such/best.yaml": r"--output: there is no folder no/such",
    "tune.py --optimizer adam --trainer.logger=false": r"--trainer.logger cannot be given here",
    "tune.py --optimizer adam --trainer.max_epochs 0": r"--trainer.max_epochs must be 1 or more",
    "tune.py --optimizer adam --storage sqlite:////nowhere/o.db": r"--storage sqlite:.* cannot be used: .* Give",
    "tune.py --optimizer adam --storage postgresql://u:secret@h/o": r"--storage: .* set MLFLOW_TRACKING_URI",
    "tune.py --optimizer adam --search model.lr=log:1:2 model.lr=3:4": r"--search names an option twice",
    "tune.py --optimizer adam --search data.batch_size=3999:9000": r"--data.batch_size must lie between 1 and 4000",
    "tune.py --optimizer adam --search model.lr=0.1,fast": r"--model.lr: .*float.* fast",
    "tune.py --optimizer adam --search trainer.logger=false,true": r"--search: must read like",
    "tune.py --optimizer adam --search model.lr=0.1,0.2 --model.lr=0.5": r"--model.lr is searched: it has no value of",
    "tune.py --optimizer adam --output .": r"--output: \. is a folder, not a file",
    "tune.py --optimizer adam --trainer.fast_dev_run=true": r"--trainer.fast_dev_run cannot be given here",
    "tune.py --optimizer adam --ckpt_path x.ckpt": r"--ckpt_path cannot be given here: each run begins at its own",
    "compare.py --seeds 0": r"--seeds: must be a whole number of 1 or more, got '0'",
    "compare.py --optimizers adamm": r"--optimizers: there is no arm, and no YAML file, 'adamm'",
    "compare.py --optimizers adam --trainer.max_epochs 0": r"--trainer.max_epochs must be 1 or more",
    "compare.py --optimizers adam --initial-lrs fast": r"--initial-lrs: must be a positive finite number, got 'fast'",
    "compare.py --optimizers adam --initial-lrs 0": r"--initial-lrs: must be a positive finite number, got '0'",
    "compare.py --trainer.logger=false": r"--trainer.logger cannot be given here",
    "compare.py --seed 3": r"unrecognized arguments: --seed",
    "compare.py --optimizer adam": r"--optimizer is of one run; here it is --optimizers",
    "compare.py --seed_everything 7": r"--seed_everything is of one run; here it is --seeds",
    "compare.py --initial-lrs 1e-3 --model.lr=0.5": r"--model.lr and --initial-lrs are one thing: give one of them",
    "compare.py --optimizers adam --trainer.limit_test_batches=0": r"=0 leaves nothing to compare",
    "compare.py --optimizers adam --trainer.callbacks=null": r"--trainer.callbacks: a comparison needs callbacks.Traj",
    "compare.py --data.seed=2": r"--data.seed is of one run; here it is --data-seeds",
    "compare.py --output /proc/a-folder": r"--output: /proc/a-folder cannot be made: No such file",
    "compare.py --output /proc/version": r"--output: /proc/version is a file, not a folder",
    "compare.py --storage postgresql://h/o": r"--storage: .* need one tracking server: set MLFLOW_TRACKING_URI",
    "results.py --stages nothing": r"--stages: invalid choice: 'nothing'",
    "results.py --output /proc/version": r"--output: /proc/version is a file, not a folder",
    "results.py --redraw --output nowhere": r"--output: there is no folder .*nowhere to draw from",
    "results.py --seeds -1": r"--seeds: must be a whole number of 1 or more, got '-1'",
}
"""Each ends with status 2, before a run is kept."""


class Fault(NamedTuple):
    """line: of the answer, a pattern; status: of the command; test: where it is tried, if not in test_faults.py."""

    line: str
    status: int
    test: str = ""


FAULTS = {
    "the disk is full": Fault(r"error: .*(No space left on device|disk is full).*What was done is kept", 1),
    "`mlruns` cannot be written": Fault(r"error: The MLflow store .* cannot be used: .*Read-only file system", 2),
    "`mlruns` is a file": Fault(r"error: The MLflow store .* cannot be used: .*exists: .*mlruns", 2),
    "the store is locked": Fault(r"error: The MLflow store .* cannot be used: .*database is locked", 2),
    "the store is no database": Fault(
        r"file is not a database", 2, "tracking/test_store.py::test_a_file_that_is_no_database_is_refused"
    ),
    "the experiment was deleted in the UI": Fault(
        r"mlflow experiments restore -x 1",
        2,
        "tracking/test_store.py::test_an_experiment_deleted_in_the_ui_is_refused_with_the_way_back",
    ),
    "four processes open a fresh store at once": Fault(
        "", 0, "tracking/test_store.py::test_four_processes_may_open_a_new_store_at_once_ten_times_over"
    ),
    "no tracking server at the start": Fault(
        r"error: The MLflow store http://\*\*\*@127.* cannot be used: .*refused", 2
    ),
    "the tracking server goes away during a run": Fault(
        r"the MLflow store is away: .*Training goes on.* To deliver it: python -m tracking.delivery", 0
    ),
    "the store is deleted during a run": Fault(
        r"the MLflow store is away: .*Training goes on.* To deliver it: python -m tracking.delivery", 0
    ),
    "the tracking server goes away and comes back": Fault(r"the MLflow store is away: .*the MLflow store is back", 0),
    "tuning is killed (SIGKILL); the same command again": Fault(
        "", 0, "test_tune.py::test_tuning_that_was_killed_goes_on_with_the_trials_that_were_broken_off"
    ),
    "tuning gets Ctrl-C": Fault(
        r"interrupted; what was done is kept", 130, "test_tune.py::test_ctrl_c_ends_tuning_cleanly_and_it_goes_on"
    ),
    "a comparison is killed, or gets Ctrl-C; the same command again": Fault(
        "", 0, "test_compare.py::test_a_comparison_that_was_stopped_goes_on_where_it_was"
    ),
    "a run is killed 20 times and goes on from its checkpoint": Fault(
        "", 0, "test_resume.py::test_a_run_killed_at_random_steps_is_the_one_that_was_never_stopped"
    ),
    "one of three machines on a sweep is killed": Fault(
        "", 0, "test_scale.py::test_three_machines_share_a_comparison_and_lose_nothing_when_one_is_killed"
    ),
    "a sweep is started twice on one machine": Fault(
        r"This sweep runs already, in another process",
        2,
        "experiment/test_sweep.py::test_a_sweep_runs_once_on_a_machine",
    ),
    "training diverges": Fault(
        r"Training diverged at step 2", 1, "test_train.py::test_a_run_that_diverges_ends_with_a_message_and_status_1"
    ),
    "a checkpoint that would run code": Fault(r"--ckpt_path: .* cannot be read as a checkpoint: UnpicklingError", 2),
    "a YAML file that would run code": Fault(r"error: .*python/object/apply", 2),
    "a clone in a folder with blanks and other letters": Fault("", 0),
    "no network at all": Fault("", 0),
}


def tried(test: str, faults: dict[str, tuple[str, int]]) -> None:
    """Add faults that one test tries: name -> line and status."""
    FAULTS.update({name: Fault(line, status, test) for name, (line, status) in faults.items()})


tried(
    "test_hostile.py::test_a_file_that_is_no_configuration",
    {
        "a YAML file of random bytes": (r"--config: .*arm.yaml is no text", 2),
        "a YAML file that is empty": (r"--config: .*arm.yaml is empty, or no mapping", 2),
        "a YAML file that is a list": (r"--config: .*arm.yaml is empty, or no mapping", 2),
        "a YAML file with a brace too few": (r"--config: .*arm.yaml is no YAML: .*line", 2),
        "a YAML file whose aliases stand for 43 million values": (r"--config: .*stands for more than 100000 values", 2),
        "a YAML file that holds itself": (r"--config: .*stands for more than 100000 values", 2),
    },
)
tried(
    "test_hostile.py::test_a_store_that_cannot_be_used",
    {
        "the store is in memory": (r"MLFLOW_TRACKING_URI sqlite:// is in memory: nothing would be kept", 2),
        "the store is in memory, by name": (r"sqlite:///:memory: is in memory: nothing would be kept", 2),
        "the store is a folder": (r"The MLflow store sqlite:////tmp cannot be used: .*unable to open database", 2),
        "PostgreSQL is down": (r"The MLflow store postgresql://.* cannot be used: .*refused", 2),
        "the address of the store means nothing": (r"The MLflow store nonsense://.* cannot be used: .*load plugin", 2),
    },
)
tried(
    "test_hostile.py::test_a_server_that_does_not_answer",
    {"a tracking server that does not answer": (r"waiting for the MLflow store .*Ctrl-C ends it.* cannot be used", 2)},
)
tried(
    "test_hostile.py::test_an_experiment_stays_in_mlruns",
    {"the name of an experiment is a path": (r"experiment_name must be a plain name, without a path", 2)},
)
tried(
    "test_hostile.py::test_the_folder_is_gone",
    {"the folder that a command is typed in is gone": (r"error: the folder that this was typed in is gone", 2)},
)
tried(
    "test_hostile.py::test_nobody_reads_what_is_printed",
    {"nobody reads what is printed (a pipe to `head`)": ("", 141)},
)
tried(
    "test_hostile.py::test_a_run_that_was_stopped_by_a_signal_goes_on_to_the_bit",
    {
        "Ctrl-C in a run": (r"interrupted; what was done is kept", 130),
        "SIGTERM in a run": (r"terminated; what was done is kept", 143),
        "SIGHUP in a run": (r"terminated; what was done is kept", 143),
    },
)
tried(
    "test_hostile.py::test_the_search_of_a_rate_ends",
    {
        "SIGTERM in the search of a rate": (r"terminated; what was done is kept", 143),
        "Ctrl-C in the search of a rate": (r"interrupted; what was done is kept", 130),
        "--trainer.max_time in the search of a rate": (r"--trainer.max_time was over before one stretch of the", 2),
    },
)
tried(
    "test_hostile.py::test_other_environments",
    {"LANG=C": ("", 0), "PYTHONOPTIMIZE=2": ("", 0), "warnings are errors": ("", 0)},
)
tried("test_hostile.py::test_a_mask_that_lets_nobody_else_read", {"umask 077": ("", 0)})
tried(
    "test_hostile.py::test_a_user_who_is_not_root_and_a_clone_that_is_read_only",
    {"another user, with a read-only clone": ("", 0)},
)
tried(
    "test_resume.py::test_a_run_has_one_writer",
    {"a run is resumed while its first process is suspended": (r"is being written, by another process on", 2)},
)
tried(
    "tracking/test_lease.py::test_over_a_server_the_heartbeat_tells",
    {"a run is resumed on another machine": (r"is being written, by process \d+ on", 2)},
)
tried(
    "test_scale.py::test_a_machine_that_paused_goes_on_with_the_next_trial_and_nobody_ends_its_runs",
    {"a machine of a sweep is suspended, and wakes": (r"was taken over by another machine", 0)},
)
tried(
    "test_exact.py::test_a_killed_run_goes_on_to_the_bit_and_its_checkpoint_is_what_was_tested",
    {"any arm, on any kind of network, is killed in mid-epoch": ("", 0), "any checkpoint is tested again": ("", 0)},
)
tried(
    "test_rehearsal.py::test_a_validation_loss_that_is_not_finite_is_no_success",
    {"validation finds NaN": (r"Training diverged at step 32: val/loss is nan", 1)},
)
tried(
    "test_rehearsal.py::test_a_test_loss_that_is_not_finite_is_no_success",
    {"the test finds NaN": (r"fit: test/loss is nan", 1)},
)
tried(
    "test_rehearsal.py::test_what_cannot_be_trained_is_refused",
    {
        "an empty training set": (r"train has 0 inputs and 0 targets", 2),
        "an empty test set": (r"test has 0 inputs and 0 targets", 2),
        "more inputs than targets": (r"train has 200 inputs and 199 targets", 2),
        "targets of float64": (r"targets of train are torch.float64; classes must be int64, values float32", 2),
        "NaN among the samples": (r"train holds numbers that are not finite", 2),
        "inputs that are whole numbers": (r"the network cannot take the samples \(inputs \(40,\) torch.int64", 2),
        "more classes than outputs": (r"the network cannot take the samples", 2),
        "inputs too wide": (r"the network cannot take the samples \(inputs \(80,\) torch.float32", 2),
        "all weights are frozen": (r"no weight to train: all are frozen", 2),
        "the loss is detached, or not reduced": (r"the loss must be a number that depends on the weights", 2),
    },
)
tried(
    "test_rehearsal.py::test_a_checkpoint_that_cannot_be_gone_on_with_is_refused",
    {
        "a checkpoint with one bit flipped": (r"is damaged", 2),
        "a checkpoint that is cut off, or text": (r"cannot be read as a checkpoint", 2),
        "a checkpoint of another program": (r"has no optimizer_states", 2),
        "a checkpoint without weights": (r"is nothing there, and", 2),
        "a checkpoint of another shape": (r"network.0.weight is \(7, 40\) there, and \(100, 40\) here", 2),
        "a checkpoint without the state of the arm": (r"has no .adaptation.", 2),
        "a checkpoint of another version": (r"the state has no at_move: another version wrote it", 2),
    },
)
tried(
    "test_rehearsal.py::test_a_word_is_no_checkpoint",
    {"`--ckpt_path last`": (r"--ckpt_path: there is no file last", 2)},
)
tried(
    "test_rehearsal.py::test_an_untrained_network_is_not_evaluated",
    {"`test` without a checkpoint": (r"test needs --ckpt_path", 2)},
)


def readable(pattern: str) -> str:
    """Return what a pattern stands for, as a reader of a table takes it."""
    first = re.sub(r"(?<!\\)\(([^()|]*)\|[^()]*\)", r"\1", pattern)  # of several answers
    text = re.sub(r"\\(.)", r"\1", re.sub(r"\.\*|\\d\+", "…", first))
    return f"`{text.replace('|', chr(92) + '|')}`" if text else "–"


def document() -> str:
    """Return docs/faults.md."""
    wrong = [[f"`{words}`", readable(line)] for words, line in BAD_INPUT.items()]
    rows = [[name, readable(fault.line), str(fault.status)] for name, fault in FAULTS.items()]
    return f"""# When things go wrong

Each row is a test ([tests/faults.py](../tests/faults.py), from which `python -m tests.faults` writes this file). The
messages are shortened: … stands for any text. Exit status 2: nothing was started; 1: a started run failed; 130: Ctrl-C;
143: SIGTERM or SIGHUP; 141: the output pipe was closed. Finished work is always kept.

**A YAML file and a class path are code**: `class_path: any.thing` imports it and calls it, with the rights of whoever
typed the command. Do not train from a file that you would not run. A checkpoint is not: it is read as tensors, numbers
and text alone.

## Tested faults

{markdown(["what happens", "message", "status"], rows)}

## Wrong options: a one-line error, status 2, no run is kept

{markdown(["command", "message"], wrong)}
"""


if __name__ == "__main__":
    (ROOT / "docs" / "faults.md").write_text(document(), encoding="utf-8")
