"""Which optimizers can be adapted: `python -m benchmarks.optimizers` writes docs/optimizers.md."""

import math
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measure import ROOT
from hypergradient import check_supported, hypergradient, lookahead
from reporting.tables import markdown

PAGE = ROOT / "docs" / "optimizers.md"
# where the name begins so; all others at RATE
RATE, USUAL = 1e-3, {"prodigy": 1.0, "dadapt": 1.0}
# which take no biases
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


def row(name: str, make: Callable[..., Any]) -> list[str]:
    """Return the optimizer's row of the table, with the error of h against the finite difference in log lr."""
    rate = next((usual for begin, usual in USUAL.items() if name.split()[-1].startswith(begin)), RATE)
    try:
        optimizer, loss = problem(name, make, rate)
        check_supported(optimizer)
    # whatever an optimizer raises that needs more than a plain step gives it; and the refusal of check_supported
    except Exception as failure:
        _, refused, why = str(failure).partition("adapted: ")
        needs = f"needs more than gradients and a rate: {str(failure).splitlines()[0]}"
        return [name, *(("refused", why.partition(" Use one")[0][:110]) if refused else ("not tried", needs[:110]))]
    update = lookahead(optimizer, 1.0)
    h, losses = hypergradient(loss(), update).sum(), []
    for log_scale in (EPSILON, -EPSILON):
        optimizer, loss = problem(name, make, rate)
        lookahead(optimizer, math.exp(log_scale))
        losses.append(loss().detach())
    finite = (losses[0] - losses[1]) / (2 * EPSILON)
    return [name, "yes", f"{float((h - finite).abs() / finite.abs()):.1e}"]


def document() -> str:
    """Return docs/optimizers.md: every optimizer of torch.optim and of pytorch_optimizer."""
    of_torch = {name: getattr(torch.optim, name) for name in sorted(torch.optim.__all__) if name != "Optimizer"}
    makes = {f"torch.optim.{name}": make for name, make in of_torch.items() if isinstance(make, type)}
    for name in sorted(pytorch_optimizer.get_supported_optimizers()):
        makes[f"pytorch_optimizer {name}"] = pytorch_optimizer.load_optimizer(name)
    with warnings.catch_warnings(action="ignore"):
        rows = [[text.replace("|", "/").replace("\n", " ") for text in row(*one)] for one in makes.items()]
    adapted = sum(line[1] == "yes" for line in rows)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch_optimizer"))
    return f"""# Which optimizers can be adapted

Those whose step is proportional to the learning rate; `check_supported` measures this before training, for any
optimizer. The last column is the relative error of a step's hypergradient against its finite difference, in float64,
or the reason why an optimizer was refused. Of {len(rows)} here, {adapted} can be adapted. "Not tried": it does
not run on the small network of this page, since it needs a closure, the module, or more arguments. Muon and its
relatives were tried on the weight matrices alone. Adafactor is linear in its rate below 1/√t, as here.

Made by `python -m benchmarks.optimizers` with {packages}; lr {RATE:g}, and 1 for those that estimate it themselves.

{markdown(["optimizer", "adapted", "error, or why not"], rows)}
"""


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
