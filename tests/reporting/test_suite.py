import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from experiment.publish import draw
from reporting.suite import BASE, WORST, costs, profile, scored, scores, suite_table

RATES = [1e-3, 1e-2]


def ladder(method: str, losses: dict[str, list[float]], seed: int = 1) -> list[dict[str, object]]:
    """The runs of a ladder: row -> test loss at each of the rates; the validation losses are the same."""
    return [run(row, own[place], method, RATES[place], seed) for row, own in losses.items() for place in (0, 1)]


def run(row: str, loss: float, method: str = "meta", rate: float = math.nan, seed: int = 1) -> dict[str, object]:
    found = {"row": row, "method": method, "rate": rate, "data_seed": 0, "seed": seed}
    return found | {"test_loss": loss, "val_loss": loss, "passes": 1.5}


def suite(meta: dict[str, float], seeds: int = 1) -> pd.DataFrame:
    """Two ladders of which the best of each row has a test loss of 1, and `meta`."""
    found = []
    for seed in range(1, 1 + seeds):
        for name in ("cosine", "constant"):
            found += ladder(name, {row: [1.0, 2.0] for row in meta}, seed)
        found += [run(row, loss, seed=seed) for row, loss in meta.items()]
    return pd.DataFrame(found)


def of(runs: pd.DataFrame, method: str) -> pd.DataFrame:
    found = scored(runs)
    return found[found.method == method].set_index("row")


def cell(table: str, row: str, method: str) -> str:
    """A cell of the second table."""
    header, _, *lines = (line.strip("| ").split(" | ") for line in table.split("\n\n")[1].splitlines())
    [line] = [line for line in lines if line[0] == row]
    return line[["", *header].index(method)]


def test_the_best_of_a_ladder_is_the_best_by_validation_and_costs_every_run() -> None:
    runs = suite({"a": 1.0, "b": 1.0})
    runs.loc[(runs.method == "cosine") & (runs.row == "a"), "val_loss"] = [5.0, 4.0]
    best = of(runs, BASE)
    assert dict(best.test_loss) == {"a": 2.0, "b": 1.0}
    assert dict(best.passes) == {"a": 3.0, "b": 3.0}
    assert dict(of(runs, "meta").score) == pytest.approx({"a": 0.5, "b": 1.0})
    assert dict(of(runs, "cosine, calibrated").passes) == {"a": 1.5, "b": 1.5}


def test_each_seed_has_its_own_best_and_the_score_is_relative_to_their_geometric_mean() -> None:
    runs = suite({"a": 1.0, "b": 1.0}, seeds=2)
    second = (runs.row == "a") & (runs.seed == 2)
    runs.loc[second & (runs.method == "cosine"), ["test_loss", "val_loss"]] = [[9.0, 9.0], [3.0, 3.0]]
    runs.loc[second & (runs.method == "meta"), "test_loss"] = 4.0
    # of seed 1 the loss is 1, of seed 2 it is 3
    assert list(of(runs, BASE).loc["a"].score) == pytest.approx([3**-0.5, 3**0.5])
    assert scores(scored(runs)).loc["a", "meta"] == pytest.approx(math.sqrt(1 * 4 / 3))


def test_a_run_that_diverged_is_not_chosen_by_a_validation_before_it_did() -> None:
    runs = suite({"a": 1.0, "b": 1.0})
    runs.loc[(runs.method == "cosine") & (runs.rate == 1e-2), ["test_loss", "val_loss"]] = [math.inf, 0.1]
    assert list(of(runs, BASE).test_loss) == [1.0, 1.0]


def test_the_calibrated_rate_of_a_row_is_the_best_of_all_other_rows() -> None:
    """The best over all rows is 1e-2, by a: without a it is 1e-3."""
    losses = {"a": [8.0, 1.0], "b": [1.0, 2.0], "c": [1.0, 2.0]}
    runs = pd.DataFrame([*ladder("cosine", losses), *ladder("constant", losses), *(run(row, 1.0) for row in losses)])
    for name in ("cosine, calibrated", "constant + average, calibrated"):
        assert dict(of(runs, name).rate) == {"a": 1e-3, "b": 1e-2, "c": 1e-2}
        assert dict(of(runs, name).score) == {"a": 8.0, "b": 2.0, "c": 2.0}


