from pathlib import Path

import torch

import train


def test_the_checkpoint_of_a_run_that_diverged_holds_finite_weights(store: Path) -> None:
    options = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=3", "--model.lr=1e30"]
    cli = train.main(["--optimizer", "adam", *options])
    [path] = (store / "mlruns" / "mnist1d" / str(cli.run_id) / "checkpoints").iterdir()
    state = torch.load(path, weights_only=True)["state_dict"]
    assert cli.diverged
    assert all(bool(weights.isfinite().all()) for weights in state.values())
