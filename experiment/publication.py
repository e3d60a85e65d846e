"""What comes out of a stage: its figures and its table, in its folder, in MLflow, and in the documents."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiment.comparison import keep
from experiment.drawing import draw, keep_courses
from experiment.presets import RESULTS, ROOT
from experiment.stages import STAGES, Scale, run_stage
from reporting.tables import conditions, grid, legend, markdown, paired_table, write_between_markers
from tracking.runs import parent_run
from tracking.store import open_experiment

ABOUT = "mnist1d, MLP 40-100-10, 50 epochs, data seed 0; "  # what every stage that is drawn trains
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "original.md"]


def publish_stage(name: str, scale: Scale, command: str) -> str:
    """Run a stage, keep what came out, put its table into the documents, and return it."""
    open_experiment()
    sweep = f"results {name} {scale.seeds} {scale.data_seeds} {scale.trials}"
    with parent_run(f"results: {name}", sweep, {"mlflow.note.content": f"`{command}`"}) as parent:
        runs = run_stage(name, scale)
        folder = scale.output / name
        folder.mkdir(parents=True, exist_ok=True)
        if rows := drawn(STAGES[name]):
            keep_courses(runs[runs.row.isin(rows)].assign(arm=runs.row), folder)
        shown = tables(STAGES[name], runs, scale.trials)
        text = f"{shown}\n\n{conditions(runs, command)}{legend(shown, tuned=True)}\n"
        keep(runs, text, folder, parent, ABOUT)
        if scale.output == RESULTS:
            publish(name, text, DOCUMENTS)
            if STAGES[name].get("claim"):
                few = runs[runs.arm.isin(STAGES[name]["courses"])]
                publish("headline", f"{paired_table(few, tuning=tuning(STAGES[name], scale.trials))}\n", DOCUMENTS)
    return text


def drawn(stage: dict[str, Any]) -> list[str]:
    """Return the rows whose courses are drawn."""
    return list(stage["rows"]) if stage.get("sensitivity") else list(stage.get("courses", []))


def redraw(name: str, folder: Path) -> None:
    """Draw a stage's figures again, from what its folder holds."""
    if (folder / name / "courses.csv").exists():
        draw(folder / name, ABOUT)


def tables(stage: dict[str, Any], runs: pd.DataFrame, trials: int) -> str:
    """Return the stage's table, and for the comparison that decides what its bars ask."""
    if stage.get("table") != "paired":
        return grid(runs, stage.get("table", ["test_loss"]), stage.get("base"))
    text = paired_table(runs, stage.get("base", "meta"), tuning(stage, trials))
    if "courses" in stage:
        text += f"\n\n{grid(runs[runs.arm.isin(stage['courses'])], ['val_loss', 'test_loss', 'rates'])}"
    return (
        f"{text}\n\n{readings(runs, [row for row, said in stage['rows'].items() if said.get('tune') is True])}"
        if stage.get("claim")
        else text
    )


def tuning(stage: dict[str, Any], trials: int) -> dict[str, int]:
    """Return the trials that tuning took, of each row that is tuned."""
    return {row: trials for row, said in stage["rows"].items() if said.get("tune")}


def readings(runs: pd.DataFrame, tuned: list[str]) -> str:
    """Say what the bars of the claim ask: ratios, the best study, epochs to the tuned loss, by data seed."""
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


def first_below(curve: list[float], goal: float) -> float:
    """Return the first epoch, from 1, whose loss is at the goal or below; infinite where none is."""
    return next((epoch for epoch, loss in enumerate(curve, 1) if loss <= goal), np.inf)


def publish(name: str, text: str, documents: list[Path]) -> None:
    """Put a stage's table into every document that has its markers."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    for path in documents:
        if begin in path.read_text(encoding="utf-8"):
            write_between_markers(text, path, begin, end)
