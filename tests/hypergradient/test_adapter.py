import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypergradient import NotFiniteError, RateAdapter
from tests.hypergradient.optimizers import SUPPORTED
from tests.hypergradient.problem import SHORT, SINGLE, VALIDATION, adapted, batch, equal, loss, network, train


@pytest.mark.usefixtures("wins_its_races")
def test_step_hooks_and_schedulers_count_the_users_steps_alone_and_the_report_says_what_it_cost() -> None:
    net, optimizer, adapter = adapted()
    calls, schedule = [], torch.optim.lr_scheduler.StepLR(optimizer, 100)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    net.register_forward_hook(lambda *_: calls.append("forward"))
    for step in range(20):
        train(optimizer, adapter, range(step, step + 1))
        schedule.step()
    report, compared = adapter.report(), adapter.position - adapter.meta.looks
    # four in each of two races, whose hypothetical steps take whole batches; each computes the loss of three runs
    assert compared >= 8
    assert report["looks"] > 4
    assert (report["steps"], report["looks"], report["skipped"]) == (20, adapter.meta.looks, 0)
    evaluations = report["looks"] + 3 * compared
    assert report["passes"] == pytest.approx(1 + (9 + 11 * 16 / 32 + evaluations) / 20)
    assert report["lowest"] <= report["lr"] <= report["highest"]
    assert [call for call in calls if call != "forward"] == ["before", "after"] * 20
    assert calls.count("forward") == 20 + 20 + evaluations
    assert (schedule.last_epoch, schedule._step_count) == (20, 21)


