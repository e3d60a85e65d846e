"""One callback for `lightning` and `pytorch_lightning`, installed separately or together."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))  # as if they were not installed
import torch
import {name} as L
from hypergradient.lightning import AdaptLearningRate

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(4, 1)
    def loss(self, batch):
        return (self.network(batch) - 1).square().mean()
    def training_step(self, batch, batch_idx):
        return self.loss(batch)
    validation_step = training_step
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

adapt, loader = AdaptLearningRate(Module.loss), torch.utils.data.DataLoader(torch.randn(64, 4), batch_size=8)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
L.Trainer(accelerator="cpu", max_epochs=6, callbacks=[adapt], **quiet).fit(Module(), loader, loader)
report = adapt.adapter.report()
print(report["steps"], report["highest"] > report["lowest"] > 0, adapt.adapter.meta.average.exchanged)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "absent"),
    [("lightning", []), ("lightning.pytorch", ["pytorch_lightning"]), ("pytorch_lightning", ["lightning"])],
)
def test_the_callback_adapts_under_either_package(name: str, absent: list[str]) -> None:
    command = [sys.executable, "-c", SCRIPT.format(name=name, absent=absent)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "48 True True"
