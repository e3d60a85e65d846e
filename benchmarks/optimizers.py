"""Which optimizers can be adapted: `python -m benchmarks.optimizers` writes docs/optimizers.md."""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hypergradient import check_supported, hypergradient, lookahead
from reporting.tables import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "optimizers.md"
RATE, USUAL = 1e-3, {"prodigy": 1.0, "dadapt": 1.0}  # where the name begins so; all others at RATE
MATRICES = "muon", "adago", "spectralsphere"  # which take no biases
STEPS, EPSILON = 15, 1e-4  # AdaShift stands still for its first ten
Make = Callable[..., Any]


def optimizers() -> Iterator[tuple[str, Make]]:
    """Every optimizer of torch.optim and of pytorch_optimizer, by package and name."""
    for name in sorted(torch.optim.__all__):
        made = getattr(torch.optim, name)
        if isinstance(made, type) and name != "Optimizer":
            yield f"torch.optim.{name}", made
    for name in sorted(pytorch_optimizer.get_supported_optimizers()):
        yield f"pytorch_optimizer {name}", pytorch_optimizer.load_optimizer(name)


def of_matrices(make: Make, parameters: Iterator[Tensor], lr: float) -> Any:
    """Make an optimizer of matrices alone; pytorch_optimizer's want to be told which those are."""
    return make([{"params": [p for p in parameters if p.dim() > 1], "use_muon": True}], lr=lr)


def problem(make: Make, rate: float) -> tuple[nn.Module, Any, tuple[Tensor, Tensor]]:
    """A small network in float64 after a few steps, its last gradients there; the same at each call."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer, x, y = make(net.parameters(), lr=rate), torch.randn(STEPS, 32, 4).double(), torch.randint(3, (STEPS, 32))
    for step in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(net(x[step]), y[step]).backward()
        if step < STEPS - 1:
            optimizer.step()
    return net, optimizer, (torch.randn(64, 4).double(), torch.randint(3, (64,)))


def error(make: Make, rate: float) -> float:
    """Return |h - finite difference| / |finite difference| of the next step, in log lr."""

    def loss(log_scale: float) -> Tensor:
        net, optimizer, (x, y) = problem(make, rate)
        lookahead(optimizer, torch.tensor(math.exp(log_scale), dtype=torch.float64))
        return cross_entropy(net(x), y).detach()

    net, optimizer, (x, y) = problem(make, rate)
    update = lookahead(optimizer, torch.tensor(1.0, dtype=torch.float64))
    h = hypergradient(cross_entropy(net(x), y), update).sum()
    finite = (loss(EPSILON) - loss(-EPSILON)) / (2 * EPSILON)
    return float((h - finite).abs() / finite.abs())


def row(name: str, make: Make) -> list[str]:
    """Return the optimizer's row of the table."""
    rate = next((usual for begin, usual in USUAL.items() if name.split()[-1].startswith(begin)), RATE)
    if any(word in name.lower() for word in MATRICES):
        make = partial(of_matrices, make)
    try:
        _, optimizer, _ = problem(make, rate)
    except Exception as failure:
        return [name, "not tried", f"needs more than gradients and a rate: {str(failure).splitlines()[0]}"[:110]]
    try:
        check_supported(optimizer)
    except ValueError as refusal:
        return [name, "refused", f"{str(refusal).partition('adapted: ')[2].partition(' Use one')[0]}"[:110]]
    return [name, "yes", f"{error(make, rate):.1e}"]


def document() -> str:
    """Return docs/optimizers.md."""
    with warnings.catch_warnings(action="ignore"):
        rows = [row(name, make) for name, make in optimizers()]
    adapted = sum(line[1] == "yes" for line in rows)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch_optimizer"))
    table = [[name, said, why.replace("|", "/").replace("\n", " ")] for name, said, why in rows]
    return f"""# Which optimizers can be adapted

Those whose step is proportional to the learning rate; `check_supported` measures this before training, for any
optimizer. The last column is the relative error of a step's hypergradient against its finite difference, in float64,
or the reason why an optimizer was refused. Of {len(rows)} here, {adapted} can be adapted. "Not tried": it does
not run on the small network of this page, since it needs a closure, the module, or more arguments. Muon and its
relatives were tried on the weight matrices alone. Adafactor is linear in its rate below 1/√t, as here.

Made by `python -m benchmarks.optimizers` with {packages}; lr {RATE:g}, and 1 for those that estimate it themselves.

{markdown(["optimizer", "adapted", "error, or why not"], table)}
"""


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
