"""Optimizers, wrappers and habits of other people's training loops."""

import copy
from collections.abc import Iterable
from typing import Any

import dadaptation
import dog
import prodigyopt
import pytest
import schedulefree
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import Adaptation, OneStepAdapter, RateAdapter, Settings, check_supported, starting_rate
from lightning_modules import Mechanic, Momo
from tests.hypergradient import problem
from tests.hypergradient.problem import TRAIN, VAL
from tests.hypergradient.test_one_step_adapter import adapted


class WithAttributes(torch.optim.SGD):
    """Keeps what it needs beside its state, as most optimizers from elsewhere do."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, lr=lr)
        self.scale, self.calls = 0.5, [0]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.calls[0] += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(self.scale)
        super().step()


class Wrapped:
    """As Fabric does it: `.optimizer` is torch's, the rest is passed on."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


def one_step(net: nn.Module, optimizer: Any, number: int = 0) -> None:
    problem.backward(net, getattr(optimizer, "optimizer", optimizer), number)
    optimizer.step()


def test_an_optimizer_with_attributes_of_its_own_is_copied_whole_and_left_alone() -> None:
    net = problem.network()
    optimizer = WithAttributes(net.parameters(), lr=0.01)
    check_supported(optimizer)
    assert optimizer.calls == [0]
    assert starting_rate(lambda: problem.loss(net, VAL, 0), optimizer) > 0
    adaptation = Adaptation(net, optimizer, Settings(weight_decay=0))
    assert adaptation.twin.optimizer.scale == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "lr"),
    [
        (prodigyopt.Prodigy, 1.0),
        (dadaptation.DAdaptAdam, 1.0),
        (dadaptation.DAdaptSGD, 1.0),
        (dog.DoG, 1.0),
        (schedulefree.AdamWScheduleFree, 0.01),
        (Mechanic, 0.01),
        (Momo, 0.01),
    ],
)
def test_optimizers_that_adapt_the_rate_themselves_are_refused(make: Any, lr: float) -> None:
    with pytest.raises(ValueError, match="cannot be adapted"):
        check_supported(make(problem.network().parameters(), lr=lr))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_little_precision_are_judged_in_float64(dtype: torch.dtype) -> None:
    check_supported(torch.optim.Adam(problem.network().to(dtype).parameters(), lr=1e-3))


def test_a_wrapper_is_taken_off() -> None:
    net = problem.network()
    wrapped = Wrapped(torch.optim.Adam(net.parameters(), lr=0.01))
    adapter = adapted(net, wrapped)  # type: ignore[arg-type]
    one_step(net, wrapped)
    assert adapter.looks == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
def test_a_compiled_step_adapts() -> None:
    net = problem.network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    adapter = adapted(net, optimizer)
    step = torch.compile(optimizer.step, backend="eager")
    for number in range(3):
        problem.backward(net, optimizer, number)
        step()
    assert adapter.looks == 3
    assert float(adapter.log_scale) != 0
    torch._dynamo.reset()


def test_a_second_adapter_takes_the_place_of_the_first() -> None:
    """A notebook's cell that is run twice."""
    net = problem.network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    first = adapted(net, optimizer)
    with pytest.warns(UserWarning, match="has a OneStepAdapter: it is removed"):
        second = adapted(net, optimizer)
    one_step(net, optimizer)
    assert (first.looks, second.looks) == (0, 1)
    assert optimizer.param_groups[0]["lr"] == 0.01


class Fails(torch.optim.SGD):
    """Runs out of memory."""

    full = False

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if self.full:
            raise MemoryError
        super().step()


def test_a_step_that_fails_leaves_the_optimizers_own_rate() -> None:
    net = problem.network()
    optimizer = Fails(net.parameters(), lr=0.01)
    adapter = adapted(net, optimizer, meta_lr=1.0)
    for number in range(2):
        one_step(net, optimizer, number)
    optimizer.full = True
    with pytest.raises(MemoryError):
        one_step(net, optimizer, 2)
    optimizer.full = False
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.01
    one_step(net, optimizer, 3)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert adapter.looks == 3


