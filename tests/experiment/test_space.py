import argparse

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiment.options import ARMS
from experiment.space import default_space, dimension, distribution, extremes, suggest


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("log:1e-5:1e-1", FloatDistribution(1e-5, 1e-1, log=True)),
        ("0.1:0.9", FloatDistribution(0.1, 0.9)),
        ("-1:1.5", FloatDistribution(-1, 1.5)),
        ("32:512", IntDistribution(32, 512)),
        ("log:32:512", IntDistribution(32, 512, log=True)),
        ("1,2,3", CategoricalDistribution([1, 2, 3])),
        ("torch.optim.SGD,torch.optim.Adam", CategoricalDistribution(["torch.optim.SGD", "torch.optim.Adam"])),
        ("true,false", CategoricalDistribution([True, False])),
    ],
)
def test_what_is_typed_is_what_is_searched(text: str, values: BaseDistribution) -> None:
    assert dimension(f"model.x={text}") == ("model.x", text)
    assert distribution(text) == values
    for _ in range(5):
        assert values._contains(values.to_internal_repr(suggest(optuna.create_study().ask(), "model.x", text)))
    assert all(values._contains(values.to_internal_repr(end)) for end in extremes(text))


@pytest.mark.parametrize("text", ["model.lr", "model.lr=", "model.lr=1", "model.lr=2:1", "model.lr=log:0:1", "x=1:2"])
def test_what_does_not_read_like_a_range_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must read like"):
        dimension(text)


def test_each_arm_has_a_space_with_its_rate() -> None:
    for arm in ARMS:
        assert "model.lr" in default_space(arm)
