import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from hypergradient import Adaptation, OneStepAdapter, RateAdapter, Settings, Twin
from hypergradient.batches import first, samples
from tests.hypergradient.adapted import HELD, VALIDATION, Batch, batch, built, equal, loss, train, warm_up
from tests.hypergradient.optimizers import SUPPORTED
from tests.hypergradient.problem import network

OWN_DECAY = {"SGD-momentum", "Adam-amsgrad", "AdamW", "Muon"}
everything = pytest.mark.parametrize("name", SUPPORTED)


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


def test_a_part_of_a_batch_has_its_structure() -> None:
    x, y = batch(0)
    assert samples({"x": x, "more": [y, (x, y)]}) == 32
    part = first({"x": x, "more": [y, (x, y)], "name": "kept"}, 16)
    assert [len(part["x"]), len(part["more"][0]), len(part["more"][1][1]), part["name"]] == [16, 16, 16, "kept"]
    assert samples((x, torch.zeros(3))) == samples((x, torch.zeros(()))) == 0  # cannot be cut: the whole batch is taken


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


@pytest.mark.parametrize("kind", [RateAdapter, OneStepAdapter])
def test_a_state_with_a_group_that_was_added_is_loaded_where_it_was_added_too(kind: type) -> None:
    def build() -> tuple[Any, Optimizer, Any]:
        net = network()
        optimizer = torch.optim.Adam(net[0].parameters(), lr=0.01)
        if kind is RateAdapter:
            adapter: Any = RateAdapter(optimizer, net, loss, VALIDATION)
        else:
            adapter = OneStepAdapter(optimizer, net, lambda: loss(net, VALIDATION[0]), per_group=True)
        optimizer.add_param_group({"params": list(net[2].parameters())})
        return net, optimizer, adapter

    def steps(net: Any, optimizer: Optimizer, adapter: Any, numbers: range) -> None:
        for number in numbers:
            optimizer.zero_grad()
            told = adapter.loss(batch(number)) if kind is RateAdapter else loss(net, batch(number))
            told.backward()
            optimizer.step()

    whole, parts = build(), build()
    steps(*whole, range(20))
    for own, saved in zip(parts, whole, strict=True):
        own.load_state_dict(copy.deepcopy(saved.state_dict()))
    if kind is RateAdapter:
        steps(*whole, range(20, 30))
        steps(*parts, range(20, 30))
        assert equal(whole[0], parts[0])
    else:
        assert torch.equal(parts[2].log_scale, whole[2].log_scale)


def test_what_a_scaler_tells_a_fused_optimizer_for_one_step_is_not_copied() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, fused=True)
    for name in ("grad_scale", "found_inf"):
        setattr(optimizer, name, torch.ones(()))
    copied = Twin(net, optimizer).optimizer
    assert not {"grad_scale", "found_inf"} & vars(copied).keys()


@pytest.mark.parametrize("kind", [RateAdapter, OneStepAdapter])
def test_a_state_that_another_version_wrote_is_refused_whatever_it_lacks(kind: type) -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    if kind is RateAdapter:
        adapter: Any = RateAdapter(optimizer, net, loss, VALIDATION)
        train(optimizer, adapter, range(3))
    else:
        adapter = OneStepAdapter(optimizer, net, lambda: loss(net, VALIDATION[0]))
    state, before = adapter.state_dict(), str(adapter.state_dict())
    for name in [name for name in state if name != "average"]:  # without one it is the state of a run with window=0
        lacking = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match=f"has no {name}: another version wrote it"):
            adapter.load_state_dict(lacking)
        assert str(adapter.state_dict()) == before
