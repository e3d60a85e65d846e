import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiment.tuning import distribution, suggest


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("log:1e-5:1e-1", FloatDistribution(1e-5, 1e-1, log=True)),
        ("-1:1.5", FloatDistribution(-1, 1.5)),
        ("32:512", IntDistribution(32, 512)),
        ("log:32:512", IntDistribution(32, 512, log=True)),
        ("1,2,3", CategoricalDistribution([1, 2, 3])),
        ("torch.optim.SGD,torch.optim.Adam", CategoricalDistribution(["torch.optim.SGD", "torch.optim.Adam"])),
        ("true,false", CategoricalDistribution([True, False])),
    ],
)
def test_what_is_typed_is_what_is_searched(text: str, values: BaseDistribution) -> None:
    assert distribution("model.x", text) == values
    for _ in range(5):
        assert values._contains(values.to_internal_repr(suggest(optuna.create_study().ask(), "model.x", text)))


@pytest.mark.parametrize("text", ["model.lr=", "model.lr=1", "model.lr=2:1", "model.lr=log:0:1", "x=1:2"])
def test_what_does_not_read_like_a_range_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        distribution(*text.split("="))
    assert f"--search: {text} must read like" in capsys.readouterr().err
