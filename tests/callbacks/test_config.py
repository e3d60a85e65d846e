from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LightningCLI

from callbacks import LogInputs
from data import MNIST1DDataModule
from tests.store import runs
from tracking.store import client


def fit(*options: str) -> Any:
    """Train an epoch as the command line says, and return the run of the store."""
    defaults = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    model = ["--model=lightning_modules.SupervisedModule", "--model.network=lightning_modules.MLP"]
    args = [*defaults, *model, "--trainer.logger=tracking.logger.Tracker", "--data.batch_size=1000", *options]
    own: dict[str, Any] = {"subclass_mode_model": True, "save_config_callback": LogInputs, "seed_everything_default": 1}
    cli = LightningCLI(LightningModule, MNIST1DDataModule, args=args, run=False, **own)
    config = cli.parser.dump(cli.config, skip_none=False)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    run = runs()[-1]
    kept = Path(client().download_artifacts(run.info.run_id, "config.yaml")).read_text()
    assert yaml.safe_load(kept) == yaml.safe_load(config)
    return run


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_run_has_its_configuration() -> None:
    first, again = fit(), fit("--model.lr=0.1")
    assert (
        first.data.params.items()
        >= {"model.network": "lightning_modules.MLP", "model.lr": "0.001", "seed": "1"}.items()
    )
    assert again.data.params["model.lr"] == "0.1"
