"""The adapter's state is part of the optimizer's `state_dict()`."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from hypergradient import RateAdapter
from tests.hypergradient.problem import VALIDATION, adapted, batch, equal, groups, loss, network, train

pytestmark = pytest.mark.usefixtures("wins_its_races")

Run = tuple[nn.Module, Optimizer, RateAdapter, Any]


def begun(added: bool = False) -> Run:
    net = network()
    optimizer = groups(net, lambda params: torch.optim.Adam(params, lr=0.02))
    late = optimizer.param_groups.pop() if added else None
    adapter = RateAdapter(optimizer, net, loss, VALIDATION, length=60)
    if late:
        optimizer.add_param_group(late)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 8))
    return net, optimizer, adapter, schedule


def go(run: Run, steps: range) -> None:
    for step in steps:
        train(run[1], run[2], range(step, step + 1))
        run[3].step()


def saved(run: Run) -> Any:
    """What a file has of the run, read as data alone."""
    file = io.BytesIO()
    torch.save([run[0].state_dict(), run[1].state_dict(), run[3].state_dict()], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load(run: Run, states: Any) -> None:
    for part, state in zip((run[0], run[1], run[3]), states, strict=True):
        part.load_state_dict(state)


@pytest.mark.parametrize("averaged", [False, True], ids=["", "saved in evaluation"])
@pytest.mark.parametrize("added", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(added: bool, averaged: bool) -> None:
    whole, part = begun(added), begun(added)
    go(whole, range(40))
    go(part, range(25))
    if averaged:
        part[2].eval()
    states = saved(part)
    torch.manual_seed(1)
    rest = begun(added)
    nn.init.ones_(next(rest[0].parameters()))
    load(rest, states)
    # before the first step it is the same state
    assert equal(rest[1].state_dict()["rate_adapter"]["told"], 25)
    go(rest, range(25, 40))
    assert equal(whole[0], rest[0])
    assert equal(whole[1].state_dict(), rest[1].state_dict())
    assert whole[2].report() == rest[2].report()
    for run in (whole, rest):
        run[2].eval()
    assert equal(whole[0], rest[0])


def test_a_plain_optimizer_loads_the_file_and_has_the_users_rates_and_its_own_is_loaded_with_a_warning() -> None:
    run, plain = begun(), groups(network(), lambda params: torch.optim.Adam(params, lr=0.5))
    state = copy.deepcopy(plain.state_dict())
    go(run, range(20))
    plain.load_state_dict(saved(run)[1])
    assert equal([*plain.state.values()], [*run[1].state.values()])
    assert [group["lr"] for group in plain.param_groups] == [0.02, 0.02 / 3]
    plain.step()
    with pytest.warns(UserWarning, match="no 'rate_adapter': the adaptation starts here"):
        run[1].load_state_dict(state)
    go(run, range(3))


def test_a_state_that_lacks_any_one_key_is_refused_and_nothing_is_loaded() -> None:
    first, second = begun(), begun()
    go(first, range(20))
    state, before = saved(first)[1], copy.deepcopy(second[1].state_dict())
    meta = state["rate_adapter"]["meta"]
    parts = state["rate_adapter"], meta, meta["guard"], meta["average"], meta["hypothetical"]
    keys = [(part, name) for part in parts for name in part]
    assert len(keys) > 35
    for part, name in keys:
        lost = part.pop(name)
        with pytest.raises(ValueError, match=f"the state has no {name}: another version wrote it"):
            second[1].load_state_dict(copy.deepcopy(state))
        part[name] = lost
        assert equal(second[1].state_dict(), before)
    second[1].load_state_dict(state)
    second[2].meta.prepare()
    assert second[2].meta.steps == first[2].meta.steps > 0


def test_evaluation_has_the_averaged_weights_and_training_gives_every_bit_back() -> None:
    net, optimizer, adapter = adapted()
    train(optimizer, adapter, range(20))
    run, averaged = copy.deepcopy(net.state_dict()), copy.deepcopy(adapter.meta.average.weights)
    for _ in range(2):
        adapter.eval()
        assert equal([p.detach() for p in net.parameters()], averaged)
        assert not net.training
        adapter.train()
        assert equal(net.state_dict(), run)
        assert net.training
    adapter.eval()
    optimizer.zero_grad()
    adapter.loss(batch(0)).backward()
    with pytest.raises(RuntimeError, match=r"the averaged weights are in the network: call adapter.train\(\) first"):
        optimizer.step()
    assert equal([p.detach() for p in net.parameters()], averaged)
    adapter.train()
    assert equal(net.state_dict(), run)
    train(optimizer, adapter, range(20, 22))
    assert adapter.meta.steps == 22
