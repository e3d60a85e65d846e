import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reporting.statistics import bootstrap, differences
from reporting.tables import difference, grid, legend, paired_table, with_interval


def runs(losses: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": i // 2, "data_seed": i % 2, "start_lr": None, "test_loss": loss, "test_accuracy": 0.5}
        | {"passes": 2.0, "seconds": 3.0}
        for arm, values in losses.items()
        for i, loss in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_differences_are_paired_by_draw_and_seed_and_the_order_of_rows_is_no_matter() -> None:
    rng = np.random.default_rng(0)
    meta = rng.normal(1, 0.5, 12)
    adam = meta + 0.1 + rng.normal(0, 1e-3, 12)
    table = runs({"meta": list(meta), "adam": list(adam)}).sample(frac=1, random_state=1)
    [row] = [line for line in paired_table(table).splitlines() if "`adam`" in line]
    assert re.search(r"\+0\.100 \(\+0\.(099|100) … \+0\.10[01]\)", row)


def test_p_is_wilcoxons_after_holm() -> None:
    rng = np.random.default_rng(0)
    losses = {arm: list(rng.normal(mean, 1, 10)) for arm, mean in {"meta": 0, "a": 0.5, "b": 1.0, "c": 1.5}.items()}
    raw = {arm: stats.wilcoxon(np.subtract(losses[arm], losses["meta"])).pvalue for arm in "abc"}
    smallest = min(raw, key=lambda arm: raw[arm])
    [row] = [line for line in paired_table(runs(losses)).splitlines() if f"`{smallest}`" in line]
    assert f"| {3 * raw[smallest]:.1g} |" in row


def test_tuning_is_counted_in_the_cost() -> None:
    table = paired_table(runs({"meta": [1.0, 2.0], "adam": [1.0, 2.0]}), tuning={"adam": 20})
    [row] = [line for line in table.splitlines() if "`adam`" in line]
    assert row.endswith("| 42.00 | 63 |")


def test_the_bootstrap_interval_is_near_students_for_many_normal_values() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((values.mean() - 0.098, values.mean() + 0.098), abs=0.02)


def test_two_pairs_have_a_mean_and_no_interval() -> None:
    assert difference([1.0, 1.4]) == "+1.200"
    assert difference([1.0, 1.2, 1.4]).startswith("+1.200 (+1.")


def test_runs_that_diverged_are_counted_not_averaged() -> None:
    assert with_interval([1.0, math.inf, math.inf]) == "2 of 3 diverged"
    assert "2 of 2 diverged" in paired_table(runs({"meta": [1.0, 1.0], "adam": [math.inf, math.inf]}))


def test_a_pair_of_which_both_diverged_has_no_difference_and_is_not_dropped() -> None:
    table = runs({"meta": [1.0, math.inf, 1.0], "adam": [2.0, math.inf, 2.0]})
    assert sorted(np.isnan(differences(table, "adam", "meta"))) == [False, False, True]
    [row] = [line for line in paired_table(table).splitlines() if "`adam`" in line]
    assert row.split(" | ")[2] == "–"


def test_the_legend_has_a_word_for_what_the_table_shows_and_no_other() -> None:
    many = paired_table(runs({"meta": [1.0, 1.1] * 6, "adam": [2.0, 2.1] * 6}))
    for word in ("Student's t", "bootstrap", "Wilcoxon", "passes: forward-backward passes per step"):
        assert word in legend(many)
    assert "tuning included" in legend(many, tuned=True)
    assert legend(grid(runs({"adam": [1.0]}).assign(row="adam", column="found"))) == ""


def test_runs_from_another_starting_rate_are_paired_too() -> None:
    table = runs({"meta": [1.0, 1.0, 1.0], "meta from 1": [1.5, 1.5, 1.5]})
    table.loc[table.arm == "meta from 1", "start_lr"] = 1.0
    assert "+0.500 (+0.500 … +0.500)" in paired_table(table)
    assert "+0.500 (+0.500 … +0.500)" in grid(table.assign(row=table.arm, column=""), base="meta")
