import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from hypergradient import Adaptation, NotFiniteError, RateAdapter, Settings
from hypergradient.batches import first, samples
from tests.hypergradient.optimizers import SUPPORTED, Factory
from tests.hypergradient.problem import network

Batch = tuple[Tensor, Tensor]
HELD = Settings(meta_lr=0.0, weight_decay=0.0)
OWN_DECAY = {"SGD-momentum", "Adam-amsgrad", "AdamW", "Muon"}
everything = pytest.mark.parametrize("name", SUPPORTED)


def batch(number: int, size: int = 32) -> Batch:
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(size, 5, generator=draw, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


VALIDATION = [batch(1000 + number) for number in range(3)]


def loss(net: nn.Module, data: Batch) -> Tensor:
    return cross_entropy(net(data[0]), data[1])


def built(factory: Factory, **options: Any) -> tuple[nn.Module, Optimizer, RateAdapter]:
    net = network()
    optimizer = factory([{"params": [p]} for p in net.parameters()])
    optimizer.param_groups[1]["lr"] /= 3
    return net, optimizer, RateAdapter(optimizer, net, loss, VALIDATION, **options)


def train(optimizer: Optimizer, adapter: RateAdapter, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        adapter.loss(batch(step)).backward()
        optimizer.step()


def equal(net: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.slow
@everything
def test_it_is_the_loop_that_is_written_out_bit_for_bit(name: str) -> None:
    settings = Settings(weight_decay=0.0) if name in OWN_DECAY else Settings()
    net, optimizer, adapter = built(SUPPORTED[name], length=40)
    other, own, unused = built(SUPPORTED[name])
    unused.remove()
    average = copy.deepcopy(other)
    adaptation = Adaptation(other, own, settings, average, 0.1, 40)
    looks: Iterator[Batch] = iter(VALIDATION * 40)
    for step in range(40):
        own.zero_grad()
        now = loss(other, batch(step))
        now.backward()
        if step == 0:
            adaptation.begin()
        if adaptation.due:
            data = next(looks)
            adaptation.look(lambda network: loss(network, data))  # noqa: B023
        adaptation.shrink()
        own.step()
        part = first(batch(step), 16)
        adaptation.step(now.detach(), lambda network: loss(network, part))  # noqa: B023
        with torch.no_grad():
            for a, p in zip(average.parameters(), other.parameters(), strict=True):
                a.lerp_(p, 1 / max(1.0, 0.1 * (step + 1)))
    train(optimizer, adapter, range(40))
    assert equal(net, other)
    assert equal(adapter.averaged, average)
    assert adapter.last["lr"] == adaptation.rate == optimizer.param_groups[0]["lr"]
    assert adapter.report()["highest"] > 1.3 * adapter.report()["lowest"]


@pytest.mark.slow
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("name", sorted(SUPPORTED.keys() - {"SGD-maximize"}))  # whose loss rises: the guard goes back
def test_with_the_rate_held_and_no_decay_training_is_the_plain_one_bit_for_bit(name: str, closure: bool) -> None:
    net, optimizer, adapter = built(SUPPORTED[name], settings=HELD)
    plain_net, plain, unused = built(SUPPORTED[name])
    unused.remove()

    def gradients(optimizer: Optimizer, take: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            optimizer.zero_grad()
            now = take()
            now.backward()
            return now

        return call

    def step(optimizer: Optimizer, take: Callable[[], Tensor]) -> None:
        if closure:
            optimizer.step(gradients(optimizer, take))  # type: ignore[arg-type]
        else:
            gradients(optimizer, take)()
            optimizer.step()

    for number in range(20):
        step(optimizer, lambda: adapter.loss(batch(number)))  # noqa: B023
        for group, other in zip(plain.param_groups, optimizer.param_groups, strict=True):
            group["lr"] = other["lr"]
        step(plain, lambda: loss(plain_net, batch(number)))  # noqa: B023
    assert equal(net, plain_net)
    assert str(optimizer.state_dict()) == str(plain.state_dict())
    assert adapter.report()["lowest"] == adapter.report()["highest"] > 0


def warm_up(optimizer: Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))  # from 0


def test_a_schedule_composes_and_keeps_its_own_rates() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])
    schedule, scales = warm_up(optimizer), []
    for step, part in enumerate([0.0, 1 / 3, 2 / 3, *[1.0] * 30]):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * part)
        train(optimizer, adapter, range(step, step + 1))
        schedule.step()
        scales.append(adapter.last["lr"] / (0.02 * part) if part else 1.0)
    assert scales[1] == pytest.approx(scales[2])  # before the first move
    assert scales[-1] != pytest.approx(scales[1])


