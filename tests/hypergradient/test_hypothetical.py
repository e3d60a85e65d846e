"""The hypothetical run and the averages, compared with copies of objects and with analytical derivatives."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergradient import RateAdapter
from hypergradient.batches import copied
from hypergradient.hypothetical import HypotheticalRun
from tests.hypergradient.kinds import KINDS, Kind, attributes
from tests.hypergradient.optimizers import SUPPORTED, Factory
from tests.hypergradient.problem import SHORT, VALIDATION, Batch, backward, batch, equal, groups, loss, network

everything = pytest.mark.parametrize("factory", SUPPORTED.values(), ids=SUPPORTED.keys())


class Copies:
    """The slow reference: a run, its hypothetical run and its average, as networks and optimizers of their own.

    No step is longer than `longest` times the weights, and no hypothetical one than `factor` times that: the factor of
    its rate. In a race it is 4, and nothing is pulled; the steps of the run are the user's.
    """

    longest, factor = 0.0, 4.0

    def __init__(self, kind: Kind) -> None:
        self.net, self.other, self.mean = (kind.network() for _ in range(3))
        self.optimizer, self.own = (groups(net, kind.factory) for net in (self.net, self.other))
        self.params, self.others, self.means = (
            [p for p in net.parameters() if p.requires_grad] for net in (self.net, self.other, self.mean)
        )
        self.difference, self.steps, self.h = [torch.zeros_like(p) for p in self.params], 0, math.nan
        self.shortened = 0

    def step(self, data: Batch, look: Batch | None, rates: list[float], decay: float, racing: bool) -> None:
        """Look where a batch for it is given, take a step at the rates of the groups, and the hypothetical one."""
        self.optimizer.zero_grad()
        loss(self.net, data).backward()
        raced, self.factor = self.factor == 4, 4.0 if racing else 2.0
        if self.steps == 0 or (raced and not racing):
            self._begin()
        if look is not None:
            self._look(look)
        longest = math.inf if racing else self.longest
        self.shortened += self._move(self.optimizer, self.params, rates, decay, longest)
        self._take_attributes(self.other)
        self.own.zero_grad()
        with torch.random.fork_rng(devices=[]):
            # in a race of all: up to the step that ends it
            loss(self.other, copied(data, 32, 32 if raced else 16)).backward()
        self._move(self.own, self.others, [self.factor * rate for rate in rates], decay, self.factor * self.longest)
        self.steps += 1
        part = 1 / max(1.0, 0.1 * self.steps)
        with torch.no_grad():
            for a, z, p, q in zip(self.means, self.difference, self.params, self.others, strict=True):
                own, real = self.own.state.get(q, {}), self.optimizer.state.get(p, {})
                for value, towards in [(q, p), *((own[name], real[name]) for name in own)]:
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        value.lerp_(towards, 0.0 if racing else 0.1)
                a.lerp_(p, part)
                z.lerp_(q - p, part)
            for b, now in zip(self.mean.buffers(), self.net.buffers(), strict=True):
                b.copy_(b.lerp(now, part) if b.is_floating_point() else now)

    @torch.no_grad()
    def _begin(self) -> None:
        """Let the hypothetical run begin where the real one is, with the buffers after this batch; and the average."""
        for q, p in zip(self.other.parameters(), self.net.parameters(), strict=True):
            q.copy_(p)
            if p in self.optimizer.state:
                self.own.state[q] = copy.deepcopy(self.optimizer.state[p])
        self.difference = [torch.zeros_like(p) for p in self.params]
        for net in (self.other, self.mean)[: 1 if self.steps else 2]:
            for b, now in zip(net.buffers(), self.net.buffers(), strict=True):
                b.copy_(now)

    def _look(self, data: Batch) -> None:
        buffers = [b.clone() for b in self.mean.buffers()]
        self._take_attributes(self.mean)
        for module in self.mean.modules():
            module.training &= isinstance(module, nn.BatchNorm1d)
        with torch.random.fork_rng(devices=[]):
            gradients = torch.autograd.grad(loss(self.mean, data), self.means, materialize_grads=True)
        self.h = sum(float((g * z).sum()) for g, z in zip(gradients, self.difference, strict=True))
        for b, before in zip(self.mean.buffers(), buffers, strict=True):
            b.copy_(before)

    def _take_attributes(self, net: nn.Module) -> None:
        for module, own in zip(net.modules(), attributes(self.net), strict=True):
            for name, value in own.items():
                setattr(module, name, copy.copy(value))

    @torch.no_grad()
    def _move(
        self, optimizer: Optimizer, params: list[nn.Parameter], rates: list[float], decay: float, longest: float
    ) -> bool:
        """Take a step; return whether it was shortened."""
        before = [p.clone() for p in params]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            for p in group["params"]:
                p.mul_(1 - decay if p.dim() > 1 and p.requires_grad else 1)
        optimizer.step()
        matrices = [(p, b) for p, b in zip(params, before, strict=True) if p.dim() > 1]
        length, size = (
            float(torch.stack([part.norm() for part in parts]).norm())
            for parts in ([p - b for p, b in matrices], [b for _, b in matrices])
        )
        if length > longest * size:
            for p, b in zip(params, before, strict=True):
                p.lerp_(b, 1 - longest * size / length)
        return length > longest * size


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=name, marks=[pytest.mark.slow] * ("compile" in name or place % 2))
        for place, (name, kind) in enumerate(KINDS.items())
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm. is deprecated")
@pytest.mark.usefixtures("wins_its_races")
def test_a_run_its_hypothetical_run_and_its_average_are_those_of_copies_bit_for_bit(kind: Kind) -> None:
    """From the method's own start: with one race, at four times the rate (`test_race.py` has those that are lost)."""
    net, copies = kind.network(), Copies(kind)
    optimizer = groups(net, kind.factory)
    adapter = RateAdapter(optimizer, net, loss, VALIDATION, length=None, settings=SHORT)
    meta, rates = adapter.meta, set()
    meta.given = False
    for step in range(48):
        copies.longest = 0.002 if step < 12 else 2.0
        meta.settings = replace(meta.settings, longest=copies.longest)
        torch.manual_seed(step)
        looks = meta.looks
        optimizer.zero_grad()
        adapter.loss(batch(step)).backward()
        optimizer.step()
        stream = torch.get_rng_state()
        torch.manual_seed(step)
        look = VALIDATION[(adapter.position - 1) % 3] if meta.looks > looks else None
        used = [group["used_lr"] for group in optimizer.param_groups]
        copies.step(batch(step), look, used, adapter.last["decay"], racing=meta.rival > 0)
        assert torch.equal(stream, torch.get_rng_state())
        rates.add(adapter.last["lr"])
        if look:
            assert adapter.last["hypergradient"] == pytest.approx(copies.h, rel=1e-9)
    assert len(rates) > 5
    assert meta.shortened == copies.shortened > 0
    assert equal(net, copies.net)
    assert equal([p.grad for p in net.parameters()], [p.grad for p in copies.net.parameters()])
    assert equal(attributes(net), attributes(copies.net))
    assert equal([*optimizer.state.values()], [*copies.optimizer.state.values()])
    assert equal(meta.hypothetical.weights, copies.others)
    assert equal(meta.hypothetical.buffers, list(copies.other.buffers()))
    assert equal([*meta.hypothetical.attributes["state"].values()], [*copies.own.state.values()])
    assert equal(meta.average.weights, copies.means)
    assert equal(meta.average.buffers, list(copies.mean.buffers()))
    assert equal(meta.difference, copies.difference)


