import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from hypergradient import check_supported
from hypergradient.support import SUPPORTED as QUOTED
from tests.hypergradient import problem
from tests.hypergradient.optimizers import ELSEWHERE, REFUSED, SUPPORTED, Factory


@pytest.mark.parametrize("steps", [0, 3], ids=["fresh", "resumed"])
@pytest.mark.parametrize("factory", SUPPORTED.values(), ids=SUPPORTED.keys())
def test_supported_optimizers_are_accepted_and_not_disturbed(factory: Factory, steps: int) -> None:
    net = problem.network()
    optimizer = problem.groups(net, factory)
    problem.warm_up(net, optimizer, steps)
    before, stream = copy.deepcopy((net.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    check_supported(optimizer)
    assert problem.equal((net.state_dict(), optimizer.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), stream)
    # judged in float64, whatever the precision of the weights
    check_supported(factory(problem.network().bfloat16().parameters()))


class ScheduledInside(torch.optim.SGD):
    """Somebody's optimizer, which caps its own rate."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["lr"] = min(group["lr"], 0.5)
        super().step()


@pytest.mark.parametrize("name", [*REFUSED, "ScheduledInside"])
def test_steps_that_are_not_proportional_to_lr_are_refused_with_the_remedy(name: str) -> None:
    optimizer = REFUSED.get(name, partial(ScheduledInside, lr=0.1))(problem.network().parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASGD warns of its own weight averaging
        with pytest.raises(ValueError, match=f"^{name} cannot be adapted: .* Use one of SGD, Adam"):
            check_supported(optimizer)


@pytest.mark.parametrize("name", SUPPORTED)
def test_steps_along_the_gradient_are_refused_of_one_group_too(name: str) -> None:
    optimizer = problem.groups(problem.network(), SUPPORTED[name])
    if "maximize" not in optimizer.defaults:
        pytest.skip("it has no such option")
    optimizer.param_groups[1]["maximize"] = True
    with pytest.raises(ValueError, match=r"moves weights along their gradient.* Use maximize=False, and negate"):
        check_supported(optimizer)


@pytest.mark.parametrize("lr", [1e-12, 1e-6, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_weights_of_any_precision_are_accepted_at_any_rate(name: str, dtype: torch.dtype, lr: float) -> None:
    optimizer = SUPPORTED[name]([nn.Parameter(torch.ones(4, 3, dtype=dtype)), nn.Parameter(torch.zeros(3).double())])
    for group in optimizer.param_groups:
        group["lr"] = lr
    check_supported(optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_defaults_of_device_and_precision_do_not_matter(dtype: torch.dtype) -> None:
    optimizer, before = torch.optim.SGD(problem.network().parameters(), lr=0.1), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # nothing can be computed there
        with torch.device("meta"):
            check_supported(optimizer)
    finally:
        torch.set_default_dtype(before)


def test_every_optimizer_of_torch_is_either_in_the_list_that_the_error_quotes_or_refused() -> None:
    supported = {name.split("-")[0] for name in SUPPORTED}
    classes = {name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)}
    assert set(QUOTED.split(", ")) == supported
    assert supported | (set(REFUSED) - ELSEWHERE) == classes - {"Optimizer"}