@pytest.mark.parametrize("per_group", [False, True])
def test_a_group_that_is_added_is_adapted_too(per_group: bool) -> None:
    """As Lightning's BackboneFinetuning adds the trunk."""
    net = problem.network()
    first, *rest = net.parameters()
    optimizer = torch.optim.Adam([first], lr=0.01)
    adapter = adapted(net, optimizer, per_group=per_group, meta_lr=0.1)
    one_step(net, optimizer)
    optimizer.add_param_group({"params": rest, "lr": 0.001})
    for number in range(1, 4):
        one_step(net, optimizer, number)
    assert adapter.last["lr"].shape == (2,)
    assert adapter.looks == 4
    if per_group:
        assert adapter.log_scale[0] != adapter.log_scale[1]


def test_a_state_of_other_groups_is_refused_before_anything_is_touched() -> None:
    net = problem.network()
    adapter = adapted(net, torch.optim.Adam(net.parameters(), lr=0.01), per_group=True)
    state = adapter.state_dict()
    one_step(net, adapter.optimizer)
    assert state["steps"] == 0  # a copy
    kept = copy.deepcopy(adapter.state_dict())
    state["log_scale"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"log_scale of the state has the shape \(1,\), got \(3,\)"):
        adapter.load_state_dict(state)
    assert str(adapter.state_dict()) == str(kept)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda loss: {"loss": loss}, "got dict"),
        (lambda _: None, "got NoneType"),
        (lambda loss: loss.repeat(3), r"got \(3,\)"),
        (lambda loss: loss.detach(), r"got \(\)"),
    ],
)
def test_a_loss_that_is_none_has_one_clear_line(spoil: Any, told: str) -> None:
    net = problem.network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    OneStepAdapter(optimizer, net, lambda: spoil(problem.loss(net, VAL, 0)))
    with pytest.raises(TypeError, match=f"validation_loss must return the mean loss, 0-d, .* {told}"):
        one_step(net, optimizer)


def test_the_loss_of_another_network_is_told() -> None:
    net, other = problem.network(), problem.network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    OneStepAdapter(optimizer, net, lambda: problem.loss(other, VAL, 0))
    with pytest.warns(UserWarning, match="the hypergradient is exactly 0"):
        one_step(net, optimizer)


def test_a_bound_that_is_active_for_long_is_told_once() -> None:
    net = problem.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    adapter = adapted(net, optimizer, meta_lr=1.0, bounds=(0.99, 1.01))
    for number in range(99):
        one_step(net, optimizer, number % 8)
    with pytest.warns(UserWarning, match="a bound was active for 100 looks"):
        one_step(net, optimizer)
    one_step(net, optimizer)
    assert adapter.looks == 101


def test_where_to_start_leaves_the_weights_whole_after_an_overflow() -> None:
    net = problem.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = copy.deepcopy(net.state_dict())

    def loss() -> Tensor:
        return torch.inf * problem.loss(net, TRAIN, 0)

    with pytest.raises(ValueError, match="does not fall"):
        starting_rate(loss, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("whole", [False, True], ids=["plain rule", "whole rule"])
def test_sparse_gradients_are_refused_in_words(whole: bool) -> None:
    net = nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        return network(batch).square().mean()  # type: ignore[no-any-return]

    batch = torch.arange(8)
    if whole:
        adapter = RateAdapter(optimizer, net, loss, [batch])
        adapter.loss(batch).backward()
    else:
        OneStepAdapter(optimizer, net, lambda: loss(net, batch))
        loss(net, batch).backward()
    with pytest.raises(ValueError, match=r"sparse gradients cannot be adapted: use Embedding\(sparse=False\)"):
        optimizer.step()
