from typing import Any

import pytest
import torch
from torch import nn

from hypergradient import NotFiniteError, RateAdapter
from tests.hypergradient.problem import VALIDATION, adapted, batch, equal, loss, network, train


def test_too_many_in_a_row_end_the_run_and_the_message_says_where_it_began() -> None:
    _, optimizer, adapter = adapted(patience=3)
    for start in (0, 4):
        # two alone do not
        train(optimizer, adapter, range(start, start + 2))
        train(optimizer, adapter, range(start + 2, start + 4), torch.inf)
    with pytest.raises(NotFiniteError, match="3 steps in a row were skipped, from step 7 on: their gradients are not"):
        train(optimizer, adapter, range(8, 9), torch.inf)
    assert adapter.finite.skipped == 5


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda net, data: loss(net, data).detach(), TypeError, r"a scalar with requires_grad, got .*\(\), detached"),
        (lambda net, data: {"loss": loss(net, data)}, TypeError, "got dict"),
        (lambda *_: None, TypeError, "got NoneType"),
        (lambda net, data: net(data[0])[:, 0], TypeError, r"got shape \(16,\)"),
        (lambda _, data: loss(network().requires_grad_(), data), ValueError, "does not depend on the weights"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(wrong: Any, error: type[Exception], message: str) -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    adapter = RateAdapter(optimizer, net, wrong, VALIDATION)
    before = [p.detach().clone() for p in net.parameters()]
    now = loss(net, batch(0))
    now.backward()
    adapter.see(batch(0), now)
    with pytest.raises(error, match=message):
        optimizer.step()
    # the step was taken: not at the weights of the hypothetical run
    assert not equal([p.detach() for p in net.parameters()], before)
    assert equal(adapter.meta.hypothetical.weights, before)


def test_a_step_without_a_batch_is_refused() -> None:
    net, optimizer, _ = adapted()
    loss(net, batch(0)).backward()
    with pytest.raises(RuntimeError, match=r"no training batch is registered: call adapter.loss\(batch\), or see"):
        optimizer.step()


def test_a_step_without_gradients_moves_nothing() -> None:
    net, optimizer, adapter = adapted()
    optimizer.step()
    assert equal(net, network())
    assert (adapter.meta.steps, adapter.finite.skipped) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.0}, "lr must be positive and finite, got 0.0"), ({"patience": 0}, "patience must be 1 or more, got 0")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(**options)


def test_parameters_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="the optimizer moves 2 parameters that are not the network's"):
        RateAdapter(torch.optim.Adam(network().parameters()), network(), loss, VALIDATION)


def test_batches_that_can_be_read_once_are_refused_when_they_end() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    adapter = RateAdapter(optimizer, net, loss, iter(VALIDATION))
    with pytest.raises(ValueError, match="no validation batches, or no second time: give a loader or a list"):
        train(optimizer, adapter, range(20))


def test_sparse_gradients_are_refused() -> None:
    net, rows = nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Linear(4, 3)), torch.arange(8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    adapter = RateAdapter(optimizer, net, lambda net, rows: net(rows).square().mean(), [rows])
    adapter.loss(rows).backward()
    with pytest.raises(ValueError, match=r"sparse gradients cannot be adapted: use Embedding\(sparse=False\)"):
        optimizer.step()


def test_an_empty_parameter_is_taken() -> None:
    net: Any = network()
    net.register_parameter("empty", nn.Parameter(torch.zeros(0, 3, dtype=torch.float64)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    adapter = RateAdapter(optimizer, net, lambda net, data: loss(net[:3], data) + net.empty.sum(), VALIDATION)
    train(optimizer, adapter, range(12))
    assert adapter.report()["looks"] > 1
