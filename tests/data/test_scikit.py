from typing import Any

import pytest
import torch

from data import (
    AddingDataModule,
    DiabetesDataModule,
    DigitsDataModule,
    FriedmanDataModule,
    PoissonDataModule,
    TextDataModule,
)
from data.tensors import Samples, TensorDataModule


@pytest.mark.parametrize(
    ("kind", "sizes", "inputs"),
    [
        (DigitsDataModule, (1000, 300, 497), (64,)),
        (FriedmanDataModule, (1000, 500, 2500), (20,)),
        (DiabetesDataModule, (242, 100, 100), (10,)),
        (AddingDataModule, (4000, 1000, 1000), (24, 2)),
        (PoissonDataModule, (2048, 512, 1000), (1,)),
    ],
)
def test_the_three_sets_have_their_sizes_share_no_sample_and_change_with_the_draw(
    kind: type[TensorDataModule], sizes: tuple[int, ...], inputs: tuple[int, ...]
) -> None:
    data, other = kind(), kind(seed=1)  # type: ignore[call-arg]
    data.setup("fit")
    other.setup("fit")
    parts = [data.train[0], data.val[0], data.test[0]]
    assert tuple(map(len, parts)) == sizes
    everything = torch.cat(parts)
    assert everything.shape[1:] == inputs
    # of 3,560 numbers with 24 random bits, two may be equal
    assert len(everything.unique(dim=0)) >= sum(sizes) - (kind is PoissonDataModule)
    assert not torch.equal(other.train[0], data.train[0])


@pytest.mark.parametrize("kind", [AddingDataModule, PoissonDataModule, DiabetesDataModule])
def test_values_are_standardised_and_those_of_a_formula_are_what_it_says(kind: type[TensorDataModule]) -> None:
    data = kind()  # type: ignore[call-arg]
    data.setup("fit")
    x, y = data.train
    assert y.shape == (len(x),)
    if kind is AddingDataModule:
        numbers, marks = x.unbind(2)
        assert torch.equal(marks.unflatten(1, (2, 12)).sum(2), torch.ones(len(x), 2))
        torch.testing.assert_close(y, ((numbers * marks).sum(1) - 1) * 6**0.5)
    if kind is PoissonDataModule:
        torch.testing.assert_close(y, torch.sin(3 * torch.pi * x[:, 0]))
    else:
        assert (y.mean().item(), y.std().item()) == pytest.approx((0, 1), abs=0.05)


def test_an_autoencoder_is_given_its_inputs_as_targets() -> None:
    data, digits = DigitsDataModule(reconstruct=True), DigitsDataModule()
    data.setup("fit")
    digits.setup("fit")
    assert torch.equal(data.test[1], data.test[0])
    assert torch.equal(data.test[0], digits.test[0])


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


X, Y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5
FAULTS = {
    "has 20 inputs and 19 targets; give one of each": (X, Y[:-1]),
    "has 0 inputs and 0 targets; .* at least two samples": (X[:0], Y[:0]),
    "has 1 inputs and 1 targets; .* at least two samples": (X[:1], Y[:1]),
    "has torch.float64 targets; classes must be int64, values float32": (X, Y.double()),
    "has torch.int32 targets; classes must be int64, values float32": (X, Y.int()),
    "holds numbers that are not finite": (X / 0, Y),
    "holds numbers that are not finite ": (X, Y / 0),
    "has samples that differ in shape or type from those of train": (X.repeat(1, 2), Y),
    "has samples that differ in shape or type from those of train ": (X.double(), Y),
    r"has targets of shape \(20, 1\); give \(20,\), as y.squeeze": (X, Y[:, None]),
    r"has targets of shape \(20, 1\); give \(20,\), as y.squeeze ": (X, X[:, :1]),
    "has the label -100; classes count from 0": (X, torch.cat([Y[:-1], torch.tensor([-100])])),
    "has the label -1; classes count from 0": (X, Y - 1),
    "has equal targets, of which R² is undefined": (X, torch.ones(20)),
    "must be a pair of tensors, inputs and targets": (X, (Y, Y)),
    "must be a pair of tensors, inputs and targets ": (X, Y.tolist()),
    "must be a pair of tensors, inputs and targets  ": (X, Y, Y),
}


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("message", FAULTS)
def test_samples_that_cannot_be_trained_or_evaluated_are_refused(message: str, place: int) -> None:
    """Whichever of the three sets has them; the last sample alone may have the fault."""
    spoilt: Any = FAULTS[message]
    kinds = "shape or type" in message
    sound = (X, torch.arange(20.0)) if len(spoilt) == 2 and getattr(spoilt[1], "dtype", 0) == torch.float32 else (X, Y)

    class Given(TensorDataModule):
        def samples(self) -> tuple[Samples, Samples, Samples]:
            train, val, test = (spoilt if number == place else sound for number in range(3))
            return train, val, test

    named = "val" if kinds and place == 0 else ("train", "val", "test")[place]
    with pytest.raises(ValueError, match=f"^data: {named} {message.strip()}"):
        Given(5, 5, 20, 20).setup("fit")


def test_the_extremes_hold_the_ends_of_labels_and_tokens_of_all_sets() -> None:
    class Given(TensorDataModule):
        def samples(self) -> tuple[Samples, Samples, Samples]:
            tokens = torch.arange(60).reshape(20, 3) + 5
            return (tokens, Y + 1), (tokens - 5, Y + 2), (tokens, Y)

    data = Given(5, 5, 20, 20)
    data.setup("fit")
    x, y = data.extremes()
    assert [int(end) for end in (x.min(), x.max(), y.min(), y.max())] == [0, 64, 0, 6]
    assert x.shape == (12, 3)


@pytest.mark.parametrize("seed", range(3))
def test_the_text_is_cut_into_windows_whose_targets_are_the_bytes_that_follow(seed: int) -> None:
    data = TextDataModule(seed=seed)
    data.setup("fit")
    assert [len(x) for x, _ in (data.train, data.val, data.test)] == [8192, 512, 1024]
    assert all(torch.equal(x[:, 1:], y[:, :-1]) for x, y in (data.train, data.val, data.test))
