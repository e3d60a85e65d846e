"""Notices of the adapter: issued once, and only when they apply."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypergradient import Notice, RateAdapter, Settings
from tests.hypergradient.problem import batch, loss, network

VALIDATION = [batch(1000 + number, 64) for number in range(4)]
OWN = "has a weight decay of its own"
FAR = "times the optimizer's lr: another rate won the race"
BLIND = "was not finite in any look"
NOISE = "moves within noise have multiplied the learning rate"
AVERAGE = "the loss of the averaged weights is"
NOTHING = "the training has not improved it"


def adam(lr: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda params: torch.optim.AdamW(params, lr=lr, **{"weight_decay": 0.0} | options)


def said(
    text: str,
    factory: Callable[[Any], torch.optim.Optimizer],
    of: Callable[[nn.Module, Any], Tensor] = loss,
    steps: int = 90,
    data: Callable[[int], Any] = batch,
    **options: Any,
) -> int:
    """How often this was said in a training that ends in evaluation."""
    net = network()
    optimizer = factory(net.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter = RateAdapter(optimizer, net, of, VALIDATION, **{"length": steps} | options)
        for step in range(steps):
            optimizer.zero_grad()
            adapter.loss(data(step)).backward()
            optimizer.step()
        for _ in range(2):
            adapter.eval()
            adapter.train()
    assert all(issubclass(w.category, Notice) for w in caught if str(w.message).startswith("RateAdapter: "))
    return sum(text in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("decay", "options", "count"),
    [(0.1, {}, 1), (0.0, {}, 0), (0.1, {"decay": False}, 0), (0.1, {"hold": True}, 0)],
)
def test_a_weight_decay_of_the_optimizers_own_is_told_where_one_would_be_adapted(
    decay: float, options: dict[str, Any], count: int
) -> None:
    assert said(OWN, adam(0.01, weight_decay=decay), steps=3, **options) == count


@pytest.mark.parametrize(
    ("lr", "options", "count"),
    [(1e-5, {}, 1), (3.0, {}, 1), (1e-5, {"hold": True}, 0), (1e-5, {"rate": False}, 0)],
)
def test_a_rate_that_is_more_than_twice_or_less_than_half_the_users_is_told_once(
    lr: float, options: dict[str, Any], count: int
) -> None:
    assert said(FAR, adam(lr), **options) == count


def test_a_rate_that_is_near_the_users_is_not_told() -> None:
    assert said(FAR, adam(0.01), steps=32) == 0


@pytest.mark.parametrize("fails", [True, False])
def test_a_validation_loss_that_is_never_finite_is_told(fails: bool) -> None:
    def of(net: nn.Module, data: Any) -> Tensor:
        return loss(net, data) * (1.0 if net.training or not fails else torch.nan)

    assert said(BLIND, adam(0.0086), of) == fails


def coin(step: int) -> Any:
    """A batch of 8 with random labels."""
    x, y = batch(step, 8)
    return x, torch.randint(3, y.shape, generator=torch.Generator().manual_seed(step))


@pytest.mark.slow
def test_a_rate_that_moves_by_noise_alone_is_told_after_a_third_of_the_run_and_one_with_a_reason_is_not() -> None:
    """Of labels without a pattern, and of others."""
    assert said(NOISE, adam(0.006), data=coin, steps=300) == 1
    assert said(NOISE, adam(0.006), data=coin, steps=300, rate=False) == 0
    assert said(NOISE, adam(0.006), data=coin, steps=300, length=None) == 0
    assert said(NOISE, adam(0.006), steps=300) == 0


@pytest.mark.parametrize(("window", "lr"), [(1.0, 3e-3), (0.1, 0.02)])
def test_an_average_that_is_worse_than_the_last_weights_is_told_at_the_end(window: float, lr: float) -> None:
    """Over the whole of a run that learns, and over the end of one that sees noise; without races."""
    settings = Settings(window=window, meta_lr=0.0)
    data = coin if window < 1 else batch
    count = said(AVERAGE, adam(lr), data=data, steps=150, settings=settings)
    assert count == (window == 1)


def test_a_training_that_learned_nothing_is_told_at_the_end_and_one_of_unknown_length_is_not() -> None:
    def wrong(step: int) -> Any:
        x, y = batch(step)
        return x, (y + 1) % 3

    assert said(NOTHING, adam(0.02), data=wrong, steps=120) == 1
    assert said(NOTHING, adam(0.02), data=wrong, steps=120, length=None) == 0
    assert said(NOTHING, adam(0.02), steps=120) == 0