@pytest.mark.parametrize("scheduled", [False, True], ids=["alone", "schedule"])
def test_a_run_that_goes_on_from_its_state_is_the_uninterrupted_one_bit_for_bit(scheduled: bool) -> None:
    def run(seed: int) -> tuple[Any, ...]:
        torch.manual_seed(seed)
        net, optimizer, adapter = built(SUPPORTED["Adam"], length=60)
        return net, optimizer, adapter, *([warm_up(optimizer)] if scheduled else [])

    def go(parts: tuple[Any, ...], steps: range) -> None:
        for step in steps:
            train(parts[1], parts[2], range(step, step + 1))
            for schedule in parts[3:]:
                schedule.step()

    whole, part, rest = run(0), run(0), run(1)
    go(whole, range(60))
    go(part, range(37))
    file = io.BytesIO()
    torch.save([one.state_dict() for one in part], file)
    file.seek(0)
    for one, state in zip(rest, torch.load(file, weights_only=True), strict=True):
        one.load_state_dict(state)
    go(rest, range(37, 60))
    assert equal(whole[0], rest[0])
    assert equal(whole[2].averaged, rest[2].averaged)
    assert whole[2].report() == rest[2].report()


def test_the_state_of_a_run_with_another_window_is_refused() -> None:
    _, _, averaging = built(SUPPORTED["Adam"])
    _, _, other = built(SUPPORTED["Adam"], window=0)
    with pytest.raises(ValueError, match="RateAdapter: window is that of the state"):
        other.load_state_dict(averaging.state_dict())


@everything
def test_an_optimizers_own_decay_is_not_doubled_and_biases_and_norms_are_not_shrunk(name: str) -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    matrices = [p for p in net.parameters() if p.dim() > 1]
    optimizer = SUPPORTED[name](matrices)
    adapter = RateAdapter(optimizer, net, loss, VALIDATION)
    assert adapter.adaptation.twin.decays == [True, True]
    train(optimizer, adapter, range(3))
    assert (adapter.last["decay"] > 0) is (name not in OWN_DECAY)
    if name != "Muon":  # which takes matrices alone
        adapter = RateAdapter(SUPPORTED[name](net.parameters()), net, loss, VALIDATION)
        assert adapter.adaptation.twin.decays == [True, False, False, False, True, False]


def test_accumulated_batches_make_one_step() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])
    for step in range(10):
        optimizer.zero_grad()
        for half in (batch(2 * step), batch(2 * step + 1)):
            (adapter.loss(half) / 2).backward()
        assert len(adapter.seen) == 2
        optimizer.step()
        assert adapter.seen == []
    assert (adapter.report()["steps"], adapter.adaptation.steps) == (10, 10)


def test_groups_that_are_added_and_parameters_that_are_released_are_taken_in() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)).double()
    trunk, middle, head = (layer for layer in net if isinstance(layer, nn.Linear))
    middle.requires_grad_(False)
    optimizer = torch.optim.Adam([*head.parameters(), *middle.parameters()], lr=1e-2)
    adapter = RateAdapter(optimizer, net, loss, VALIDATION)
    train(optimizer, adapter, range(10))
    assert len(adapter.adaptation.twin.real) == 2
    middle.requires_grad_(True)
    train(optimizer, adapter, range(10, 20))
    assert len(adapter.adaptation.twin.real) == 4
    optimizer.add_param_group({"params": list(trunk.parameters()), "lr": optimizer.param_groups[0]["lr"] / 10})
    before, rate = trunk.weight.clone(), adapter.last["lr"]
    train(optimizer, adapter, range(20, 60))
    assert len(adapter.adaptation.twin.real) == 6
    assert not torch.equal(before, trunk.weight)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"] / 10)
    assert adapter.last["lr"] != rate


def test_gradients_that_are_not_finite_are_skipped_and_the_run_goes_on_from_its_last_good_weights() -> None:
    net, optimizer, adapter = built(SUPPORTED["Adam"])
    train(optimizer, adapter, range(30))
    good, rate = copy.deepcopy(adapter.adaptation.good), adapter.last["lr"]
    optimizer.zero_grad()
    (adapter.loss(batch(30)) * math.nan).backward()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), good, strict=True))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 2)
    train(optimizer, adapter, range(31, 40))
    assert (adapter.skipped, adapter.in_a_row, adapter.report()["rewound"]) == (1, 0, 1)


def test_too_many_in_a_row_end_the_run_and_the_message_says_where_it_began() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"], patience=3)
    train(optimizer, adapter, range(2))
    for step in range(2):
        optimizer.zero_grad()
        (adapter.loss(batch(step)) * math.inf).backward()
        optimizer.step()
    (adapter.loss(batch(2)) * math.inf).backward()
    with pytest.raises(NotFiniteError, match="3 steps in a row were skipped, from step 3 on: the gradients are"):
        optimizer.step()


