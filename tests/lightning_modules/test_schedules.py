import math

import pytest
import torch
from torch import nn

from lightning_modules import warmup_cosine


@pytest.mark.parametrize("steps", [1, 3, 40, 100])
def test_the_rate_rises_over_a_twentieth_of_the_run_then_falls_along_a_cosine(steps: int) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=2.0)
    schedule, seen = warmup_cosine(optimizer, steps), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm = max(1, steps // 20)
    rise = [2.0 * (step + 1) / warm for step in range(warm)]
    fall = [1 + math.cos(math.pi * step / (steps - warm)) for step in range(steps - warm)]
    assert seen == pytest.approx(rise + fall)
    assert min(seen) > 0
