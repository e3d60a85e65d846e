"""One step of peers that adapt the rate by something else than a gradient of the validation loss: for its cost alone.

A peer's package is imported in its maker: who has not installed it can run the rest.
"""

from itertools import repeat

import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers import Step
from benchmarks.workloads import LR, Workload, loss


def gdtuo(workload: Workload, dtype: torch.dtype) -> Step:
    """A step of gradient-descent-the-ultimate-optimizer: on the training loss, α and betas; for its cost alone."""
    from gradient_descent_the_ultimate_optimizer import gdtuo as package

    network, train, _ = workload.build(dtype)
    wrapper = package.ModuleWrapper(network, optimizer=package.Adam(LR, optimizer=package.SGD(1e-5)))
    wrapper.initialize()

    def step() -> None:
        wrapper.begin()
        value = loss(wrapper.forward, train)
        wrapper.zero_grad()
        value.backward(create_graph=True)
        wrapper.step()

    return step


def momo(workload: Workload, dtype: torch.dtype) -> Step:
    """A step of MomoAdam, which caps its rate by the training loss that it is given."""
    from momo import MomoAdam

    network, train, _ = workload.build(dtype)
    optimizer = MomoAdam(network.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        value = loss(network, train)
        value.backward()
        optimizer.step(loss=value)

    return step


def gen(workload: Workload, dtype: torch.dtype) -> Step:
    """A step of gen-optim: a parabola through the validation losses of three hypothetical steps gives the rate."""
    from GeN import lr_parabola

    network, train, look = workload.build(dtype)
    optimizer, looks = torch.optim.Adam(network.parameters(), lr=LR), repeat(look)

    def step() -> None:
        optimizer.zero_grad()
        loss(network, train).backward()
        lr_parabola(network, optimizer, cross_entropy, tr_iter=looks, device="cpu", task="image_cls")
        optimizer.step()

    return step


def polling(workload: Workload, dtype: torch.dtype) -> Step:
    """A step of efficient-polling-lr-scheduler that polls: of three hypothetical steps the one of the least loss."""
    from efficient_polling_lr_scheduler import PollingOptimizer, make_closure

    network, (x, y), _ = workload.build(dtype)
    adam = torch.optim.Adam(network.parameters(), lr=LR)
    optimizer = PollingOptimizer(adam, candidate_lrs=(LR / 2, LR, LR * 2), module=network, criterion="loss")
    return lambda: optimizer.step(make_closure(network, cross_entropy, x, y))


OTHERS = {
    "gdtuo (training loss)": gdtuo,
    "MoMo 0.1 (training loss)": momo,
    "GeN 0.1 (3 validation losses)": gen,
    "polling 2.1 (3 training losses)": polling,
}