def test_a_given_rate_is_a_start_from_below_and_one_that_is_too_high_is_lowered_in_words() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"], lr=1e-6)
    train(optimizer, adapter, range(1))
    assert adapter.last["lr"] == pytest.approx(1e-6)
    _, optimizer, adapter = built(SUPPORTED["Adam"], lr=10.0)
    with pytest.warns(UserWarning, match="lr 10 is lowered to 0.0"):
        train(optimizer, adapter, range(1))


def test_a_validation_loader_leaves_the_random_stream_as_it_was() -> None:
    loader = DataLoader(TensorDataset(*batch(7, 64)), batch_size=16, shuffle=True)
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    adapter = RateAdapter(optimizer, net, loss, loader)
    before = torch.get_rng_state()
    train(optimizer, adapter, range(20))
    assert adapter.report()["looks"] > 4
    assert torch.equal(before, torch.get_rng_state())


def test_what_was_looked_at_and_what_it_cost_is_reported() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])
    train(optimizer, adapter, range(50))
    report = adapter.report()
    assert (report["steps"], report["looks"], report["skipped"]) == (50, adapter.position, 0)
    assert report["passes"] == 1 + (50 * 16 / 32 + report["looks"]) / 50
    assert report["lowest"] <= report["lr"] <= report["highest"]


def test_removed_it_leaves_an_optimizer_that_goes_on_at_the_rate_that_was_found() -> None:
    net, optimizer, adapter = built(SUPPORTED["Adam"])
    train(optimizer, adapter, range(30))
    adapter.remove()
    rate, steps = optimizer.param_groups[0]["lr"], adapter.steps
    loss(net, batch(30)).backward()
    optimizer.step()
    assert (rate, steps) == (adapter.last["lr"], adapter.steps)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda net, data: loss(net, data).detach(), TypeError, "0-d, that backward.. takes, got .., detached or not"),
        (lambda net, data: {"loss": loss(net, data)}, TypeError, "got dict"),
        (lambda *_: None, TypeError, "got NoneType"),
        (lambda net, data: net(data[0])[:, 0], TypeError, r"got \(16,\), detached or not"),
    ],
)
def test_a_loss_that_is_none_is_refused_in_words(wrong: Any, error: type[Exception], message: str) -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    adapter = RateAdapter(optimizer, net, wrong, VALIDATION)
    now = loss(net, batch(0))
    now.backward()
    adapter.see(batch(0), now)
    with pytest.raises(error, match=message):
        optimizer.step()


def test_a_step_without_a_batch_is_refused_in_words() -> None:
    net, optimizer, _ = built(SUPPORTED["Adam"])
    loss(net, batch(0)).backward()
    with pytest.raises(RuntimeError, match=r"no batch was told for this step: call adapter.loss\(batch\), or see"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "RateAdapter: lr is positive, got 0.0"),
        ({"window": 1.5}, "RateAdapter: window is 0 to 1, got 1.5"),
        ({"part": 0.0}, "RateAdapter: part is above 0, at most 1, got 0.0"),
        ({"patience": 0}, "RateAdapter: patience is 1 or more, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(SUPPORTED["Adam"], **options)


def test_what_is_not_in_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match="the optimizer moves parameters of the network alone, got 2 others"):
        RateAdapter(torch.optim.Adam(network().parameters()), network(), loss, VALIDATION)


def test_batches_that_can_be_read_once_are_refused_when_they_end() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    adapter = RateAdapter(optimizer, net, loss, iter(VALIDATION))
    with pytest.raises(ValueError, match="no validation batches, or no second time: give a loader or a list"):
        train(optimizer, adapter, range(20))


def test_a_part_of_a_batch_has_its_structure() -> None:
    x, y = batch(0)
    assert samples({"x": x, "more": [y, (x, y)]}) == 32
    part = first({"x": x, "more": [y, (x, y)], "name": "kept"}, 16)
    assert [len(part["x"]), len(part["more"][0]), len(part["more"][1][1]), part["name"]] == [16, 16, 16, "kept"]
    assert samples((x, torch.zeros(3))) == samples((x, torch.zeros(()))) == 0  # cannot be cut: the whole batch is taken


