import sqlite3
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from data import MNIST1DDataModule
from experiment.training import train
from tests.store import runs
from tracking.store import artifact_dir, client

SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]


@pytest.mark.slow
def test_a_run_names_its_data_with_digests_that_are_those_of_the_draw() -> None:
    train(["--optimizer", "adam", *SHORT])
    train(["--optimizer", "meta_onestep", *SHORT])
    train(["--optimizer", "adam", *SHORT, "--data.seed=1"])
    digests = []
    for run in runs():
        assert run.inputs
        inputs = {given.dataset.name: given for given in run.inputs.dataset_inputs}
        assert set(inputs) == {"MNIST1D train", "MNIST1D val", "MNIST1D test"}
        assert inputs["MNIST1D val"].tags[0].value == "validation"
        digests.append(inputs["MNIST1D train"].dataset.digest)
    assert digests[0] == digests[1] != digests[2]
    assert [run.data.tags["data_seed"] for run in runs()] == ["0", "0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mlp", "conv_batchnorm", "gru"])
def test_the_model_kept_predicts_on_a_raw_array_of_any_length(task: str) -> None:
    cli = train(["--optimizer", "adam", "--task", task, "--log-model", *SHORT])
    mlflow.set_tracking_uri(f"sqlite:///{artifact_dir().parent}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"runs:/{cli.run_id}/model")
    assert isinstance(model.input_example, np.ndarray)
    data = MNIST1DDataModule()
    data.setup("fit")
    network = cli.model.network.eval()
    for samples in (1, 2, 7, 1000):
        x = data.val[0][:samples]
        with torch.no_grad():
            expected = network(x).numpy()
        assert model.predict(x.numpy()) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        model.predict(np.zeros((3, 41), np.float32))


@pytest.mark.slow
def test_the_model_kept_is_no_pickle() -> None:
    cli = train(["--optimizer", "adam", "--log-model", *SHORT])
    files = [path for path in Path(artifact_dir()).rglob("*") if path.suffix in (".pt2", ".pth", ".pkl", ".pickle")]
    assert {path.suffix for path in files} == {".pt2"}, cli.run_id


@pytest.mark.slow
def test_a_model_in_16_bits_is_kept_too_and_the_network_is_left_as_it_was() -> None:
    cli = train(["--optimizer", "adam", "--log-model", "--trainer.precision=bf16-true", *SHORT])
    assert client().get_run(str(cli.run_id)).info.status == "FINISHED"
    assert next(cli.model.network.parameters()).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_run_whose_model_the_store_refuses_is_tested_all_the_same(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(["--optimizer", "adam", *SHORT])
    with sqlite3.connect(store / "mlflow.db") as database:
        database.execute("create trigger refused before insert on logged_models begin select raise(abort, 'no'); end")
    database.close()
    cli = train(["--optimizer", "adam", "--log-model", *SHORT])
    assert "--log-model: the store did not take the model (MlflowException)" in capsys.readouterr().err
    assert client().get_run(str(cli.run_id)).info.status == "FINISHED"
    assert cli.test_metrics["test/loss"] > 0
