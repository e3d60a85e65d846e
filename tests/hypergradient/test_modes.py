"""In which mode the hypothetical run and the looks evaluate a network."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hypergradient import RateAdapter, no_trace


def network(channels: bool) -> nn.Sequential:
    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm2d(3) if channels else nn.BatchNorm1d(3)
    return nn.Sequential(norm, nn.Dropout(0.5), nn.Flatten(), nn.Linear(12 if channels else 3, 2))


def loss(net: nn.Module, data: Any) -> torch.Tensor:
    return cross_entropy(net(data[0]), data[1])


def batch(samples: int, channels: bool) -> Any:
    return torch.randn(samples, 3, *((2, 2) if channels else ())), torch.arange(samples) % 2


@pytest.mark.parametrize("channels", [False, True])
def test_a_network_that_is_put_into_training_mode_later_is_so_in_the_hypothetical_run_and_in_looks(
    channels: bool,
) -> None:
    """As of `from_pretrained`, which returns evaluation mode: the same run as of a network in training mode before."""
    ends = []
    for early in (True, False):
        net = network(channels).train(early)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        adapter = RateAdapter(optimizer, net, loss, [batch(8, channels)])
        torch.manual_seed(1)
        net.train()
        for _ in range(20):
            optimizer.zero_grad()
            adapter.loss(batch(8, channels)).backward()
            optimizer.step()
        twin = adapter.adaptation.twin.network
        assert all(module.training for module in twin.modules())
        ends.append([*twin.state_dict().values(), *adapter.averaged.state_dict().values(), adapter.last["lr"]])
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(("channels", "frozen"), [(False, True), (False, False), (True, True), (True, False)])
def test_a_frozen_batch_norm_stays_so_in_looks(channels: bool, frozen: bool) -> None:
    net = network(channels)
    net[0].train(not frozen)
    net[0].running_mean.fill_(3.0)  # type: ignore[operator]
    x, _ = batch(8, channels)
    with no_trace(net, batch_statistics=True):
        seen = net[0](x)
        assert net[0].training is not frozen
    expected = (x - 3) / (1 + 1e-5) ** 0.5 if frozen else nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(seen, expected)
    assert net[0].training is not frozen
    assert not net[0]._forward_pre_hooks


def test_one_value_a_channel_is_normalised_by_the_statistics() -> None:
    """As the last batch of a validation set may have one sample, of which there is no variance."""
    net = network(channels=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    adapter = RateAdapter(optimizer, net, loss, [batch(1, False), batch(8, False)])
    for _ in range(20):
        optimizer.zero_grad()
        adapter.loss(batch(8, False)).backward()
        optimizer.step()
    assert adapter.adaptation.looks > 2
    assert torch.isfinite(torch.tensor(adapter.last["hypergradient"]))
    net[0](torch.randn(8, 3))  # training itself is as strict as before
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net[0](torch.randn(1, 3))
