import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import Optimizer

from hypergradient import Adaptation, Settings
from hypergradient.adaptation import STATE
from hypergradient.start import weights_per_step

DATA = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
TARGET = torch.sin(DATA @ torch.randn(8, 1, generator=torch.Generator().manual_seed(1)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))


def loss(net: nn.Module, rows: slice) -> torch.Tensor:
    return mse_loss(net(DATA[rows]), TARGET[rows])


def adapt(
    lr: float | None = None, steps: int = 300, settings: Settings | None = None
) -> tuple[Adaptation, list[float]]:
    """Train on 32 samples a step, look at 64 others; return the adaptation and the rate of each step."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr or 1.0)
    average, rates = copy.deepcopy(net), []
    adaptation = Adaptation(net, optimizer, settings, average, window=0.1, length=steps)
    for step in range(steps):
        rows = slice(32 * (step % 6), 32 * (step % 6) + 32)
        optimizer.zero_grad()
        now = loss(net, rows)
        now.backward()
        if step == 0:
            adaptation.begin(lr)
        if adaptation.due:
            adaptation.look(lambda network: loss(network, slice(192, 256)))
        rates.append(adaptation.rate)
        adaptation.shrink()
        optimizer.step()
        adaptation.step(now.item(), lambda network, rows=rows: loss(network, rows))  # type: ignore[misc]
        with torch.no_grad():
            for a, p in zip(average.parameters(), net.parameters(), strict=True):
                a.lerp_(p, 1 / max(1, 0.1 * (step + 1)))
    return adaptation, rates


def test_a_hypothetical_step_that_overflows_ends_no_adaptation() -> None:
    """In one step alone: the hypothetical run begins again, and the rate moves on."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    adaptation = Adaptation(net, optimizer, window=0.1, length=200)
    rates, seen = [], []
    for step in range(200):
        optimizer.zero_grad()
        now = loss(net, slice(64))
        now.backward()
        if step == 0:
            adaptation.begin()
        if adaptation.due:
            seen.append(adaptation.look(lambda network: loss(network, slice(192, 256)))["hypergradient"])
        rates.append(adaptation.rate)
        optimizer.step()
        scale = math.inf if step == 30 else 1.0
        adaptation.step(now.item(), lambda network, scale=scale: scale * loss(network, slice(64)))  # type: ignore[misc]
    assert sum(not math.isfinite(h) for h in seen) == 1
    assert len(set(rates[40:])) > 3
    assert adaptation.looks < 80
    assert adaptation.rewound == 0


def test_no_weights_are_kept_as_good_on_a_look_that_was_not_finite() -> None:
    adaptation, _ = adapt(steps=100)
    while not adaptation._moves_now:
        adaptation.steps += 1
    adaptation.sums, adaptation.count = torch.ones(3, dtype=torch.float64), 1  # of looks before
    good, moves = adaptation.good, adaptation.moves
    next(adaptation.average.parameters()).data.fill_(math.nan)
    adaptation.look(lambda network: loss(network, slice(192, 256)))
    assert adaptation.good is good
    assert adaptation.moves == moves


def test_a_network_that_is_empty_as_a_container_has_its_average_looked_at() -> None:
    class Empty(nn.Linear):
        def __len__(self) -> int:
            return 0

    net, average = Empty(8, 1), Empty(8, 1)
    assert Adaptation(net, torch.optim.Adam(net.parameters()), average=average).average is average


def with_gradients(factory: type[Optimizer], net: nn.Module, gradient: float) -> Optimizer:
    for p in net.parameters():
        p.grad = torch.full_like(p, gradient)
    return factory(net.parameters(), lr=0.3)  # type: ignore[call-arg]


@pytest.mark.parametrize(("factory", "step"), [(torch.optim.Adam, 1.0), (torch.optim.SGD, 0.2)])
def test_at_the_unit_rate_a_step_is_as_long_as_the_weights(factory: type[Optimizer], step: float) -> None:
    """Adam's settled step is 1 whatever the gradient, that of SGD the gradient."""
    net = network()
    optimizer = with_gradients(factory, net, 0.2)
    matrices = [p for p in net.parameters() if p.dim() > 1]
    size = sum(p.numel() for p in matrices)
    rms = math.exp(sum(p.numel() * 0.5 * math.log(p.detach().square().mean().item()) for p in matrices) / size)
    assert weights_per_step(optimizer) == pytest.approx(rms / step, rel=1e-4)


def test_a_network_without_gradients_has_no_unit_rate() -> None:
    with pytest.raises(ValueError, match="No weight matrix has a scale"):
        weights_per_step(with_gradients(torch.optim.SGD, network(), 0.0))


def test_the_first_rate_is_the_start_and_a_higher_one_is_lowered_to_it() -> None:
    adaptation, rates = adapt(steps=1)
    assert rates == [pytest.approx(0.03 * weights_per_step(with_gradients(torch.optim.Adam, network(), 1.0)), rel=0.05)]
    assert adapt(lr=5.0, steps=1)[1] == pytest.approx(rates)
    assert not adaptation.climbing


