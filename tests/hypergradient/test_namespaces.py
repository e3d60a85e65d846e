"""`import lightning as L` and `import pytorch_lightning as L`: one callback, each package alone and both together."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))  # as if they were not installed
import torch
import {name} as L
from hypergradient import Settings
from hypergradient.lightning import AdaptLearningRate

class Module(L.LightningModule):
    def __init__(self, lr):
        super().__init__()
        torch.manual_seed(0)
        self.network, self.lr = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)), lr
    def loss(self, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(self.network(x), y)
    def training_step(self, batch, batch_idx):
        return self.loss(batch)
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

def fit(*callbacks, lr=1e-3):
    draw = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(64, 4, generator=draw), torch.randn(64, 1, generator=draw))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    module = Module(lr)
    L.Trainer(accelerator="cpu", max_epochs=3, callbacks=list(callbacks), **quiet).fit(module, loader, loader)
    return torch.cat([p.detach().flatten() for p in module.parameters()])

adapt, hold = (AdaptLearningRate(Module.loss, settings=settings) for settings in
               (Settings(), Settings(meta_lr=0.0, weight_decay=0.0, window=0.0)))
adapted, held = fit(adapt), fit(hold)
plain = fit(lr=hold.adapter.last["lr"])
print(torch.equal(plain, held), not torch.equal(plain, adapted), adapt.adapter.report()["steps"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("lightning", []),
        ("lightning", ["pytorch_lightning"]),
        ("lightning.pytorch", ["pytorch_lightning"]),
        ("pytorch_lightning", ["lightning"]),
    ],
)
def test_the_callback_adapts_under_either_package(name: str, absent: list[str]) -> None:
    command = [sys.executable, "-c", SCRIPT.format(name=name, absent=absent)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True True 24"
