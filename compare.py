"""Train every arm on every seed, and set them side by side: `python compare.py --seeds 5`."""

import argparse
import shlex
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import optuna
import pandas as pd
from pytorch_lightning.callbacks import Timer

import train
from options import ARMS, HEADLINE, QUIET, ROOT, arm_or_file, parse_sweep, positive, preset, rate, sweep_parser
from plots import line_figure
from runs import Job, run_all, share
from store import client, how_to_compare, how_to_see, open_experiment, parent_run, without_password
from sweep import alone, require_shared, sweep_name
from tables import conditions, paired_table
from workers import CORES, worker_pool

RESULTS = ROOT / "results"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"
OF_ONE_RUN = {"--optimizer": "--optimizers", "--seed_everything": "--seeds", "--data.draw": "--draws"}
CEILING = 3.0  # of a loss in a figure: above it a run has failed, by how much is no matter


def draw_courses(runs: pd.DataFrame, folder: Path) -> None:
    """Draw validation loss against epoch and rate against step: mean and 95 % interval over runs, one line an arm."""
    for column, x, y, log, name in [
        ("val_losses", "epoch", "validation loss", False, "comparison.png"),
        ("lrs", "step", "learning rate", True, "lr_evolution.png"),
    ]:
        curves = {}
        for arm, histories in runs.groupby("arm", sort=False)[column]:
            points = min(map(len, histories))  # a run that diverged has fewer
            curves[str(arm)] = (range(1, points + 1), [history[:points] for history in histories])
        line_figure({arm: curve for arm, curve in curves.items() if curve[0]}, x, y, log).savefig(folder / name)


def draw_sensitivity(runs: pd.DataFrame, folder: Path) -> None:
    """Draw the final test loss against the starting rate, one line an arm."""
    curves = {}
    for arm, own in runs.groupby("arm", sort=False):
        losses = own.pivot(index=["draw", "seed"], columns="start_lr", values="test_loss").clip(upper=CEILING)
        curves[str(arm)] = (list(losses.columns), losses.to_numpy())
    figure = line_figure(curves, "learning rate at the start", "test loss after the last epoch", log_x=True)
    figure.savefig(folder / "lr_sensitivity.png")


def write_between_markers(text: str, path: Path, begin: str = BEGIN, end: str = END) -> None:
    """Put the text between the two markers of a file."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(before + begin + text + end + rest.split(end)[1], encoding="utf-8")


def keep(runs: pd.DataFrame, text: str, folder: Path, parent: str) -> None:
    """Write table and raw numbers beside the figures, and everything into the parent run."""
    runs.drop(columns=["val_losses", "lrs"]).to_csv(folder / "results.csv", index=False)
    (folder / "table.md").write_text(text, encoding="utf-8")
    client().set_tag(parent, "mlflow.note.content", text)  # the description that the UI shows
    for file in [*folder.glob("*.png"), folder / "results.csv", folder / "table.md"]:
        client().log_artifact(parent, str(file))


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the comparison, and the rest, which goes on to every run."""
    parser = sweep_parser("compare.py", __doc__)
    parser.add_argument("--seeds", type=positive, default=5, help="runs an arm: seeds 1 ... SEEDS (tuning took 0)")
    parser.add_argument("--draws", type=positive, default=1, help="draws of the data: 0, the published, ... DRAWS - 1")
    arms = f"{' '.join(ARMS)}, or YAML files of your own"
    parser.add_argument("--optimizers", nargs="+", type=arm_or_file, default=HEADLINE, metavar="ARM", help=arms)
    parser.add_argument("--initial-lrs", nargs="+", type=rate, metavar="LR", help="run every arm from each of these")
    parser.add_argument("--workers", type=positive, default=CORES, help="processes (default: the cores)")
    parser.add_argument("--storage", metavar="URL", help="a database: machines share the runs; see docs/scale.md")
    parser.add_argument("--output", type=Path, default=RESULTS / "compare", help="folder (default: results/compare)")
    own, rest = parse_sweep(parser, args)
    own.optimizers = list(dict.fromkeys(own.optimizers))  # each once
    own.initial_lrs = list(dict.fromkeys(own.initial_lrs or [])) or [None]
    for option, instead in OF_ONE_RUN.items():
        if any(argument.split("=")[0] == option for argument in rest):
            parser.error(f"{option} is of one run; here it is {instead}")
    if len({Path(arm).stem for arm in own.optimizers}) < len(own.optimizers):
        parser.error("--optimizers: two files of one name would be one row of the table; rename one")
    if own.output.exists() and not own.output.is_dir():
        parser.error(f"--output: {own.output} is a file, not a folder")
    require_shared(parser, own.storage)
    return own, rest


def plan(own: argparse.Namespace, rest: list[str], runs: int) -> tuple[str, list[str]]:
    """Refuse wrong options; return how many runs there will be and how long that takes, and each arm's digest.

    The time is estimated from an epoch of each arm.
    """
    seconds, digests = [], []
    for arm in own.optimizers:
        timer = Timer()
        cli = train.main([*preset(arm), QUIET, "--trainer.fast_dev_run=32", *rest], callbacks=[timer])
        loader = iter(cli.datamodule.train_dataloader())
        steps = max(cli.config.fit.trainer.max_epochs or 1, 1) * len(loader)
        seconds.append(timer.time_elapsed("train") * steps / max(1, cli.trainer.global_step))
        digests.append(cli.digest)
    minutes = runs * sum(seconds) / len(seconds) / own.workers / 60
    arms = ", ".join(Path(name).stem for name in own.optimizers)
    return f"{runs} runs of {arms}; about {minutes:.1f} minutes, less for what MLflow has already", digests


def main(args: list[str] | None = None) -> pd.DataFrame:
    """Train what is missing, read everything back from MLflow, write the figures, the table and the raw numbers.

    Raises:
        SystemExit: status 2 where the arguments are wrong.
    """
    own, rest = parse(args)
    command = without_password(f"python compare.py {shlex.join(sys.argv[1:] if args is None else args)}")
    grid = product(range(own.draws), range(1, own.seeds + 1), own.optimizers, own.initial_lrs)
    jobs = [Job(Path(arm).stem, arm, seed, draw, lr, tuple(rest)) for draw, seed, arm, lr in grid]
    experiment = open_experiment()
    text, digests = plan(own, rest, len(jobs))
    print(text)
    sweep = sweep_name("compare", [*digests, str([own.seeds, own.draws, own.initial_lrs])])
    with alone(sweep, own.storage), parent_run("compare", sweep, {"mlflow.note.content": f"`{command}`"}) as parent:
        jobs = [replace(job, parent=parent) for job in jobs]
        if own.storage:
            share(own.storage, sweep, jobs, own.workers)
        with worker_pool(own.workers) as pool:
            runs = run_all(jobs, pool)
        text = write(runs, own, command, parent)
    print(f"{text}\nwritten to  {own.output}\nsee it      {how_to_see(experiment, parent)}")
    print(f"charts      {how_to_compare(experiment, parent)}")
    return runs


def write(runs: pd.DataFrame, own: argparse.Namespace, command: str, parent: str) -> str:
    """Write figures, table and raw numbers, keep them with the parent run, and return the table."""
    own.output.mkdir(parents=True, exist_ok=True)
    if own.initial_lrs != [None]:
        draw_sensitivity(runs, own.output)
    draw_courses(runs, own.output)
    text = f"{paired_table(runs)}\n\n{conditions(runs, command)}\n"
    keep(runs, text, own.output, parent)
    return text


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    train.script(main)
