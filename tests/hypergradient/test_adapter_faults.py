import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from hypergradient import NotFiniteError, RateAdapter
from tests.hypergradient.adapted import VALIDATION, batch, built, equal, loss, train
from tests.hypergradient.optimizers import SUPPORTED
from tests.hypergradient.problem import network


def not_finite(optimizer: Optimizer, adapter: RateAdapter, step: int) -> None:
    optimizer.zero_grad()
    (adapter.loss(batch(step)) * math.nan).backward()
    optimizer.step()


def test_a_batch_whose_gradients_are_not_finite_is_skipped_and_nothing_else_changes() -> None:
    """However many there are in a run, if each stands alone."""
    net, optimizer, adapter = built(SUPPORTED["Adam"])
    for step in range(0, 200, 20):
        train(optimizer, adapter, range(step, step + 19))
        before, rate = copy.deepcopy(net), adapter.last["lr"]
        not_finite(optimizer, adapter, step + 19)
        assert equal(net, before)
        assert adapter.adaptation.rate == rate
    assert (adapter.skipped, adapter.report()["rewound"]) == (10, 0)


def test_of_two_such_batches_in_a_row_the_weights_are_the_cause_and_the_last_good_ones_come_back() -> None:
    net, optimizer, adapter = built(SUPPORTED["Adam"])
    train(optimizer, adapter, range(30))
    good, rate = copy.deepcopy(adapter.adaptation.good), adapter.last["lr"]
    for step in (30, 31):
        not_finite(optimizer, adapter, step)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), good, strict=True))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 2)
    train(optimizer, adapter, range(32, 40))
    assert (adapter.skipped, adapter.in_a_row, adapter.report()["rewound"]) == (2, 0, 1)


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


def test_batches_of_steps_that_were_not_taken_are_forgotten() -> None:
    _, optimizer, adapter = built(SUPPORTED["Adam"])
    for step in range(5):  # as a scaler does that overflows
        optimizer.zero_grad()
        adapter.loss(batch(step)).backward()
    assert len(adapter.seen) == 1
    optimizer.step()
    assert adapter.seen == []


def test_the_state_of_a_run_with_another_window_is_refused() -> None:
    _, _, averaging = built(SUPPORTED["Adam"])
    _, _, other = built(SUPPORTED["Adam"], window=0)
    with pytest.raises(ValueError, match="RateAdapter: the state is of a run with window=0, got a window"):
        other.load_state_dict(averaging.state_dict())


def test_a_loss_of_another_network_is_refused_in_words() -> None:
    """As one that is written with the network in training, not with the one that it is given."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    adapter = RateAdapter(optimizer, net, lambda _, data: loss(net, data), VALIDATION)
    with pytest.raises(ValueError, match="does not depend on the weights of the network that it was given"):
        train(optimizer, adapter, range(2))


def test_an_empty_parameter_is_taken() -> None:
    net = network()
    net.register_parameter("empty", nn.Parameter(torch.zeros(0, 3, dtype=torch.float64)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def all_of_it(net: Any, data: Any) -> Any:
        return loss(net[:3], data) + net.empty.sum()

    adapter = RateAdapter(optimizer, net, all_of_it, VALIDATION)
    train(optimizer, adapter, range(40))
    assert adapter.report()["looks"] > 1


def test_the_older_of_two_does_not_take_the_newer_ones_mark_with_it() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    older = RateAdapter(optimizer, net, loss, VALIDATION)
    with pytest.warns(UserWarning, match="it is removed"):
        newer = RateAdapter(optimizer, net, loss, VALIDATION)
    older.remove()
    with pytest.warns(UserWarning, match="it is removed"):
        RateAdapter(optimizer, net, loss, VALIDATION)
    assert newer is not getattr(optimizer, "rate_adapter", None)
