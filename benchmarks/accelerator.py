"""The four kinds of step on a CUDA device: a language model of 117 million weights, fp32 and bf16."""

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measure import Step, compare
from benchmarks.step import KINDS, LR, Batch, Problem
from lightning_modules import ByteTransformer

# tokens, width, layers, heads, samples in a batch
LARGE, SMALL = (256, 768, 16, 12, 16), (16, 32, 1, 2, 4)
OPTIONS: dict[str, dict[str, Any]] = {"Adam": {}, "fused": {"fused": True}, "capturable": {"capturable": True}}


def autocast_loss(bf16: bool, network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of the bytes that follow, 0-d."""
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=bf16):
        return cross_entropy(network(batch[0]).flatten(0, 1), batch[1].flatten())


def make(kind: str, size: tuple[int, ...], device: str, bf16: bool, options: dict[str, Any]) -> Step:
    """Return a step of that kind, on batches of random bytes, (batch, tokens) int64."""
    torch.manual_seed(0)
    tokens, width, layers, heads, samples = size
    network = ByteTransformer(tokens, width, layers, heads).to(device)
    text = torch.randint(256, (2, samples, tokens + 1), device=device)
    train, look = ((part[:, :-1], part[:, 1:]) for part in text)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, **options)
    return KINDS[kind](Problem(network, optimizer, train, look, partial(autocast_loss, bf16)))


def wall() -> float:
    """Return the wall time at which the device has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def accelerator(quick: bool) -> dict[str, Any]:
    """Measure wall time and memory on the device, or, quickly and small, on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for precision in ("fp32", "bf16"):
        for name, options in list(OPTIONS.items())[: 1 if quick else None]:
            of = SMALL if quick else LARGE, device, precision == "bf16", options
            makes = {kind: partial(make, kind, *of) for kind in KINDS}
            found[f"{precision}, {name}"] = compare(makes, *((0, 2) if quick else (20, 5)), clock=wall)
    return found
