import numpy as np
import pytest

from reporting.figures import COLORS, line_figure
from reporting.statistics import mean_and_half_interval


def test_the_interval_is_students() -> None:
    mean, half = mean_and_half_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-6)  # t(0.975; 4 degrees) from a table


def test_a_single_run_has_no_interval() -> None:
    mean, half = mean_and_half_interval([[1.0, 2.0]])
    assert (list(mean), list(half)) == ([1, 2], [0, 0])


def test_each_arm_has_a_line_of_its_own_color_and_dashes() -> None:
    figure = line_figure({name: ([1, 2], [[1.0, 2.0], [3.0, 4.0]]) for name in "abc"}, "step", "loss")
    [axes] = figure.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b", "c"]
    assert [line.get_color() for line in axes.lines] == list(COLORS[:3])
    assert len({str(line.get_linestyle()) for line in axes.lines}) == 3
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")


def test_on_a_log_scale_the_mean_is_geometric() -> None:
    [axes] = line_figure({"a": ([1], [[1e-4], [1e-2]])}, "step", "rate", log=True).axes
    assert axes.lines[0].get_ydata()[0] == pytest.approx(1e-3)  # type: ignore[index]
    assert axes.get_yscale() == "log"
