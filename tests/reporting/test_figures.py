from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from experiment.publish import draw
from reporting.curves import COURSES, by_start, courses, line, read_schedule
from reporting.figures import COLORS, evolution
from reporting.statistics import mean_and_half_interval


def test_the_interval_is_students() -> None:
    mean, half = mean_and_half_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-6)  # t(0.975; 4 degrees) from a table


def test_a_single_run_has_no_interval() -> None:
    mean, half = mean_and_half_interval([[1.0, 2.0]])
    assert (list(mean), list(half)) == ([1, 2], [0, 0])


def test_each_arm_has_a_line_of_its_own_color_and_dashes() -> None:
    lines = pd.concat([line(name, "lr", [1, 2], [[1.0, 2.0], [3.0, 4.0]]) for name in "abc"])
    [axes] = evolution(lines).axes
    assert [line.get_label() for line in axes.lines] == ["a", "b", "c"]
    assert [line.get_color() for line in axes.lines] == list(COLORS[:3])
    assert len({str(line.get_linestyle()) for line in axes.lines}) == 3
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "learning rate")


def test_on_a_log_scale_the_mean_is_geometric() -> None:
    assert line("a", "lr", [1], [[1e-4], [1e-2]])["mean"][0] == pytest.approx(1e-3)
    assert line("a", "loss", [1], [[1.0], [3.0]])["mean"][0] == 2


def one_run(arm: str, **more: Any) -> dict[str, Any]:
    run = {"arm": arm, "seed": 1, "data_seed": 0, "start_lr": None, "test_accuracy": 0.5, "test_loss": 1.0}
    return run | {"val_losses": [2.0, 1.0], "lrs": [0.1] * 4, "hypergradients": [], "decays": [0.0] * 4} | more


def test_the_rate_has_hypergradient_and_decay_below_it_where_there_are_any() -> None:
    plain = courses(pd.DataFrame([one_run("adam")]))
    assert set(plain.quantity) == {"val_loss", "lr"}
    adapted = courses(pd.DataFrame([one_run("adam"), one_run("meta", hypergradients=[-1.0, 2.0], decays=[0.1, 0.2])]))
    names = [axes.get_ylabel() for axes in evolution(adapted).axes]
    assert names == ["learning rate", "hypergradient", "weight decay a step"]
    assert list(adapted[adapted.quantity == "hypergradient"].x) == [2, 4]  # the end of each half of four steps


def test_a_schedule_is_read_with_or_without_looks(tmp_path: Path) -> None:
    file = tmp_path / "schedule.csv"
    file.write_text("step,lr,decay,hypergradient\n1,0.1,0.0,\n2,0.2,0.5,3.0\n")
    read = read_schedule(file)
    assert (read["lrs"], read["decays"]) == ([0.1, 0.2], [0.0, 0.5])
    # nothing before the first look
    assert np.array_equal(read["hypergradients"], [np.nan, 3.0], equal_nan=True)
    file.write_text("step,lr,decay,hypergradient\n1,0.1,0.0,\n")
    assert read_schedule(file)["hypergradients"] == []


def test_a_mean_that_contains_runs_above_the_axis_is_marked() -> None:
    runs = pd.DataFrame([one_run("adam", start_lr=lr, test_loss=loss) for lr, loss in ((0.1, 1.0), (1.0, 99.0))])
    lines = by_start(runs, 3.0)
    assert list(lines["mean"]) == [1.0, 3.0]
    assert list(lines.clipped) == [False, True]


def test_figures_are_drawn_again_from_their_folder_alone(tmp_path: Path) -> None:
    for starts, names in (([None], {"comparison.png", "lr_evolution.png"}), ([1e-3, 5.0], {"lr_sensitivity.png"})):
        folder = tmp_path / str(len(starts))
        folder.mkdir()
        cases = [one_run(arm, seed=seed, start_lr=lr) for arm in ("meta", "adam") for seed in (1, 2) for lr in starts]
        runs = pd.DataFrame(cases)
        shown = runs if starts == [None] else runs[runs.arm == "meta"].assign(arm=lambda own: own.start_lr.map(str))
        courses(shown).to_csv(folder / "courses.csv", index=False)
        runs.drop(columns=COURSES).to_csv(folder / "results.csv", index=False)
        draw(folder, "a title; ")
        assert {file.name for file in folder.glob("*.png")} == names
        for name in names:
            assert imread(folder / name).std() > 0.01
