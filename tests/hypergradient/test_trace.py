import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hypergradient import no_trace
from hypergradient.copies import follow_modes


class Noisy(nn.Module):
    """Draws in evaluation mode too, as a variational autoencoder does."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Noisy(), nn.BatchNorm1d(4))


def test_a_look_leaves_statistics_random_stream_gradients_and_modes_as_they_were() -> None:
    net = network()
    net[4].eval()  # frozen by its user: must not wake up
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    stream = torch.get_rng_state()
    with no_trace(net):
        net(torch.randn(8, 4)).sum()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert [module.training for module in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())


def test_modes_come_back_after_an_exception() -> None:
    net = network()
    with pytest.raises(ZeroDivisionError), no_trace(net):
        raise ZeroDivisionError
    assert all(module.training for module in net.modules())


def test_without_it_the_same_look_leaves_a_trace() -> None:
    net = network()
    mean, stream = next(net.buffers()).clone(), torch.get_rng_state()
    net(torch.randn(8, 4))
    assert not torch.equal(next(net.buffers()), mean)
    assert not torch.equal(torch.get_rng_state(), stream)


def test_a_look_at_a_recurrent_network_leaves_cudnn_as_it_was() -> None:
    """Whose own RNNs have no backward pass in evaluation mode: within the look, torch's are used."""
    network = nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2))
    before = torch.backends.cudnn.enabled
    with no_trace(network):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == before
    with no_trace(nn.Linear(3, 4)):
        assert torch.backends.cudnn.enabled == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_the_mode_of_a_scripted_module_is_not_in_python() -> None:
    """In a look it drops nothing, and afterwards it does; a copy follows it into evaluation mode."""
    net, x = nn.Sequential(nn.Linear(4, 400), torch.jit.script(nn.Dropout(0.5))), torch.ones(1, 4)
    copied = copy.deepcopy(net)
    with no_trace(net):
        assert torch.equal(net(x), net[0](x))
    assert (net(x) == 0).any()
    for training in (False, True):
        net.train(training)
        follow_modes(copied, net)
        assert (copied(x) == 0).any().item() is training
