"""What comes out of a grid: its table and figures in a folder, in MLflow, and in the documents."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from experiment.grid import Grid, Scale, run_grid, runs_of
from experiment.options import QUIET, RESULTS, ROOT, arm_options
from experiment.process import end
from experiment.run import train
from reporting.curves import COURSES, by_start, courses
from reporting.figures import CEILING, draw_courses, draw_sensitivity
from reporting.tables import conditions, legend, markdown, paired_table, write_between_markers
from reporting.tables import grid as grid_table
from tracking.runs import parent_run
from tracking.store import client, open_experiment

STAGES: Mapping[str, Grid] = yaml.safe_load(Path(__file__).with_name("stages.yaml").read_text(encoding="utf-8"))
ABOUT = "mnist1d, MLP 40-100-10, 50 epochs, data seed 0; "
"""What every stage that is drawn trains."""
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "original.md"]
TITLES = {
    "meta_search": "meta_search (rate found before the run)",
    "meta_onestep": "meta_onestep (the plain rule)",
    "meta_original": "meta_original (as published)",
    "adam": "Adam, tuned",
    "cosine": "Adam + cosine, Adam's tuned rate",
    "adamw": "AdamW, tuned",
    "adamw_cosine": "AdamW + cosine, tuned",
    "adamw_average": "AdamW, averaged weights, tuned",
    "adamw_cosine_average": "AdamW + cosine, averaged weights, tuned",
    "adamw_average, best decay": "AdamW, averaged weights, best decay",
    "descent, 1e-7": "hypergradient descent (Baydin et al.)",
}
"""In figures; other rows go by their name."""


def compare(
    arms: Sequence[str], lrs: Sequence[float | None], arguments: Sequence[str], scale: Scale, command: str
) -> tuple[pd.DataFrame, str, str]:
    """Train what is missing of arms × starting rates, and keep table, figures and raw numbers in `scale.output`.

    Returns the runs, the table, and the run in MLflow that holds everything.

    Raises:
        SystemExit: status 2 where the arguments are wrong, before a run is kept.
    """
    rows = {Path(arm).stem: {"arm": arm, "options": list(arguments)} for arm in arms}
    starts = {"" if lr is None else f"from {lr:g}": {} if lr is None else {"lr": lr} for lr in lrs}
    grid: Grid = {"rows": rows, "columns": starts}
    facts = [*(_checked(arm, arguments) for arm in arms), str(starts), str(scale.seeds), str(scale.data_seeds)]
    sweep = f"compare {hashlib.sha256(' '.join(facts).encode()).hexdigest()[:12]}"
    open_experiment()
    first = "meta" if "meta" in rows else next(iter(rows))
    base = ", ".join(filter(None, [first, next(iter(starts))]))
    print(f"{len(runs_of(grid, scale))} runs of {', '.join(rows)}, less what MLflow has already")
    with parent_run("compare", sweep, {"mlflow.note.content": f"`{command}`"}) as parent:
        runs = run_grid(grid, scale, parent)
        shown = paired_table(runs, base)
        text = f"{shown}\n\n{conditions(runs, command)}{legend(shown)}\n"
        _keep(runs, list(rows), text, scale.output, parent, f"{' '.join(arguments) or 'mnist1d'}; ")
    return runs, text, parent


def _checked(arm: str, arguments: Sequence[str]) -> str:
    """Return the digest of an arm's configuration, after one step of it."""
    run = train([*arm_options(arm), *arguments, QUIET, "--trainer.fast_dev_run=true"])
    if run.config.data.init_args.get("seed", 0):
        end("error: a file or an option gives a data seed; in a comparison, use --data-seeds.", 2)
    if run.config.trainer.limit_test_batches == 0:
        end("error: --trainer.limit_test_batches=0 leaves nothing to compare.", 2)
    return run.digest


def publish_stage(name: str, scale: Scale, command: str) -> str:
    """Run a stage, keep what came out, put its table into the documents, and return it."""
    stage = STAGES[name]
    open_experiment()
    sweep = f"results {name} {scale.seeds} {scale.data_seeds} {scale.trials}"
    with parent_run(f"results: {name}", sweep, {"mlflow.note.content": f"`{command}`"}) as parent:
        drawn = list(stage["rows"]) if stage.get("sensitivity") else list(stage.get("courses", []))
        runs = run_grid(stage, scale, parent, bool(drawn) or "rates" in stage.get("table", []))
        shown = _tables(stage, runs, scale.trials)
        text = f"{shown}\n\n{conditions(runs, command)}{legend(shown, tuned=True)}\n"
        (scale.output / name).mkdir(parents=True, exist_ok=True)
        _keep(runs, drawn, text, scale.output / name, parent, ABOUT)
    if scale.output == RESULTS:
        publish(name, text, DOCUMENTS)
        if stage.get("claim"):
            few = runs[runs.row.isin(drawn)]
            publish("headline", f"{paired_table(few, tuning=_tuning(stage, scale.trials))}\n", DOCUMENTS)
    return text


