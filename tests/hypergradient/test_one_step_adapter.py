import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from hypergradient import NotFiniteError, OneStepAdapter
from tests.hypergradient import problem
from tests.hypergradient.optimizers import SUPPORTED, Factory
from tests.hypergradient.problem import TRAIN, VAL

everything = pytest.mark.parametrize("factory", SUPPORTED.values(), ids=SUPPORTED.keys())


def adapted(net: nn.Sequential, optimizer: Optimizer, **options: Any) -> OneStepAdapter:
    step = iter(range(10_000))
    return OneStepAdapter(optimizer, net, lambda: problem.loss(net, VAL, next(step)), **options)


def equal(net: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@everything
def test_with_meta_rate_0_training_is_the_plain_one_bit_for_bit(
    factory: Factory, dtype: torch.dtype, closure: bool
) -> None:
    net = problem.network().to(dtype)
    optimizer = problem.groups(net, factory)
    plain_net, plain = problem.twin(net, optimizer)
    adapter = adapted(net, optimizer, meta_lr=0.0)

    def step(net: nn.Module, optimizer: Optimizer, number: int) -> None:
        def gradients() -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(net, TRAIN, number)
            loss.backward()
            return loss

        if closure:
            optimizer.step(gradients)  # type: ignore[arg-type]
        else:
            gradients()
            optimizer.step()

    for number in range(20):
        step(net, optimizer, number)
        step(plain_net, plain, number)
    assert equal(net, plain_net)
    assert str(optimizer.state_dict()) == str(plain.state_dict())
    assert adapter.looks == 20


@pytest.mark.parametrize("per_group", [False, True])
@everything
def test_a_step_is_the_adapted_step_of_the_six_lines(factory: Factory, per_group: bool) -> None:
    net = problem.network()
    optimizer = problem.groups(net, factory)
    other_net, other = problem.twin(net, optimizer)
    adapter = adapted(net, optimizer, per_group=per_group)
    log_scale = torch.zeros(2 if per_group else (), dtype=torch.float64, requires_grad=True)
    meta = torch.optim.Adam([log_scale], lr=0.05)
    for step in range(20):
        problem.backward(net, optimizer, step)
        optimizer.step()
        h = problem.meta_step(other_net, other, log_scale, meta, step)
        torch.testing.assert_close(adapter.last["hypergradient"], h, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(adapter.log_scale, log_scale.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(net.state_dict(), other_net.state_dict(), rtol=0, atol=1e-12)
    assert adapter.log_scale.abs().max() > 0.1


def random_network(depth: int, width: int, norm: bool, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(5 if i == 0 else width, width), *([nn.BatchNorm1d(width)] if norm else []), nn.Tanh()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, 3)).double()


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([name for name in SUPPORTED if name != "Muon"]),  # which takes matrices alone
    depth=st.integers(1, 3),
    width=st.integers(1, 9),
    norm=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
    batch=st.integers(2, 20),
    rate=st.floats(1e-4, 0.3),
    meta_lr=st.floats(0.001, 2.0),
    seed=st.integers(0, 2**31),
)
def test_whatever_is_trained_h_is_the_finite_difference_bounds_hold_and_the_look_leaves_no_trace(
    name: str, depth: int, width: int, norm: bool, dropout: float, batch: int, rate: float, meta_lr: float, seed: int
) -> None:
    torch.manual_seed(seed)
    net = random_network(depth, width, norm, dropout)
    x, y = torch.randn(batch, 5, dtype=torch.float64), torch.randint(3, (batch,))
    look_x, look_y = torch.randn(batch, 5, dtype=torch.float64), torch.randint(3, (batch,))
    optimizer = SUPPORTED[name](net.parameters())
    optimizer.param_groups[0]["lr"] = rate
    adapter = OneStepAdapter(
        optimizer, net, lambda: cross_entropy(net(look_x), look_y), meta_lr=meta_lr, bounds=(0.5, 1.5), max_change=0.2
    )
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        before, scale = copy.deepcopy((net, optimizer.state_dict())), adapter.log_scale.exp().item()
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        buffers = {key: value.clone() for key, value in net.named_buffers()}
        stream = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), stream)
        assert all(torch.equal(value, buffers[key]) for key, value in net.named_buffers())
        assert all(module.training for module in net.modules())
        after = [_after(before, SUPPORTED[name], gradients, rate * scale * f, look_x, look_y) for f in _AROUND]
        h, slope = adapter.last["hypergradient"].sum().item(), (after[1] - after[0]) / (2 * _E)
        assert h == pytest.approx(slope, rel=1e-5, abs=1e-8)
        new = adapter.log_scale.exp().item()
        assert 0.5 - 1e-12 <= new <= 1.5 + 1e-12
        assert abs(math.log(new / scale)) <= 0.2 + 1e-12
        assert adapter.last["lr"].item() == pytest.approx(rate * new)


