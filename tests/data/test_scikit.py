import pytest
import torch
from torch import Tensor

from data import DigitsDataModule, FriedmanDataModule, TextDataModule
from data.tensors import TensorDataModule, check


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


def good(seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(20, 3, generator=torch.Generator().manual_seed(seed)), torch.arange(20) % 5


X, Y = good()
FAULTS = {
    "val has 20 inputs and 19 targets": (X, Y[:-1]),
    "val has 0 inputs and 0 targets": (X[:0], Y[:0]),
    "targets of val are torch.float64; classes must be int64, values float32": (X, Y.double()),
    "val contains NaN or infinite numbers": (X / 0, Y),
    "samples of val differ in shape or type from those of train": (X.repeat(1, 2), Y),
    "samples of val differ in shape or type from those of train ": (X.double(), Y),
    "val has the class -1; classes are numbered from 0": (X, Y - 1),
    "classes of val end at 3, those of train at 4": (X, Y % 4),
    "classes of val end at 5, those of train at 4": (X, Y + 1),
}


@pytest.mark.parametrize("message", FAULTS)
def test_samples_that_cannot_be_trained_or_evaluated_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=f"^data: {message.strip()}"):
        check({"train": good(), "val": FAULTS[message], "test": good(1)})
    check({"train": good(), "val": good(2), "test": good(1)})


@pytest.mark.filterwarnings("ignore:The sources of this Python")
@pytest.mark.parametrize("seed", range(3))
def test_the_text_is_cut_into_windows_whose_targets_are_the_bytes_that_follow(seed: int) -> None:
    data = TextDataModule(seed=seed)
    data.setup("fit")
    assert [len(x) for x, _ in (data.train, data.val, data.test)] == [4096, 512, 1024]
    assert all(torch.equal(x[:, 1:], y[:, :-1]) for x, y in (data.train, data.val, data.test))
