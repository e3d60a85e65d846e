"""The float32 error of the hypergradient at small rates: `python benchmarks/precision.py`.

The table stands in docs/design.md. Against float64, on two batches of mnist1d; the update Δ(α) is measured by the
optimizer's own step at α (the package's way), or by a step at rate 1 that is scaled down to α.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.mnist1d import PUBLISHED, generate
from hypergradient import hypergradient, lookahead
from lightning_modules import MLP

BATCH = 128


def measure(name: str, rate: float, dtype: torch.dtype, probe_rate: float) -> float:
    """Return dL_val/d log α at α = `rate`, with Δ measured at `probe_rate`."""
    torch.manual_seed(0)
    net, arrays = MLP().to(dtype), generate(PUBLISHED)
    optimizer = getattr(torch.optim, name)(net.parameters(), lr=probe_rate)
    cross_entropy(net(arrays["x"][:BATCH].to(dtype)), arrays["y"][:BATCH]).backward()
    update = lookahead(optimizer, 1.0)
    if rate != probe_rate:
        [(params, steps)] = update
        with torch.no_grad():
            for p, step in zip(params, steps, strict=True):
                start = p - step
                p.copy_(start + step.mul_(rate / probe_rate))
    look = cross_entropy(net(arrays["x"][BATCH : 2 * BATCH].to(dtype)), arrays["y"][BATCH : 2 * BATCH])
    return hypergradient(look, update).item()


def main() -> None:
    """Print a row a rate: the relative error of each way, for each optimizer."""
    print("| rate | SGD, own step | SGD, at 1 | Adam, own step | Adam, at 1 |\n|---|---|---|---|---|")
    for rate in (1e-1, 1e-3, 1e-5, 1e-6, 1e-8):
        errors = []
        for name in ("SGD", "Adam"):
            truth = measure(name, rate, torch.float64, rate)
            errors += [abs(measure(name, rate, torch.float32, at) / truth - 1) for at in (rate, 1.0)]
        print(f"| {rate:.0e} | " + " | ".join(f"{error:.0e}" for error in errors) + " |")


if __name__ == "__main__":
    main()
