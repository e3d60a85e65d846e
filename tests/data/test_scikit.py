import pytest
import torch

from data import DigitsDataModule, FriedmanDataModule
from data.tensors import TensorDataModule


@pytest.mark.parametrize(
    ("kind", "sizes", "inputs"),
    [(DigitsDataModule, (1000, 300, 497), 64), (FriedmanDataModule, (1000, 500, 2500), 20)],
)
def test_the_three_sets_have_their_sizes_share_no_sample_and_change_with_the_draw(
    kind: type[TensorDataModule], sizes: tuple[int, ...], inputs: int
) -> None:
    data, other = kind(), kind(seed=1)  # type: ignore[call-arg]
    data.setup("fit")
    other.setup("fit")
    parts = [data.train[0], data.val[0], data.test[0]]
    assert tuple(map(len, parts)) == sizes
    everything = torch.cat(parts)
    assert everything.shape[1] == inputs
    assert len(everything.unique(dim=0)) == sum(sizes)
    assert not torch.equal(other.train[0], data.train[0])


def test_the_noise_of_the_regression_is_what_it_says() -> None:
    """Of standard deviation 3: the part 23.8 / (23.8 + 9) of the values' variance is that of Friedman's function."""
    values = []
    for noise in (3.0, 0.0):
        data = FriedmanDataModule(noise=noise)
        data.setup("fit")
        values.append(torch.cat([data.train[1], data.val[1], data.test[1]]))
    assert torch.corrcoef(torch.stack(values))[0, 1].item() ** 2 == pytest.approx(23.8 / 32.8, abs=0.03)


def test_a_size_that_does_not_fit_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"--data.val_batch_size must lie between 1 and 300 here, got 301"):
        DigitsDataModule(val_batch_size=301)