def end(factory: Factory, scale: float = 1.0) -> list[Tensor]:
    """The weights after six steps at `scale` times the rate."""
    net = network()
    optimizer = factory(net.parameters())
    optimizer.param_groups[0]["lr"] *= scale
    for step in range(6):
        backward(net, optimizer, step)
        optimizer.step()
    return list(net.parameters())


@everything
def test_near_the_real_rate_and_without_pull_it_is_the_derivative_of_the_whole_run(factory: Factory) -> None:
    """Forward-mode differentiation, against central differences of whole runs, in log α."""
    net, factor, epsilon = network(), 1 + 1e-6, 1e-4
    optimizer = factory(net.parameters())
    run = HypotheticalRun(net, optimizer, list(net.parameters()), [False, False])
    for step in range(6):
        backward(net, optimizer, step)
        optimizer.step()
        found = run.step(lambda: loss(net, batch(step)), factor, 0.0, 1e9, 0.0, None)  # noqa: B023
    ours = torch.cat([step.flatten() for step in found]) / math.log(factor)
    up, down = (end(factory, math.exp(sign * epsilon)) for sign in (1, -1))
    truth = torch.cat([(u - d).flatten() for u, d in zip(up, down, strict=True)]) / (2 * epsilon)
    assert torch.linalg.vector_norm(ours - truth) < 1e-4 * torch.linalg.vector_norm(truth)