def _keep(runs: pd.DataFrame, drawn: list[str], text: str, folder: Path, parent: str, about: str) -> None:
    """Write table, raw numbers, and courses and figures of the rows that are drawn; keep all with the parent run."""
    runs.drop(columns=[*COURSES, "trained_on"], errors="ignore").to_csv(folder / "results.csv", index=False)
    (folder / "table.md").write_text(text, encoding="utf-8")
    written = ["results.csv", "table.md"]
    if drawn:
        own = runs[runs.row.isin(drawn) & (runs.data_seed == runs.data_seed.min())].assign(arm=runs.row)
        # of several starts, the courses of the first row from each
        if runs.start_lr.nunique() > 1:
            own = own[own.row == drawn[0]].assign(arm=[f"from {lr:g}" for lr in own[own.row == drawn[0]].start_lr])
        courses(own).to_csv(folder / "courses.csv", index=False, float_format="%.6g")
        written += ["courses.csv", *draw(folder, about)]
    client().set_tag(parent, "mlflow.note.content", text)
    # by name: the folder may hold what is not of this grid
    for name in written:
        client().log_artifact(parent, str(folder / name))


def draw(folder: Path, about: str) -> list[str]:
    """Draw what the folder holds, and return the names of the figures. about: the beginning of the titles."""
    runs, lines = pd.read_csv(folder / "results.csv"), pd.read_csv(folder / "courses.csv")
    runs["arm"] = runs.get("row", runs.arm).replace(TITLES)
    # from several starts no rate is a tuned one
    if runs.start_lr.nunique() > 1:
        runs["arm"] = runs.arm.str.replace(", tuned", "")
        draw_sensitivity(by_start(runs, CEILING), lines, runs, folder, about)
        return ["lr_sensitivity.png"]
    lines["label"] = lines.label.replace(TITLES)
    draw_courses(lines, runs[runs.data_seed == runs.data_seed.min()], folder, about)
    return ["comparison.png", "lr_evolution.png"]


def redraw(name: str, folder: Path) -> None:
    """Draw a stage's figures again, from what its folder holds."""
    if (folder / name / "courses.csv").exists():
        draw(folder / name, ABOUT)


def _tables(stage: Grid, runs: pd.DataFrame, trials: int) -> str:
    """Return the stage's table, and for the comparison that decides the claim what its criteria ask."""
    if stage.get("table") != "paired":
        return grid_table(runs, stage.get("table", ["test_loss"]), stage.get("base"))
    text = paired_table(runs, stage.get("base", "meta"), _tuning(stage, trials))
    if "courses" in stage:
        text += f"\n\n{grid_table(runs[runs.row.isin(stage['courses'])], ['val_loss', 'test_loss', 'rates'])}"
    if stage.get("claim"):
        text += f"\n\n{_claim(runs, [row for row, said in stage['rows'].items() if said.get('tune') is True])}"
    return text


def _tuning(stage: Grid, trials: int) -> dict[str, int]:
    """Return the trials that tuning took, of each row that is tuned."""
    return {row: trials for row, said in stage["rows"].items() if said.get("tune")}


def _claim(runs: pd.DataFrame, tuned: list[str]) -> str:
    """Return ratios, the best study, and the epochs to the tuned loss, and the losses by data seed."""
    means = runs.groupby(["arm", "data_seed"]).test_loss.mean().unstack()
    overall = means.mean(axis=1)
    best = {arm: min(means.loc[arm] / means.loc["meta"]) for arm in tuned}
    nearest = min(best, key=lambda arm: best[arm])
    pairs = runs.pivot(index=["data_seed", "seed"], columns="arm", values="val_losses")
    reached, plain = (
        [first_below(curve, goal[-1]) for curve, goal in zip(pairs[arm], pairs["adam"], strict=True)]
        for arm in ("meta", "adam")
    )
    by_draw = markdown(
        ["arm", *(f"data seed {data_seed}" for data_seed in means.columns)],
        [[f"`{arm}`", *(f"{value:.3f}" for value in means.loc[arm])] for arm in overall.sort_values().index],
    )
    return (
        f"- `meta` / `adam` = {overall['meta'] / overall['adam']:.3f}; `meta` / `cosine` = "
        f"{overall['meta'] / overall['cosine']:.3f}.\n"
        f"- The best of the {len(tuned) * len(means.columns)} tuned studies, one of `{nearest}`, has "
        f"{best[nearest]:.3f} times the test loss of `meta` on the same data.\n"
        f"- `meta` reaches the final validation loss of `adam` after {np.mean(reached):.1f} epochs on average (at most "
        f"{np.max(reached):.0f}); `adam` itself first reaches it after {np.mean(plain):.1f}.\n\n{by_draw}"
    )


def first_below(curve: Sequence[float], goal: float) -> float:
    """Return the first epoch, from 1, whose loss is at the goal or below; infinite where none is."""
    return next((epoch for epoch, loss in enumerate(curve, 1) if loss <= goal), np.inf)


def publish(name: str, text: str, documents: Sequence[Path]) -> None:
    """Put a table into every document that has its markers."""
    begin, finish = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    for path in documents:
        if begin in path.read_text(encoding="utf-8"):
            write_between_markers(text, path, begin, finish)
