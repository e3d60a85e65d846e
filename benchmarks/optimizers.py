"""Which optimizers can be adapted: `python -m benchmarks.optimizers` writes docs/optimizers.md and optimizers.csv."""

import csv
import math
import textwrap
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measure import ROOT
from hypergradient import check_supported, hypergradient, lookahead
from reporting.tables import markdown

PAGE, NUMBERS = ROOT / "docs" / "optimizers.md", ROOT / "benchmarks" / "optimizers.csv"
LIBRARIES = "torch.optim", "pytorch_optimizer"
# part of the message of `check_supported` -> reason on the page
REASONS = {
    "multiplied its step": "a step is not proportional to the learning rate",
    "times as far": "a run of 25 steps at twice the learning rate does not go twice as far: it adapts the rate itself",
    "along their gradient": "moves weights along their gradient",
    "closure failed": "a step with plain gradients and no closure fails",
}
# the learning rate; beginning of a name -> the learning rate of these optimizers
RATE, USUAL = 1e-3, {"prodigy": 1.0, "dadapt": 1.0}
# optimizers with these in their names take no biases
MATRICES = "muon", "adago", "spectralsphere"
# AdaShift does not move in its first ten steps
STEPS, EPSILON = 15, 1e-4


def problem(name: str, make: Callable[..., Any], rate: float) -> tuple[Any, Callable[[], Tensor]]:
    """Return an optimizer before its next step, and the validation loss of its network in float64; always the same."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    parameters: Any = net.parameters()
    if any(word in name.lower() for word in MATRICES):
        parameters = [{"params": [p for p in parameters if p.dim() > 1], "use_muon": True}]
    optimizer, x, y = make(parameters, lr=rate), torch.randn(STEPS, 32, 4).double(), torch.randint(3, (STEPS, 32))
    for step in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(net(x[step]), y[step]).backward()
        if step < STEPS - 1:
            optimizer.step()
    x_val, y_val = torch.randn(64, 4).double(), torch.randint(3, (64,))
    return optimizer, lambda: cross_entropy(net(x_val), y_val)


class Row(NamedTuple):
    """An optimizer of a library, whether it can be adapted, and the error of its hypergradient, or why not."""

    library: str
    name: str
    adapted: str
    found: str


def row(library: str, name: str, make: Callable[..., Any]) -> Row:
    """Try an optimizer; the error of the hypergradient is relative to the finite difference in log lr."""
    rate = next((usual for begin, usual in USUAL.items() if name.startswith(begin)), RATE)
    try:
        optimizer, loss = problem(name, make, rate)
        check_supported(optimizer)
    # any error of an optimizer that needs more than a plain step provides, or the refusal by `check_supported`
    except Exception as failure:
        _, refused, why = str(failure).partition("adapted: ")
        if refused:
            return Row(library, name, "refused", why.partition(" Use one")[0])
        return Row(library, name, "not tried", str(failure).splitlines()[0])
    update = lookahead(optimizer, 1.0)
    h, losses = hypergradient(loss(), update).sum(), []
    for log_scale in (EPSILON, -EPSILON):
        optimizer, loss = problem(name, make, rate)
        lookahead(optimizer, math.exp(log_scale))
        losses.append(loss().detach())
    finite = (losses[0] - losses[1]) / (2 * EPSILON)
    return Row(library, name, "yes", f"{float((h - finite).abs() / finite.abs()):.1e}")


def measure() -> list[Row]:
    """Try every optimizer of torch.optim and of pytorch_optimizer."""
    torch_names = sorted(name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type))
    makes = [("torch.optim", name, getattr(torch.optim, name)) for name in torch_names if name != "Optimizer"]
    others = sorted(pytorch_optimizer.get_supported_optimizers())
    makes += [("pytorch_optimizer", name, pytorch_optimizer.load_optimizer(name)) for name in others]
    with warnings.catch_warnings(action="ignore"):
        return [row(*one) for one in makes]


def read() -> list[Row]:
    """Return the published rows."""
    with NUMBERS.open(encoding="utf-8", newline="") as file:
        return [Row(*cells) for cells in csv.reader(file)][1:]


def document(rows: list[Row], packages: str) -> str:
    """Return docs/optimizers.md; packages: the versions that were measured."""

    def names(adapted: str, library: str, part: str = "") -> str:
        own = [row for row in rows if (row.adapted, row.library) == (adapted, library) and part in row.found]
        return ", ".join(row.name for row in own)

    supported = sorted((row for row in rows if row.adapted == "yes"), key=lambda row: float(row.found))
    middle, worst = supported[len(supported) // 2], supported[-1]
    refused = [[reason, *(names("refused", of, part) for of in LIBRARIES)] for part, reason in REASONS.items()]
    paragraphs = [
        f"""Of {len(rows)} optimizers, {len(supported)} can be adapted: those whose step is proportional to the learning
        rate. `check_supported` measures this before training, for any optimizer, your own included. On a small network
        in float64, the hypergradient of each was compared with a finite difference: the median of the relative errors
        is {middle.found}, the largest is {worst.found} (`{worst.name}`). The error of each, or the reason why it is
        refused, is in [`benchmarks/optimizers.csv`](../benchmarks/optimizers.csv).""",
        f"""Made by `python -m benchmarks.optimizers` with {packages}, at a learning rate of {RATE:g}, and of 1 for
        optimizers that estimate the rate themselves. Muon and similar optimizers got the weight matrices only. The step
        of torch's Adafactor is proportional to its rate below 1/√t, as here.""",
        "## Supported",
        *(f"**{of}**: {names('yes', of)}." for of in LIBRARIES),
        "## Refused",
        markdown(["reason", *LIBRARIES], refused),
        "## Not tried",
        """These need more than gradients and a learning rate, such as a closure, the module or a process group, or do
        not run in float64. `check_supported` refuses an optimizer whose plain step fails.""",
        *(f"**{of}**: {names('not tried', of)}." for of in LIBRARIES),
    ]
    texts = [text if text.startswith(("|", "#")) else _filled(text) for text in paragraphs]
    return "\n\n".join(["# Which optimizers can be adapted", *texts]) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Measure, and write the numbers and the page."""
    rows = measure()
    with NUMBERS.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("library", "optimizer", "adapted", "error or reason"), *rows])
    packages = " and ".join(f"{name} {version(name)}" for name in ("torch", "pytorch_optimizer"))
    PAGE.write_text(document(rows, packages), encoding="utf-8")


if __name__ == "__main__":
    main()