def test_a_lower_rate_is_doubled_in_each_step_until_the_start_is_reached() -> None:
    [start] = adapt(steps=1)[1]
    _, rates = adapt(lr=start / 1000, steps=20)
    ratios = [b / a for a, b in pairwise(rates)]
    assert ratios[:9] == pytest.approx([2.0] * 9)
    assert max(rates[:11]) <= start * (1 + 1e-9)


def test_a_meta_rate_of_0_holds_the_rate_wherever_it_starts() -> None:
    for lr in (None, 1e-5):
        _, rates = adapt(lr, steps=50, settings=Settings(meta_lr=0.0))
        assert len(set(rates)) == 1


@pytest.mark.slow
def test_from_every_start_the_rate_comes_to_the_same_place_and_lowers_the_loss() -> None:
    ends = {lr: adapt(lr) for lr in (None, 1e-6, 1e-3, 1.0)}
    rates = [rates[-1] for _, rates in ends.values()]
    assert max(rates) < 10 * min(rates)  # the starts are a million apart
    untrained = loss(network(), slice(192, 256)).item()
    for adaptation, _ in ends.values():
        assert loss(adaptation.average, slice(192, 256)).item() < 0.3 * untrained


def test_moves_are_spaced_by_a_tenth_of_the_time_and_looks_by_16_steps_at_most() -> None:
    adaptation, rates = adapt(settings=Settings(meta_lr=0.5))
    moved = [step for step, (a, b) in enumerate(pairwise(rates), 1) if a != b]
    assert moved[:9] == list(range(2, 11))
    assert all(b - a >= 0.1 * a for a, b in pairwise(moved))
    assert adaptation.looks == len({1, *moved, *range(16, 300, 16)})


def test_a_run_whose_loss_grows_goes_back_to_its_good_average_at_half_the_rate() -> None:
    adaptation, _ = adapt(steps=60)
    good, rate = [p.clone() for p in adaptation.good], adaptation.rate
    with torch.no_grad():
        for p in [*adaptation.twin.real, *adaptation.average.parameters()]:
            p.mul_(float("nan"))
    adaptation.step(float("nan"), lambda network: loss(network, slice(0, 16)))
    assert adaptation.rewound == 1
    assert adaptation.rate == rate / 2
    assert all(torch.equal(p, g) for p, g in zip(adaptation.twin.real, good, strict=True))
    assert all(torch.equal(p, g) for p, g in zip(adaptation.twin.own, good, strict=True))
    assert all(torch.equal(p, g) for p, g in zip(adaptation.average.parameters(), good, strict=True))
    assert not adaptation.optimizer.state


def test_what_begins_at_zero_does_not_scale_the_start() -> None:
    net = network()
    whole = weights_per_step(with_gradients(torch.optim.Adam, nn.Sequential(net[0]), 1.0))
    nn.init.zeros_(net[2].weight)  # type: ignore[arg-type]
    assert weights_per_step(with_gradients(torch.optim.Adam, net, 1.0)) == pytest.approx(whole, rel=1e-4)


def test_the_gradients_stay_as_they_are() -> None:
    net = network()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    weights_per_step(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters() if p.grad is not None)


def test_a_second_weight_decay_is_refused_unless_the_first_is_off() -> None:
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="AdamW has a weight decay of its own"):
        Adaptation(net, optimizer)
    Adaptation(net, optimizer, Settings(weight_decay=0.0))


def test_a_look_that_is_not_finite_moves_nothing() -> None:
    adaptation, _ = adapt(steps=16)
    rate = adaptation.rate
    adaptation.look(lambda network: loss(network, slice(0, 64)) * float("nan"))
    assert adaptation.rate == rate
    assert adaptation.sums.isfinite().all()


@pytest.mark.parametrize(("look", "smooth"), [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("h", [-1.0, 1.0])
def test_the_rate_does_not_rise_while_both_losses_do_and_may_always_fall(look: float, smooth: float, h: float) -> None:
    adaptation, _ = adapt(steps=100)
    adaptation.losses.at_move = [2.0, adaptation.losses.smooth - smooth]  # at the last move
    adaptation.sums, adaptation.count = torch.tensor([2.0 + look, h, 0.0], dtype=torch.float64), 1
    rate = adaptation.rate
    adaptation._move()
    if h > 0:
        assert adaptation.rate < rate
    elif look > 0 < smooth:
        assert adaptation.rate == rate
    else:
        assert adaptation.rate > rate


@pytest.mark.parametrize(
    "wrong", [{"meta_lr": -1.0}, {"start": 0.0}, {"factor": 1.0}, {"pull": 2.0}, {"weight_decay": math.nan}]
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    [name] = wrong
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got"):
        Settings(**wrong)


def test_a_state_that_another_version_wrote_is_refused_whatever_it_lacks_and_nothing_of_it_is_loaded() -> None:
    (saved, _), (other, _) = adapt(steps=30), adapt(steps=5)
    state, before = saved.state_dict(), str(other.state_dict())
    places = [(part, name) for part in (state, state["losses"], state["twin"]) for name in part]
    assert len(places) == len(STATE) + 2 + 4 + 4
    for place, name in places:
        lost = place.pop(name)
        with pytest.raises(ValueError, match=f"has no {name}: another version wrote it"):
            other.load_state_dict(state)
        place[name] = lost
        assert str(other.state_dict()) == before
    other.load_state_dict(state)
    assert str(other.state_dict()) == str(state)