_E = 1e-5
_AROUND = (math.exp(-_E), math.exp(_E))


def _after(before: Any, factory: Factory, gradients: list[Tensor], rate: float, x: Tensor, y: Tensor) -> float:
    """Return the validation loss after an ordinary step of a copy at this rate."""
    net, state = copy.deepcopy(before)
    optimizer = factory(net.parameters())
    optimizer.load_state_dict(state)
    for p, g in zip(net.parameters(), gradients, strict=True):
        p.grad = g.clone()
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    net.eval()
    return cross_entropy(net(x), y).item()


def spoilt(net: nn.Module) -> None:
    next(net.parameters()).grad.view(-1)[0] = math.nan  # type: ignore[union-attr]


def test_a_step_with_gradients_that_are_not_finite_is_skipped_whole_and_counted() -> None:
    net = problem.network()
    optimizer = SUPPORTED["Adam"](net.parameters())
    adapter = adapted(net, optimizer)
    for step in range(3):
        problem.backward(net, optimizer, step)
        optimizer.step()
    kept, state, scale = copy.deepcopy(net), str(optimizer.state_dict()), adapter.log_scale.clone()
    problem.backward(net, optimizer)
    spoilt(net)
    optimizer.step()
    assert equal(net, kept)
    assert str(optimizer.state_dict()) == state
    assert torch.equal(adapter.log_scale, scale)
    assert (adapter.skipped, adapter.in_a_row, adapter.looks) == (1, 1, 3)
    problem.backward(net, optimizer)
    optimizer.step()
    assert (adapter.skipped, adapter.in_a_row, adapter.looks) == (1, 0, 4)


def test_a_step_without_any_gradient_moves_nothing_and_looks_at_nothing() -> None:
    net = problem.network()
    optimizer = torch.optim.Adam(net.parameters())
    adapter = OneStepAdapter(optimizer, net, lambda: problem.loss(net, problem.VAL))
    start = copy.deepcopy(net.state_dict())
    optimizer.step()
    assert (adapter.looks, adapter.skipped) == (0, 0)
    torch.testing.assert_close(net.state_dict(), start, rtol=0, atol=0)


def test_too_many_in_a_row_end_the_run_and_the_message_says_where_it_began() -> None:
    net = problem.network()
    optimizer = SUPPORTED["SGD"](net.parameters())
    adapted(net, optimizer, patience=3)
    for step in range(5):
        problem.backward(net, optimizer, step)
        optimizer.step()
    for _ in range(2):
        problem.backward(net, optimizer)
        spoilt(net)
        optimizer.step()
    problem.backward(net, optimizer)
    spoilt(net)
    with pytest.raises(NotFiniteError, match="3 steps in a row were skipped, from step 6 on: the gradients are not"):
        optimizer.step()


def test_steps_between_looks_that_were_fine_end_a_row() -> None:
    net = problem.network()
    optimizer = SUPPORTED["Adam"](net.parameters())
    adapter = adapted(net, optimizer, every=4, patience=2)
    for step in range(8):
        problem.backward(net, optimizer, step)
        if step in (1, 5):
            spoilt(net)
        optimizer.step()
    assert (adapter.skipped, adapter.in_a_row, adapter.looks) == (2, 0, 2)


def test_validation_losses_that_stay_not_finite_end_the_run_too() -> None:
    net = problem.network()
    optimizer = SUPPORTED["Adam"](net.parameters())
    OneStepAdapter(optimizer, net, lambda: problem.loss(net, VAL) * math.nan, patience=2)
    problem.backward(net, optimizer)
    optimizer.step()
    problem.backward(net, optimizer)
    with pytest.raises(NotFiniteError, match="2 steps in a row were skipped, from step 1 on: the hypergradient is not"):
        optimizer.step()


