"""Networks, data and the common loss of the tasks."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import mse_loss

from experiment.options import CONFIGS, TASKS
from experiment.publish import STAGES
from lightning_modules import ConvNet, PoissonNetwork, TrainedConvNet
from lightning_modules.networks import _trained
from lightning_modules.supervised import objective


def made(part: dict[str, Any]) -> Any:
    module, name = part["class_path"].rsplit(".", 1)
    return getattr(import_module(module), name)(**part.get("init_args", {}))


def train(task: str) -> None:
    """Differentiate the task's loss of eight samples."""
    said = yaml.safe_load((CONFIGS / "tasks" / f"{task}.yaml").read_text())
    network, (x, y) = made(said["model"]["network"]), (torch.randn(8, 40), torch.arange(8))
    if "class_path" in said.get("data", {}):
        # else mnist1d, which takes seconds to generate
        data = made(said["data"])
        data.setup("fit")
        x, y = data.train[0][:8], data.train[1][:8]
    loss = objective(network(x), y)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# the network of `finetune` takes seconds: it is made once, below
@pytest.mark.parametrize("task", [task for task in TASKS if task != "finetune"])
def test_each_task_has_a_network_that_its_samples_train(task: str) -> None:
    train(task)


def test_the_comparison_has_fifteen_tasks() -> None:
    tasks = set(STAGES["suite"]["rows"])
    assert len(tasks) == 15
    assert tasks <= {*TASKS}


def test_the_second_derivative_that_is_propagated_forwards_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    network = PoissonNetwork().double()
    x = torch.rand(16, 1, dtype=torch.float64, requires_grad=True)
    value = x
    for number, linear in enumerate(network.linears):
        value = linear(value.tanh() if number else value)
    [slope] = torch.autograd.grad((x * (1 - x) * value).sum(), x, create_graph=True)
    [bend] = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(network(x), -bend / (3 * math.pi) ** 2, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_trained_network_leaves_the_random_stream_as_an_untrained_one_does_and_its_last_layer_is_fresh() -> None:
    states, streams = [], []
    for kind in (ConvNet, TrainedConvNet):
        torch.manual_seed(0)
        if kind is TrainedConvNet:
            # the training itself too
            _trained.cache_clear()
        states.append(kind().state_dict())
        streams.append(torch.get_rng_state())
    assert torch.equal(*streams)
    fresh, trained = states
    same = {name for name in fresh if torch.equal(fresh[name], trained[name])}
    assert same == {"8.weight", "8.bias"}
    # not those of the training
    torch.manual_seed(1)
    other = TrainedConvNet().state_dict()
    assert {name for name in other if torch.equal(other[name], trained[name])} == fresh.keys() - same
    train("finetune")


def test_values_of_the_inputs_shape_have_their_mean_squared_error_and_are_not_taken_for_classes() -> None:
    """As of an autoencoder; and one value a sample is compared with that sample's, not with all of them."""
    outputs, targets = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).unbind()
    assert objective(outputs, targets) == mse_loss(outputs, targets)
    assert objective(outputs[:, :1], targets[:, 0]) == mse_loss(outputs[:, 0], targets[:, 0])
