"""The figures of a comparison, from what lies in its folder: `results.csv`, a row a run, and `courses.csv`."""

from pathlib import Path

import pandas as pd

from experiment.presets import TITLES
from reporting.curves import by_start, courses
from reporting.figures import CEILING, draw_courses, draw_sensitivity


def keep_courses(runs: pd.DataFrame, folder: Path) -> None:
    """Write the lines of each arm, on the first data seed; of several starts, those of the first arm from each."""
    own = runs[runs.data_seed == runs.data_seed.min()]
    if runs.start_lr.nunique() > 1:
        own = own[own.arm == own.arm.iloc[0]]
        own = own.assign(arm=[f"from {lr:g}" for lr in own.start_lr])
    courses(own).to_csv(folder / "courses.csv", index=False, float_format="%.6g")


def draw(folder: Path, about: str) -> list[str]:
    """Draw what the folder holds, and return the names of the figures. about: the beginning of the titles."""
    runs, lines = pd.read_csv(folder / "results.csv"), pd.read_csv(folder / "courses.csv")
    runs["arm"] = runs.get("row", runs.arm).replace(TITLES)
    if runs.start_lr.nunique() > 1:  # then no rate is a tuned one
        runs["arm"] = runs.arm.str.replace(", tuned", "")
        draw_sensitivity(by_start(runs, CEILING), lines, runs, folder, about)
        return ["lr_sensitivity.png"]
    lines["label"] = lines.label.replace(TITLES)
    draw_courses(lines, runs[runs.data_seed == runs.data_seed.min()], folder, about)
    return ["comparison.png", "lr_evolution.png"]
