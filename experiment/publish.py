"""Write the table and figures of a grid to a folder, to MLflow and to the documentation."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from experiment.grid import Grid, Scale, run_grid
from experiment.options import QUIET, RESULTS, ROOT, arm_options
from experiment.process import end
from experiment.run import train
from reporting.curves import COURSES, by_start, courses
from reporting.figures import CEILING, draw_courses, draw_sensitivity
from reporting.suite import headline, suite_table
from reporting.suite_figures import draw_suite
from reporting.tables import conditions, legend, paired_table, write_between_markers
from reporting.tables import grid as grid_table
from tracking.links import save_view
from tracking.runs import parent_run
from tracking.store import client, open_experiment

STAGES: Mapping[str, Grid] = yaml.safe_load(Path(__file__).with_name("stages.yaml").read_text(encoding="utf-8"))
ABOUT = "mnist1d, MLP 40-100-10, 50 epochs, data seed 0; "
"""The setting of all stages with figures, for their titles."""
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "original.md"]


def compare(
    arms: Sequence[str], lrs: Sequence[float | None], arguments: Sequence[str], scale: Scale, command: str
) -> tuple[str, str]:
    """Train the missing runs of arms × initial rates, and write table, figures and raw numbers to `scale.output`.

    Returns the table and the id of the parent run in MLflow.
    """
    rows = {Path(arm).stem: {"arm": arm, "options": list(arguments)} for arm in arms}
    starts = {"" if lr is None else f"from {lr:g}": {} if lr is None else {"lr": lr} for lr in lrs}
    grid: Grid = {"rows": rows, "columns": starts}
    facts = [str(starts), str(scale.seeds), str(scale.data_seeds)]
    for arm in arms:
        run = train([*arm_options(arm), *arguments, QUIET, "--trainer.fast_dev_run=true"])
        if run.config.data.init_args.get("seed", 0):
            end("error: a file or an option sets data.seed. Use --data-seeds instead.", 2)
        facts.append(str(run.identity))
    sweep = f"compare {hashlib.sha256(' '.join(facts).encode()).hexdigest()[:12]}"
    experiment = open_experiment(run.experiment)
    scale.output.mkdir(parents=True, exist_ok=True)
    first = "meta" if "meta" in rows else next(iter(rows))
    base = ", ".join(filter(None, [first, next(iter(starts))]))
    with parent_run("compare", sweep, {"mlflow.note.content": f"`{command}`"}, run.experiment) as parent:
        runs = run_grid(grid, scale, parent)
        save_view(experiment, parent, list(runs.run_id.unique()))
        shown = paired_table(runs, base)
        text = f"{shown}\n\n{conditions(runs, command)}{legend(shown)}\n"
        _keep(runs, list(rows), text, scale.output, parent, f"{' '.join(arguments) or run.experiment}; ")
    return text, parent


def publish_stage(name: str, scale: Scale, command: str) -> str:
    """Run a stage, write its results, insert its table into the documentation, and return the table."""
    stage, folder = STAGES[name], scale.output / name
    open_experiment()
    folder.mkdir(parents=True, exist_ok=True)
    sweep = f"results {name} {scale.seeds} {scale.data_seeds} {scale.trials}"
    tuning = {row: scale.trials for row, cell in stage["rows"].items() if cell.get("tune")}
    drawn = list(stage["rows"]) if stage.get("sensitivity") else list(stage.get("courses", []))
    with parent_run(f"results: {name}", sweep, {"mlflow.note.content": f"`{command}`"}) as parent:
        runs = run_grid(stage, scale, parent, bool(drawn) or "rates" in stage.get("table", []))
        few = runs[runs.row.isin(drawn)]
        if stage.get("table") == "paired":
            shown = paired_table(runs, stage.get("base", "meta"), tuning)
            if "courses" in stage:
                shown += f"\n\n{grid_table(few, ['val_loss', 'test_loss', 'rates'])}"
        elif stage.get("table") == "suite":
            shown = suite_table(runs)
        else:
            shown = grid_table(runs, stage.get("table", ["test_loss"]), stage.get("base"))
        text = f"{shown}\n\n{conditions(runs, command)}{legend(shown)}\n"
        _keep(runs, drawn, text, folder, parent, ABOUT)
    if scale.output == RESULTS:
        publish(name, text, DOCUMENTS)
        if stage.get("table") == "suite":
            publish("headline", f"{headline(runs, 6)}\n", DOCUMENTS)
    return text


def _keep(runs: pd.DataFrame, drawn: list[str], text: str, folder: Path, parent: str, about: str) -> None:
    """Write table and raw numbers, and courses and figures of the `drawn` rows; log all to the parent run."""
    runs.drop(columns=[*COURSES, "trained_on"], errors="ignore").to_csv(folder / "results.csv", index=False)
    (folder / "table.md").write_text(text, encoding="utf-8")
    written = ["results.csv", "table.md"]
    if drawn:
        own = runs[runs.row.isin(drawn) & (runs.data_seed == runs.data_seed.min())].assign(arm=runs.row)
        # with several initial rates, keep the courses of the first row only
        if runs.start_lr.nunique() > 1:
            own = own[own.row == drawn[0]].assign(arm=[f"from {lr:g}" for lr in own[own.row == drawn[0]].start_lr])
        courses(own).to_csv(folder / "courses.csv", index=False, float_format="%.6g")
        written.append("courses.csv")
    if drawn or runs.rate.notna().any():
        written += draw(folder, about)
    client().set_tag(parent, "mlflow.note.content", text)
    # by name: the folder may contain files of other grids
    for name in written:
        client().log_artifact(parent, str(folder / name))


def draw(folder: Path, about: str) -> list[str]:
    """Draw the figures of the results in the folder, if any, and return their names. about: the setting, for titles."""
    if not (folder / "results.csv").exists():
        return []
    runs = pd.read_csv(folder / "results.csv")
    if "rate" in runs and runs.rate.notna().any():
        return draw_suite(runs, folder)
    if not (folder / "courses.csv").exists():
        return []
    lines = pd.read_csv(folder / "courses.csv")
    runs["arm"] = runs.get("row", runs.arm)
    if runs.start_lr.nunique() > 1:
        draw_sensitivity(by_start(runs, CEILING), lines, runs, folder, about)
        return ["lr_sensitivity.png"]
    draw_courses(lines, runs[runs.data_seed == runs.data_seed.min()], folder, about)
    return ["comparison.png", "lr_evolution.png"]


def publish(name: str, text: str, documents: Sequence[Path]) -> None:
    """Insert a table into every document that has its markers."""
    begin, finish = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    for path in documents:
        if begin in path.read_text(encoding="utf-8"):
            write_between_markers(text, path, begin, finish)