def schedules(kind: str, optimizer: Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    of = torch.optim.lr_scheduler
    if kind == "OneCycleLR":
        return of.OneCycleLR(optimizer, 0.02, total_steps=200, anneal_strategy="linear")
    return of.LambdaLR(optimizer, lambda _: 1.0) if kind == "LambdaLR" else of.ExponentialLR(optimizer, 1.0)


@pytest.mark.parametrize("kind", ["none", "LambdaLR", "ExponentialLR"])
def test_going_back_halves_the_rate_under_any_schedule(kind: str) -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])
    schedule = schedules(kind, optimizer) if kind != "none" else None
    for step in range(40):
        if step == 30:
            rate, own = adapter.last["lr"], optimizer.param_groups[0]["lr"]
        factor = math.nan if step == 30 else 1.0
        optimizer.zero_grad()
        (adapter.loss(batch(step)) * factor).backward()
        optimizer.step()
        if schedule:
            schedule.step()
        if step == 31:
            break
    assert adapter.last["lr"] == pytest.approx(rate / 2)
    assert adapter.report()["rewound"] == 1
    if schedule:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(own)


def test_a_climb_during_a_warm_up_ends_at_the_methods_start() -> None:
    _, optimizer, free = built(SUPPORTED["Adam"])
    train(optimizer, free, range(1))
    start = free.last["lr"]
    _, optimizer, adapter = built(SUPPORTED["Adam"], lr=start / 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    for step in range(30):
        train(optimizer, adapter, range(step, step + 1))
        schedule.step()
        if not adapter.adaptation.climbing:
            break
    assert not adapter.adaptation.climbing
    assert adapter.scale * optimizer.param_groups[0]["initial_lr"] == pytest.approx(start)  # the schedule goes on


def test_one_cycle_comes_to_the_methods_start_and_the_hypothetical_step_has_its_momentum() -> None:
    def one_group() -> tuple[Optimizer, RateAdapter]:
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        return optimizer, RateAdapter(optimizer, net, loss, VALIDATION, settings=HELD)

    (optimizer, adapter), (plain, free) = one_group(), one_group()
    schedule, rates = schedules("OneCycleLR", optimizer), []
    for step in range(100):
        train(optimizer, adapter, range(step, step + 1))
        assert adapter.adaptation.twin.optimizer.param_groups[0]["betas"] == optimizer.param_groups[0]["betas"]
        rates.append(adapter.last["lr"])
        schedule.step()
    train(plain, free, range(1))
    assert max(rates) == pytest.approx(free.last["lr"], rel=0.05)


def test_batches_of_steps_that_were_not_taken_are_forgotten() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])
    for step in range(5):  # as a scaler does that overflows
        optimizer.zero_grad()
        adapter.loss(batch(step)).backward()
    assert len(adapter.seen) == 1
    optimizer.step()
    assert adapter.seen == []


def test_a_group_at_rate_0_stays_there_and_the_others_are_adapted() -> None:
    net = network()
    first_group, second = net.parameters()
    groups: list[dict[str, Any]] = [{"params": [first_group], "lr": 0.0}, {"params": [second]}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    before = first_group.detach().clone()
    adapter = RateAdapter(optimizer, net, loss, VALIDATION, decays=lambda p: p is not first_group)
    train(optimizer, adapter, range(40))
    assert adapter.report()["highest"] > adapter.report()["lowest"] > 0
    assert adapter.seen == []
    assert optimizer.param_groups[0]["lr"] == 0
    assert torch.equal(before, first_group)


def test_a_rate_that_is_a_tensor_starts_where_a_number_does() -> None:
    rates = []
    for lr in (1e-3, torch.tensor(1e-3)):
        net = network()
        groups: list[dict[str, Any]] = [{"params": [p]} for p in net.parameters()]
        optimizer = torch.optim.Adam(groups, lr=lr)
        adapter = RateAdapter(optimizer, net, loss, VALIDATION)
        train(optimizer, adapter, range(20))
        rates.append(adapter.report())
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)


def test_a_schedule_written_by_hand_is_told_of_once() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])

    def by_hand() -> None:
        for step in range(10):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            train(optimizer, adapter, range(step, step + 1))

    with pytest.warns(UserWarning, match="was set from outside before three steps in a row") as told:
        by_hand()
    assert len(told) == 1


def test_a_group_of_frozen_parameters_may_be_added() -> None:
    net = network()
    net[2].requires_grad_(False)
    optimizer = torch.optim.Adam(net[0].parameters())
    adapter = RateAdapter(optimizer, net, loss, VALIDATION)
    train(optimizer, adapter, range(3))
    optimizer.add_param_group({"params": list(net[2].parameters())})
    train(optimizer, adapter, range(3, 6))
    net[2].requires_grad_(True)  # released
    train(optimizer, adapter, range(6, 9))
    assert adapter.adaptation.steps == 9
