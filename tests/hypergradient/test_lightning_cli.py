"""The Lightning callback in a configuration of LightningCLI."""

import sys
from pathlib import Path

import pytest
import yaml
from pytorch_lightning.cli import LightningCLI

from tests.hypergradient.lightning_cases import QUIET, WARNINGS

pytestmark = WARNINGS

MODULE = """
import torch
from pytorch_lightning import LightningModule

class Model(LightningModule):
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
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(32, 4), batch_size=2)
    val_dataloader = train_dataloader

def plain(module, batch):
    return module.loss(batch)

def annotated(module: Model, batch: torch.Tensor) -> torch.Tensor:
    return module.loss(batch)
"""


@pytest.mark.parametrize("name", ["plain", "annotated", "Model.loss"])
def test_a_loss_is_named_in_yaml_and_the_saved_configuration_names_it_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_module", raising=False)
    arguments = {"loss": f"users_module.{name}"}
    callbacks = [{"class_path": "hypergradient.lightning.AdaptLearningRate", "init_args": arguments}]
    trainer = QUIET | {
        "accelerator": "cpu",
        "max_epochs": 3,
        "default_root_dir": str(tmp_path),
        "callbacks": callbacks,
    }
    given, saved = tmp_path / "given.yaml", tmp_path / "config.yaml"
    given.write_text(yaml.safe_dump({"seed_everything": 0, "trainer": trainer, "model": "users_module.Model"}))
    for path in (given, saved):
        made = LightningCLI(args=["fit", f"--config={path}"], save_config_kwargs={"overwrite": True})
        [adapt] = [callback for callback in made.trainer.callbacks if hasattr(callback, "adapter")]  # type: ignore[attr-defined]
        assert adapt.adapter.report()["steps"] == 48
        assert adapt.adapter.report()["highest"] > adapt.adapter.report()["lowest"]