class Inherits(torch.optim.SGD):
    """Halves its gradients, then takes the step of its base class; keeps attributes of its own."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.calls, self.fails = [0], False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        found = closure() if closure else None
        self.calls[0] += 1
        for p in (p for group in self.param_groups for p in group["params"]):
            p.grad.mul_(0.5)
        super().step()
        if self.fails:
            raise MemoryError
        return found


@pytest.mark.usefixtures("wins_its_races")
def test_in_a_subclass_that_calls_the_step_of_its_base_class_the_adapter_acts_once_with_a_closure_too() -> None:
    # torch wraps the base class's step too, once it was instantiated
    torch.optim.SGD(network().parameters(), lr=0.1)
    ends = []
    for closure in (False, True):
        net, optimizer, adapter = adapted(lambda params: Inherits(params, lr=0.1))
        for step in range(12):
            optimizer.zero_grad()
            if closure:
                optimizer.step(lambda: adapter.loss(batch(step)).backward())  # noqa: B023
            else:
                train(optimizer, adapter, range(step, step + 1))
        counts = adapter.finite.steps, adapter.meta.steps, adapter._around.depth
        assert (*counts, adapter.meta.hypothetical.attributes["calls"]) == (12, 12, 0, [12])
        ends.append((net.state_dict(), optimizer.state_dict()))
    assert equal(*ends)


@pytest.mark.parametrize("raised", ["by the step", "by the closure", "by the validation loss"])
def test_a_step_that_raises_leaves_the_users_rate_and_the_next_one_works(raised: str) -> None:
    net, optimizer, adapter = adapted(lambda params: Inherits(params, lr=0.1))

    def fails() -> Tensor:
        raise MemoryError

    train(optimizer, adapter, range(3))
    optimizer.zero_grad()
    if raised == "by the validation loss":
        adapter.loss_of = lambda *_: fails()
        adapter.see(batch(3), loss(net, batch(3)))
        loss(net, batch(3)).backward()
    elif raised == "by the step":
        optimizer.fails = True  # type: ignore[attr-defined]
        adapter.loss(batch(3)).backward()
    with pytest.raises(MemoryError):
        optimizer.step(fails if raised == "by the closure" else None)  # type: ignore[arg-type]
    optimizer.fails, adapter.loss_of = False, loss  # type: ignore[attr-defined]
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1
    train(optimizer, adapter, range(4, 6))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1 / 3]
    assert adapter.meta.steps == 5


def test_autocast_around_the_whole_loop_is_autocast_around_each_loss() -> None:
    def cast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def inside(net: nn.Module, data: Any) -> Tensor:
        with cast():
            return loss(net, data)

    ends = []
    for outer, of in ((nullcontext, inside), (cast, loss)):
        net = network().float()
        optimizer = torch.optim.Adam(net.parameters())
        adapter = RateAdapter(optimizer, net, of, SINGLE, length=None)
        with outer():
            for step in range(30):
                optimizer.zero_grad()
                adapter.loss(batch(step, dtype=torch.float32)).backward()
                optimizer.step()
        ends.append([*net.state_dict().values(), torch.tensor(adapter.last["lr"])])
    assert equal(*ends)


def test_a_default_device_that_is_not_that_of_the_weights_changes_nothing() -> None:
    ends, batches = [], [batch(step) for step in range(50)]
    for device in ("cpu", "meta"):
        # 1e-6: races too, which are lost
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-6)
        with torch.device(device):
            adapter = RateAdapter(optimizer, net, loss, VALIDATION, length=None, settings=SHORT)
            for data in batches:
                optimizer.zero_grad()
                adapter.loss(data).backward()
                optimizer.step()
        ends.append((net.state_dict(), adapter.report(), adapter.meta.sums))
    assert equal(*ends)
    assert adapter.meta.looks > 5


@pytest.mark.parametrize("name", SUPPORTED)
def test_an_optimizers_own_decay_is_not_doubled_and_biases_and_norms_are_not_shrunk(name: str) -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    # Muon takes matrices alone
    optimizer = SUPPORTED[name]([p for p in net.parameters() if p.dim() > 1 or name != "Muon"])
    own = any(group.get("weight_decay") for group in optimizer.param_groups)
    adapter = RateAdapter(optimizer, net, loss, VALIDATION, length=None)
    train(optimizer, adapter, range(2))
    assert (adapter.last["decay"] > 0) is not own
    assert adapter.meta.shrinks == [p.dim() > 1 for p in adapter.meta.params]


def test_accumulated_batches_make_one_step_and_those_of_a_step_that_was_not_taken_are_forgotten() -> None:
    _, optimizer, adapter = adapted()
    for step in range(6):
        optimizer.zero_grad()
        # as a scaler does that overflows
        adapter.loss(batch(step)).backward()
        optimizer.zero_grad()
        for half in (batch(2 * step), batch(2 * step + 1)):
            (adapter.loss(half) / 2).backward()
        assert len(adapter.parts.seen) == 2
        optimizer.step()
        assert adapter.parts.seen == []
    assert (adapter.report()["steps"], adapter.meta.steps) == (6, 6)


def test_groups_that_are_added_and_parameters_that_are_released_are_taken_in() -> None:
    """As Lightning's BackboneFinetuning does."""
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)).double()
    trunk, middle, head = (layer for layer in net if isinstance(layer, nn.Linear))
    middle.requires_grad_(False)
    optimizer = torch.optim.Adam([*head.parameters(), *middle.parameters()], lr=1e-2)
    adapter = RateAdapter(optimizer, net, loss, VALIDATION, length=None)
    train(optimizer, adapter, range(10))
    averaged = adapter.meta.average.weights
    middle.requires_grad_(True)
    trunk.requires_grad_(False)
    optimizer.add_param_group({"params": list(trunk.parameters()), "lr": 1e-3})
    adapter.meta.prepare()
    assert equal(adapter.meta.average.weights[-2:], averaged)
    train(optimizer, adapter, range(10, 20))
    trunk.requires_grad_(True)
    before, rate = trunk.weight.clone(), adapter.last["lr"]
    train(optimizer, adapter, range(20, 40))
    assert len(adapter.meta.params) == 6
    assert not torch.equal(before, trunk.weight)
    assert optimizer.param_groups[1]["used_lr"] == pytest.approx(optimizer.param_groups[0]["used_lr"] / 10)
    assert adapter.last["lr"] != rate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
