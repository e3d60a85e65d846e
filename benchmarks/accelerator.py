"""What a look costs on an accelerator, at size: `make bench-gpu`, or `python -m benchmarks.accelerator --device cpu`.

A language model of more than a hundred million weights, in fp32 and bf16, under Adam as it comes, fused and capturable:
a plain step, one that adapts the rate in each, each 4th and each 16th step (the plain rule), and the whole rule.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Step, machine
from benchmarks.step import adapted, plain_step, whole_rule
from benchmarks.workloads import LR, Batch
from lightning_modules import ByteTransformer
from lightning_modules.supervised import objective
from reporting.tables import markdown

SIZES = {"large": (256, 768, 16, 12, 16), "small": (16, 32, 1, 2, 4)}  # tokens, width, layers, heads, samples a batch
OPTIONS: dict[str, dict[str, Any]] = {"Adam": {}, "fused": {"fused": True}, "capturable": {"capturable": True}}
CYCLE, ROUNDS = 16, 5  # steps a round: of a look each 16th step there is one


STEPS: dict[str, Callable[..., Step]] = {
    "plain step": plain_step,
    "a look each step": adapted,
    "each 4th": partial(adapted, every=4),
    "each 16th": partial(adapted, every=16),
    "the whole rule": whole_rule,
}


def build(
    size: str, device: torch.device, options: dict[str, Any]
) -> tuple[nn.Module, torch.optim.Optimizer, Batch, Batch]:
    """Return network, optimizer, a training and a validation batch of random bytes, (batch, tokens) int64."""
    torch.manual_seed(0)
    tokens, width, layers, heads, samples = SIZES[size]
    network = ByteTransformer(tokens, width, layers, heads).to(device)
    train, look = (torch.randint(256, (samples, tokens + 1), device=device) for _ in range(2))
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, **options)
    return network, optimizer, (train[:, :-1], train[:, 1:]), (look[:, :-1], look[:, 1:])


def autocast_loss(device: str, bf16: bool, network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss, 0-d."""
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        return objective(network(batch[0]), batch[1])


def measure(step: Step, device: torch.device) -> tuple[float, float, float]:
    """Return the wall seconds of a step, median over rounds and half the distance of the quartiles, and GiB at most."""
    cuda = device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if cuda else (lambda: None)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(ROUNDS + 1):  # the first warms up
        wait()
        began = time.perf_counter()
        for _ in range(CYCLE):
            step()
        wait()
        seconds.append((time.perf_counter() - began) / CYCLE)
    low, median, high = np.percentile(seconds[1:], [25, 50, 75])
    return float(median), float(high - low) / 2, torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")


def table(size: str, device: torch.device) -> str:
    """Return a row a kind of step, a column a precision and an optimizer: milliseconds, over the plain step, GiB."""
    cells: dict[str, list[str]] = {name: [] for name in STEPS}
    columns = [
        (dtype, option) for dtype in ("fp32", "bf16") for option in OPTIONS if device.type == "cuda" or option == "Adam"
    ]
    for dtype, option in columns:
        plain, loss = 0.0, partial(autocast_loss, device.type, dtype == "bf16")
        for name, make in STEPS.items():
            median, spread, memory = measure(make(*build(size, device, OPTIONS[option]), loss=loss), device)
            plain = plain or median
            cells[name].append(f"{1000 * median:.2f} ± {1000 * spread:.2f} / {median / plain:.2f} / {memory:.2f}")
    header = ["ms / ratio / GiB", *(f"{dtype}, {option}" for dtype, option in columns)]
    return markdown(header, [[name, *row] for name, row in cells.items()])


def main(args: list[str] | None = None) -> str:
    """Measure, print and return the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (default: cuda)")
    parser.add_argument("--size", choices=list(SIZES), default="large", help="of the network (default: large)")
    own = parser.parse_args(args)
    device = torch.device(own.device)
    torch.set_num_threads(1)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here: --device cpu --size small tries the command without one")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["processor"]
    weights = sum(p.numel() for p in ByteTransformer(*SIZES[own.size][:4]).parameters())
    size = f"{weights / 1e6:.1f} million weights, {SIZES[own.size][-1]} samples a batch"
    text = f"{table(own.size, device)}\n\n{name}, torch {torch.__version__}; {size}."
    print(text)
    return text


if __name__ == "__main__":
    main()