def test_losses_below_the_floor_are_equal_and_scores_have_a_cap() -> None:
    runs = suite({"tiny": 1e-9, "low": 1e-9, "far": 50.0, "gone": math.inf})
    runs.loc[(runs.row == "tiny") & runs.rate.notna(), "test_loss"] = 1e-5
    assert dict(of(runs, "meta").score) == pytest.approx({"tiny": 1.0, "low": 1e-3, "far": WORST, "gone": WORST})


def test_a_failure_is_seen_in_the_table() -> None:
    runs = suite({"good": 0.9, "equal": 1.1, "bad": 1.2, "far": 50.0, "gone": math.inf, "partly": 1.0, "once": 1.0}, 2)
    second = (runs.method == "meta") & (runs.seed == 2)
    runs.loc[second & (runs.row == "partly"), "test_loss"] = math.inf
    runs.loc[second & (runs.row == "once"), "test_loss"] = 11.0
    table = suite_table(runs)
    assert [cell(table, row, "meta") for row in ("good", "equal", "bad")] == ["0.90", "1.10", "**1.20**"]
    assert cell(table, "far", "meta") == "**≥ 10**"
    assert cell(table, "gone", "meta") == "**10 (2 of 2 diverged)**"
    assert cell(table, "partly", "meta") == "**3.16 (1 of 2 diverged)**"
    assert cell(table, "once", "meta") == "**≥ 3.16**"
    assert cell(table, "good", f"test loss of {BASE}") == "1.000 ± 0.000"


def test_the_summary_counts_rows_and_compares_in_pairs() -> None:
    table = suite_table(suite({"a": 0.5, "b": 0.5, "c": 0.5, "d": 4.0, "e": 1.0}))
    lines = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in table.splitlines()[:7]}
    mean, worst, at_most_1, lower, ratio, passes = lines[BASE]
    assert (mean, at_most_1, lower, passes) == ("1.00 (1.00 … 1.00)", "5 of 5", "3 of 5", "3.00")
    assert lines["meta"][1:] == ["4.00 (d)", "4 of 5", "–", "–", "1.50"]
    # (0.5 · 0.5 · 0.5 · 4 · 1)^(1/5), of `meta` alone and in pairs with what is always 1
    assert lines["meta"][0] == ratio
    assert ratio.startswith("0.87 (")
    assert worst.startswith("1.00")


def test_methods_are_in_the_order_of_their_means_and_rows_as_they_come() -> None:
    shown = scores(scored(suite({"z": 3.0, "a": 3.0})))
    assert list(shown.index) == ["z", "a"]
    assert shown.columns[-1] == "meta"


def test_the_profile_counts_rows_within_a_factor_of_the_best_and_never_a_failure() -> None:
    shown = pd.DataFrame({"x": [0.5, 1.0, 5.0], "y": [1.0, 1.0, WORST]}, index=["a", "b", "c"])
    lines = profile(shown)
    assert set(lines.x) == {1.0}
    assert lines.y.iloc[0] == pytest.approx(1 / 3)
    assert lines.y.iloc[-1] == pytest.approx(2 / 3)
    # in a, y is twice x
    assert lines.y[lines.index >= 2].min() == pytest.approx(2 / 3)
    assert lines.y[lines.index < 1.99].max() == pytest.approx(1 / 3)
    assert (lines.index[0], lines.index[-1]) == (1, pytest.approx(WORST))


def test_the_cost_of_a_ladder_counts_the_rates_that_are_tried() -> None:
    """At rates of 1 and 2 a choice of one is sqrt(2) on average, of both it is the best of the table."""
    runs = suite({"a": 0.5, "b": 0.5})
    lines = costs(runs).set_index(["method", "passes"]).score
    for name in ("cosine", "constant + average"):
        assert dict(lines[name]) == pytest.approx({1.5: math.sqrt(2), 3.0: 1.0})
    assert dict(lines["meta"]) == pytest.approx({1.5: 0.5})


def test_all_figures_are_drawn_again_from_the_numbers_alone(tmp_path: Path) -> None:
    runs = suite({"a": 0.5, "b": math.inf, "c": 1.0}).assign(arm="", start_lr=np.nan)
    runs.to_csv(tmp_path / "results.csv", index=False)
    assert draw(tmp_path, "a title; ") == ["suite.png", "suite_profile.png", "suite_cost.png"]
    for name in ("suite.png", "suite_profile.png", "suite_cost.png"):
        assert imread(tmp_path / name).std() > 0.01


def test_a_folder_without_numbers_has_nothing_to_draw(tmp_path: Path) -> None:
    assert draw(tmp_path, "") == []