@pytest.mark.usefixtures("wins_its_races")
def test_a_compiled_step_adapts() -> None:
    net, optimizer, adapter = adapted()
    step = torch.compile(optimizer.step, backend="eager")
    for number in range(13):
        adapter.see(batch(number), loss(net, batch(number)))
        loss(net, batch(number)).backward()
        step()
    assert adapter.report()["looks"] == 3
    assert optimizer.param_groups[0]["used_lr"] != 0.02
    torch._dynamo.reset()


def test_the_last_of_two_adapters_replaces_the_first_and_removed_it_leaves_a_plain_optimizer() -> None:
    """In a notebook a cell is run twice; as Fabric's, a wrapper has torch's optimizer in `optimizer`."""
    net, optimizer, first = adapted()
    with pytest.warns(UserWarning, match="replacing the adapter that this optimizer already has"):
        second = RateAdapter(SimpleNamespace(optimizer=optimizer), net, loss, VALIDATION, length=None)  # type: ignore[arg-type]
    first.remove()
    assert optimizer.rate_adapter is second  # type: ignore[attr-defined]
    train(optimizer, second, range(2))
    second.remove()
    optimizer.step()
    assert (first.finite.steps, second.finite.steps) == (0, 2)
    assert "rate_adapter" not in optimizer.state_dict()
    assert optimizer.param_groups[0]["lr"] == 0.02


@pytest.mark.filterwarnings("ignore:.*the run goes back")
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
        (lambda net, data: net(data[0])[:, 0], TypeError, r"got shape \(32,\)"),
        (lambda _, data: loss(network().requires_grad_(), data), ValueError, "does not depend on the weights"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(wrong: Any, error: type[Exception], message: str) -> None:
    net, optimizer, adapter = adapted(loss=wrong)
    before = [p.detach().clone() for p in net.parameters()]
    now = loss(net, batch(0))
    now.backward()
    adapter.see(batch(0), now)
    with pytest.raises(error, match=message):
        optimizer.step()
    # the step was taken: not at the weights of the hypothetical run
    assert not equal([p.detach() for p in net.parameters()], before)
    assert equal(adapter.meta.hypothetical.weights, before)


def without_a_batch() -> None:
    net, optimizer, _ = adapted()
    loss(net, batch(0)).backward()
    optimizer.step()


def sparse() -> None:
    net, rows = nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Linear(4, 3)), torch.arange(8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    RateAdapter(optimizer, net, lambda net, rows: net(rows).square().mean(), [rows], length=None).loss(rows).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: adapted(patience=0), "patience must be 1 or more, got 0"),
        (
            lambda: RateAdapter(torch.optim.Adam(network().parameters()), network(), loss, VALIDATION, length=None),
            "the optimizer has 2 parameters that are not the network's",
        ),
        (lambda: train(*adapted(batches=iter(VALIDATION))[1:], range(20)), "validation batches, or an iterator"),
        (without_a_batch, r"no training batch is registered: call adapter.loss\(batch\), or see"),
        (sparse, r"Sparse gradients are not supported: use Embedding\(sparse=False\)"),
    ],
)
def test_what_cannot_be_adapted_is_refused(work: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        work()


@pytest.mark.usefixtures("wins_its_races")
def test_a_step_without_gradients_moves_nothing_and_an_empty_parameter_is_taken() -> None:
    net: Any = network()
    net.register_parameter("empty", nn.Parameter(torch.zeros(0, 3, dtype=torch.float64)))
    optimizer, before = torch.optim.Adam(net.parameters(), lr=0.01), copy.deepcopy(net.state_dict())
    adapter = RateAdapter(
        optimizer,
        net,
        lambda net, data: loss(net[:3], data) + net.empty.sum(),
        VALIDATION,
        length=None,
        settings=SHORT,
    )
    optimizer.step()
    assert equal(net.state_dict(), before)
    assert (adapter.meta.steps, adapter.finite.skipped) == (0, 0)
    train(optimizer, adapter, range(20))
    assert adapter.report()["looks"] > 1
