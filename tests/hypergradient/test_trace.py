import copy

import pytest
import torch
from torch import nn

from hypergradient import no_trace
from hypergradient.trace import unchanged
from tests.hypergradient.kinds import Layers, Normalizes, attributes
from tests.hypergradient.problem import batch, equal


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize("network", Layers.__subclasses__())
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm. is deprecated")
def test_attributes_modes_random_stream_and_replaced_buffers_come_back(network: type[Layers], look: bool) -> None:
    net, (x, _) = network(), batch(0)
    net(x)
    before = [{key: copy.copy(value) for key, value in own.items()} for own in attributes(net)]
    buffers, stream = [*net.buffers()], torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), no_trace(net) if look else unchanged(net):  # noqa: PT012
        net(x)
        net.flag = 1  # type: ignore[assignment]
        raise ZeroDivisionError
    assert equal(attributes(net), before)
    assert all(b is now for b, now in zip(buffers, net.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_look_measures_as_validation_does_and_changes_no_statistics() -> None:
    net, (x, _) = Normalizes(), batch(0)
    net(x)
    state = copy.deepcopy(net.state_dict())
    with no_trace(net):
        seen = net(x)
    assert equal(net.state_dict(), state)
    assert torch.equal(seen, net.eval()(x))


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("samples", [1, 8])
def test_batch_statistics_normalize_by_the_batch_where_it_has_a_variance_and_the_layer_is_not_frozen(
    channels: bool, frozen: bool, samples: int
) -> None:
    norm: nn.Module = nn.BatchNorm2d(3) if channels else nn.BatchNorm1d(3)
    norm.train(not frozen)
    norm.running_mean.fill_(3.0)  # type: ignore[operator]
    x = torch.randn(samples, 3, *((2, 2) if channels else ()))
    by_the_batch = not frozen and x.numel() > 3
    expected = nn.functional.batch_norm(x, None, None, training=True) if by_the_batch else (x - 3) / (1 + 1e-5) ** 0.5
    with no_trace(norm, batch_statistics=True):
        seen = norm(x)
    torch.testing.assert_close(seen, expected)
    assert norm.training is not frozen
    assert not norm._forward_pre_hooks


def test_a_look_at_a_recurrent_network_does_without_cudnn_which_has_no_backward_pass_in_evaluation_mode() -> None:
    before = torch.backends.cudnn.enabled
    with no_trace(nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2))):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == before