def test_a_validation_loss_that_is_not_finite_leaves_the_rate_and_the_plain_step() -> None:
    net = problem.network()
    optimizer = SUPPORTED["Adam"](net.parameters())
    plain_net, plain = problem.twin(net, optimizer)
    adapter = OneStepAdapter(optimizer, net, lambda: problem.loss(net, VAL) * math.inf)
    for pair in ((net, optimizer), (plain_net, plain)):
        problem.backward(*pair)
        pair[1].step()
    assert equal(net, plain_net)
    assert (adapter.log_scale.item(), adapter.skipped, adapter.looks) == (0, 1, 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"max_change": 0.3}, 0.3), ({"bounds": (0.5, 1.2), "max_change": 9.0}, math.log(1.2))],
    ids=["max-change", "cap"],
)
def test_an_active_bound_holds_and_is_told(options: dict[str, Any], expected: float) -> None:
    net = problem.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)  # far too small: the rate wants up
    adapter = adapted(net, optimizer, meta_lr=5.0, **options)
    problem.backward(net, optimizer)
    optimizer.step()
    assert adapter.log_scale.item() == pytest.approx(expected)
    assert adapter.last["bounded"] == 1
    adapter.remove()
    free = adapted(net, optimizer, meta_lr=0.01)
    problem.backward(net, optimizer)
    optimizer.step()
    assert free.last["bounded"] == 0


def test_a_run_that_goes_on_from_its_state_is_the_uninterrupted_one_bit_for_bit() -> None:
    def run(net: nn.Sequential, optimizer: Optimizer, _adapter: OneStepAdapter, steps: range) -> None:
        for step in steps:
            problem.backward(net, optimizer, step)
            optimizer.step()

    def built(first: int) -> tuple[nn.Sequential, Optimizer, OneStepAdapter]:
        net, step = problem.network(), iter(range(first, 100))
        optimizer = problem.groups(net, SUPPORTED["AdamW"])
        return net, optimizer, OneStepAdapter(optimizer, net, lambda: problem.loss(net, VAL, next(step)), every=2)

    whole, part, rest = built(0), built(0), built(4)  # looks before step 7
    run(*whole, range(20))
    run(*part, range(7))
    file = io.BytesIO()
    torch.save([part[0].state_dict(), part[1].state_dict(), part[2].state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    rest[0].load_state_dict(states[0])
    rest[1].load_state_dict(states[1])
    rest[2].load_state_dict(states[2])
    run(*rest, range(7, 20))
    assert equal(whole[0], rest[0])
    assert str(whole[2].state_dict()) == str(rest[2].state_dict())


def test_a_schedule_composes_and_keeps_its_own_rates() -> None:
    net = problem.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))  # from 0
    adapter = adapted(net, optimizer)
    for step, own in enumerate([0.0, 0.1 / 3, 0.2 / 3, 0.1, 0.1]):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(own)
        problem.backward(net, optimizer, step)
        optimizer.step()
        warm_up.step()
        assert adapter.last["lr"].item() == pytest.approx(own * adapter.log_scale.exp().item())
    assert adapter.log_scale != 0


def test_removed_it_leaves_a_plain_optimizer() -> None:
    net = problem.network()
    optimizer = SUPPORTED["Adam"](net.parameters())
    adapted(net, optimizer).remove()
    plain_net, plain = problem.twin(net, optimizer)
    for pair in ((net, optimizer), (plain_net, plain)):
        problem.backward(*pair)
        pair[1].step()
    assert equal(net, plain_net)


def test_the_standard_error_is_the_spread_of_h_from_batch_to_batch() -> None:
    net = problem.network()
    adapter = adapted(net, torch.optim.SGD(net.parameters(), lr=0.1))
    draw = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(2_000):
        adapter.looks += 1
        errors.append(adapter._error(5 + 0.3 * torch.randn(1, generator=draw, dtype=torch.float64)))
    assert torch.stack(errors).mean().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta_lr": -1.0}, "meta_lr is a finite number, 0 or more, got -1.0"),
        ({"meta_lr": math.nan}, "meta_lr is a finite number"),
        ({"every": 0}, "every is 1 or more, got 0"),
        ({"bounds": (2.0, 3.0)}, "bounds are two positive numbers around 1"),
        ({"bounds": (0.0, 3.0)}, "bounds are two positive numbers around 1"),
        ({"max_change": 0.0}, "max_change is positive"),
        ({"patience": 0}, "patience is 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    net = problem.network()
    with pytest.raises(ValueError, match=message):
        adapted(net, SUPPORTED["Adam"](net.parameters()), **options)


def test_an_optimizer_that_cannot_be_adapted_is_refused() -> None:
    net = problem.network()
    rprop: Callable[..., Optimizer] = torch.optim.Rprop
    with pytest.raises(ValueError, match="Rprop cannot be adapted"):
        adapted(net, rprop(net.parameters()))
