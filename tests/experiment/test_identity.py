"""A stored run is reused if and only if its configuration, code and data are the same."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from mlflow.entities import Run as StoredRun

import compare
import tune
from experiment import identity, options
from experiment.command_line import read
from experiment.grid import read_run
from experiment.run import Run, look_up, train
from reporting.machine import machine
from tests.store import SHORT, runs
from tracking.runs import run_of
from tracking.store import client, open_experiment

Edit = Callable[[str], str]
PROJECT = ["callbacks", "data", "experiment", "hypergradient", "lightning_modules", "reporting", "tracking"]


Paths = dict[str, tuple[str, ...]]
"""Arm -> the classes and functions of its configuration."""


@pytest.fixture(scope="module")
def paths() -> Paths:
    dumps = {arm: Run(read(["--optimizer", arm]), {}, (), build=False).dump for arm in options.ARMS}
    return {arm: tuple(identity._paths([dump["model"], dump["data"], dump["trainer"]])) for arm, dump in dumps.items()}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the packages, of which Python would import instead of those of this clone."""
    for package in PROJECT:
        shutil.copytree(options.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    """As a new process does."""
    identity.code.cache_clear()
    identity._read.cache_clear()
    identity.uncommitted.cache_clear()


@pytest.fixture(scope="module")
def before(paths: Paths) -> dict[str, str]:
    return digests(paths)


def digests(paths: Paths) -> dict[str, str]:
    forget()
    # arms of the same modules have the same
    found = {used: identity.code(used) for used in set(paths.values())}
    return {arm: found[used] for arm, used in paths.items()}


def statement(text: str) -> str:
    return f"{text}\nADDED = 1\n"


def other_docstrings(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Expr(ast.Constant("Another text."))
    # without comments and in another layout, too
    return ast.unparse(tree)


META, AVERAGED = {"MetaModule"}, {"MetaModule", "TailAverage"}
ONE_STEP = {"OneStepModule"}
ALL, NONE = {"MNIST1DDataModule"}, set[str]()
# the edited file, the edit -> classes and functions: the arms that use one of them are trained again
CODE: list[tuple[str, Edit, set[str]]] = [
    ("hypergradient/meta.py", lambda text: text.replace("* self.", "* 50 * self.", 1), META),
    ("hypergradient/settings.py", lambda text: text.replace("16", "17", 1), META),
    ("hypergradient/sets.py", statement, AVERAGED | ONE_STEP),
    ("hypergradient/lightning_average.py", statement, AVERAGED),
    ("hypergradient/one_step.py", statement, ONE_STEP),
    ("hypergradient/huggingface.py", statement, NONE),
    ("lightning_modules/meta.py", statement, META),
    ("lightning_modules/supervised.py", statement, ALL),
    ("lightning_modules/networks.py", lambda text: text.replace("nn.ReLU()", "nn.GELU()"), ALL),
    ("lightning_modules/schedules.py", statement, {"warmup_cosine"}),
    ("lightning_modules/transformers.py", statement, NONE),
    ("callbacks/average.py", statement, AVERAGED),
    ("callbacks/divergence.py", statement, ALL),
    ("data/tensors.py", statement, ALL),
    ("data/mnist1d.py", lambda text: text.replace("42", "43"), ALL),
    ("data/text.py", statement, NONE),
    ("experiment/run.py", statement, ALL),
    ("experiment/grid.py", statement, NONE),
    ("reporting/*.py", statement, NONE),
    ("tracking/*.py", statement, NONE),
    ("*/*.py", lambda text: f"# a comment\n\n{text}", NONE),
    ("*/*.py", other_docstrings, NONE),
]


@pytest.mark.parametrize(
    ("files", "edit", "changed"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (place % 2)) for place, case in enumerate(CODE)],
    ids=lambda value: str(value) if "/" in str(value) else "",
)
def test_an_edit_of_code_is_another_run_of_the_arms_that_use_it(
    files: str, edit: Edit, changed: set[str], clone: Path, paths: Paths, before: dict[str, str]
) -> None:
    for file in clone.glob(files):
        text = file.read_text(encoding="utf-8")
        assert edit(text) != text
        file.write_text(edit(text), encoding="utf-8")
    after = digests(paths)
    using = {arm for arm, used in paths.items() if changed & {path.rpartition(".")[2] for path in used}}
    assert {arm for arm in after if after[arm] != before[arm]} == using


@pytest.mark.slow
def test_other_versions_of_python_find_the_same_code() -> None:
    files = [str(file) for package in PROJECT for file in sorted((options.ROOT / package).glob("*.py"))]
    program = f"from experiment.identity import _read\nprint([_read(file, 'a.b') for file in {files}])"
    found = [shutil.which(f"python3.{minor}") for minor in range(11, 15)]
    # none of them needs torch; a shim of pyenv exists for versions that do not start
    starts = [path for path in found if path and not subprocess.run([path, "-c", ""], check=False).returncode]
    pythons = [sys.executable, *starts]
    said = {
        subprocess.run([python, "-c", program], cwd=options.ROOT, capture_output=True, check=True).stdout
        for python in pythons
    }
    assert len(said) == 1


OWN = {
    "mine.py": "import lab.nets\nfrom near import scale\n\ndef late():\n    from lab import deep\n",
    "near.py": "def scale():\n    '''Say two.'''\n    return 2\n",
    "lab/__init__.py": "from lab.patches import patch\npatch()\n",
    "lab/patches.py": "def patch(): pass\n",
    "lab/nets.py": "from . import layers\nfrom .layers import *\n",
    "lab/layers.py": "x = 1\n",
    "lab/deep.py": "x = 1\n",
    "lab/unused.py": "x = 1\n",
    "unused.py": "x = 1\n",
}


@pytest.mark.parametrize("name", OWN)
def test_an_edit_of_ones_own_module_or_of_what_that_imports_is_another_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder it is the same, as on another machine."""
    found = []
    for folder, edit in (("a", str), ("b", other_docstrings), ("c", statement)):
        (tmp_path / folder / "lab").mkdir(parents=True)
        for file, text in OWN.items():
            (tmp_path / folder / file).write_text(edit(text) if file == name else text)
        with monkeypatch.context() as context:
            context.syspath_prepend(tmp_path / folder)
            found.append(identity.code(("mine.Net", "torch.optim.Adam", "0.5", "./mine.csv")))
            forget()
    assert found[0] == found[1]
    assert (found[0] == found[2]) == ("unused" in name)


DATA = """
import csv
import torch
from data.tensors import TensorDataModule

class Table(TensorDataModule):
    def __init__(self, path: str, batch_size: int = 8, val_batch_size: int = 8, seed: int = 0) -> None:
        super().__init__(batch_size, val_batch_size, 16, 8)
        self.path = path

    def samples(self):
        with open(self.path) as rows, open(self.path + ".read", "a") as log:
            log.write(".")
            table = torch.tensor([[float(value) for value in row] for row in csv.reader(rows)])
        return self.cut(table[:, :-1], table[:, -1])
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A CSV file of one's own: two inputs and a label; and the options that train on it."""
    (tmp_path / "own_table.py").write_text(DATA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_table", raising=False)
    file = tmp_path / "table.csv"
    file.write_text("".join(f"{row},{row % 7},{row % 3}\n" for row in range(32)))
    network = ["--data.batch_size=8", "--model.network.inputs=2", "--model.network.classes=1", "--trainer.max_epochs=1"]
    return file, ["--data=own_table.Table", f"--data.path={file}", *network]


EDITS: dict[str, Edit] = {
    "an input": lambda text: text.replace("20,6,2", "20.5,6,2"),
    "a label of the training set": lambda text: text.replace("5,5,2\n", "5,5,1\n", 1),
    "a label of the test set": lambda text: text.replace("31,3,1\n", "31,3,0\n"),
    "the order": lambda text: "\n".join(text.split()[::-1]),
}


def test_an_edit_of_the_data_is_another_run_and_a_deleted_run_is_none(table: tuple[Path, list[str]]) -> None:
    file, data = table
    line = ["--optimizer=adam", *data, options.QUIET]
    known = train(line).run_id
    text = file.read_text()
    for edit in EDITS.values():
        assert edit(text) != text
        file.write_text(edit(text))
        assert look_up(line, {})[1] is None
    # another number of blanks, the same samples
    file.write_text(text.replace(",", ", "))
    assert look_up(line, {})[1] == known
    client().delete_run(str(known))
    assert look_up(line, {})[1] is None


def test_the_data_are_read_once_a_configuration_and_once_a_run(table: tuple[Path, list[str]]) -> None:
    file, data = table
    read, samples = Path(f"{file}.read"), dict[str, str]()
    for seed in range(3):
        for arm in ("adam", "cosine"):
            look_up([f"--optimizer={arm}", f"--seed_everything={seed}", *data], samples)
    assert (read.read_text(), len(samples)) == (".", 1)
    train(["--optimizer=adam", *data, options.QUIET])
    assert read.read_text() == ".."


def test_a_run_of_other_code_is_refused_in_the_middle_of_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker that joins later may have imported an edit."""
    with pytest.raises(SystemExit, match="2"):
        train(["--optimizer=adam", *SHORT], code="sha256:other")
    assert "The code changed while the command ran, or differs on this machine" in capsys.readouterr().err
    assert runs() == []


@pytest.mark.parametrize("changed", ["config", "code", "data_digest"])
def test_a_checkpoint_of_other_code_data_or_configuration_does_not_resume_its_run(changed: str) -> None:
    tags = {"config": "c", "code": "d", "data_digest": "e"}
    run_id = client().create_run(open_experiment(), tags=tags).info.run_id
    path = f"{run_id}/checkpoints/epoch=1.ckpt"
    assert run_of(path, tags) == run_id
    assert run_of(path, tags | {changed: "another"}) is None


def stored(**tags: str) -> StoredRun:
    run = client().create_run(open_experiment(), tags={name.replace("_", "."): value for name, value in tags.items()})
    client().set_terminated(run.info.run_id)
    return run


def test_uncommitted_changes_are_shown_next_to_the_commit() -> None:
    commit = {"mlflow_source_git_commit": "0123456789"}
    shown = [
        read_run(stored(**tags).info.run_id, courses=False)["commit"]
        for tags in (commit | {"mlflow_source_git_dirty": "true"}, commit | {"mlflow_source_git_dirty": "false"}, {})
    ]
    assert shown == ["0123456 with uncommitted changes", "0123456", "unknown"]


def test_code_and_arms_that_differ_from_the_commit_are_uncommitted_changes_what_commands_write_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clone"
    monkeypatch.setattr(identity, "ROOT", folder)
    for name in ("meta.py", "configs/adam.yaml", "configs/tuned/adam.yaml", "results/a.csv", "tests/test.py", "a.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1\n")

    def changed() -> bool:
        identity.uncommitted.cache_clear()
        return identity.uncommitted()

    # not a repository: there is no commit either
    assert not changed()
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@here", "-C", str(folder)]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    assert not changed()
    for name in ("configs/tuned/adam.yaml", "results/a.csv", "tests/test.py", "a.md"):
        (folder / name).write_text("2\n")
        assert not changed(), name
    for name in ("meta.py", "configs/adam.yaml", "mine.py", "radam.yaml"):
        (folder / name).write_text("2\n")
        assert changed(), name
        subprocess.run([*git, "add", "--all"], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", name], check=True)
    identity.uncommitted.cache_clear()


def test_the_tags_of_a_run_are_those_it_is_found_by_and_name_the_version_of_torch() -> None:
    """Another version of torch is shown, and is not another run: published tables survive an update."""
    train(["--optimizer=adam", *SHORT])
    [run] = runs()
    tags, known = look_up(["--optimizer=adam", *SHORT], {})
    assert (tags.items() <= run.data.tags.items(), known) == (True, run.info.run_id)
    assert run.data.tags["trained_on"] == machine()
    assert "torch " in machine()


def count(text: str) -> list[str]:
    return [line for line in text.splitlines() if "found in the store" in line]


@pytest.mark.slow
def test_compare_trains_what_is_other_and_says_how_much(
    table: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, data = table
    command = ["--optimizers", "adam", "cosine", "--seeds", "2", "--workers", "1", "--output", str(tmp_path), *data]

    def compared(*more: str) -> list[str]:
        compare.main([*command, *more])
        return count(capsys.readouterr().out)

    assert compared() == ["4 runs: 0 found in the store, 4 to train"]
    assert compared() == ["4 runs: 4 found in the store, 0 to train"]
    assert compared("--seeds", "3") == ["6 runs: 4 found in the store, 2 to train"]
    file.write_text(EDITS["a label of the training set"](file.read_text()))
    assert compared() == ["4 runs: 0 found in the store, 4 to train"]
    newest = {run.info.run_id for run in runs()}
    assert compared("--retrain") == ["4 runs: 0 found in the store, 4 to train"]
    again = {run.info.run_id for run in runs()} - newest
    # those are the ones that count from now on
    assert compared() == ["4 runs: 4 found in the store, 0 to train"]
    assert all(run_id in (tmp_path / "results.csv").read_text() for run_id in again)
    client().delete_run(again.pop())
    # an older one has the same identity
    assert compared() == ["4 runs: 4 found in the store, 0 to train"]


@pytest.mark.slow
def test_tune_counts_no_trial_of_other_data_and_none_that_was_deleted(
    table: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, data = table

    def tuned(*more: str) -> list[str]:
        tune.main(["--optimizer", "adam", "--trials", "2", *data, *more])
        return count(capsys.readouterr().out)

    def trials() -> list[str]:
        return [run.info.run_id for run in runs() if "trial" in run.info.run_name]

    assert tuned() == ["2 trials: 0 found in the store, 2 to train"]
    assert tuned() == ["2 trials: 2 found in the store, 0 to train"]
    client().delete_run(trials()[0])
    assert tuned() == ["2 trials: 1 found in the store, 1 to train"]
    text = file.read_text()
    file.write_text(EDITS["a label of the training set"](text))
    assert tuned() == ["2 trials: 0 found in the store, 2 to train"]
    file.write_text(text)
    assert tuned() == ["2 trials: 2 found in the store, 0 to train"]
    assert tuned("--retrain") == ["2 trials: 0 found in the store, 2 to train"]
    assert tuned() == ["2 trials: 2 found in the store, 0 to train"]
    # without its run, a study begins again
    [*_, parent] = [run for run in runs() if run.info.run_name == "tune adam"]
    client().delete_run(parent.info.run_id)
    assert tuned() == ["2 trials: 0 found in the store, 2 to train"]


@pytest.mark.slow
def test_an_edit_of_the_rule_retrains_the_arm_that_has_it_in_compare_and_tune_and_a_comment_none(
    tmp_path: Path,
) -> None:
    """New processes, in a clone of its own."""
    folder = tmp_path / "clone"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "mlruns", "mlflow.db", "tests", "docs", "results")
    shutil.copytree(options.ROOT, folder, ignore=ignored)
    (folder / "own.yaml").write_text(
        yaml.safe_dump({"trainer": {"max_epochs": 1}, "data": {"init_args": {"batch_size": 1000}}})
    )

    def said(script: str, *words: str) -> list[str]:
        command = [sys.executable, str(folder / script), *words, "--config", str(folder / "own.yaml")]
        return count(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    both = ["--optimizers", "meta", "adam", "--seeds", "1", "--workers", "1", "--output", str(tmp_path / "out")]
    tunings = [["--optimizer", arm, "--trials", "1"] for arm in ("meta", "adam")]

    def found() -> list[str]:
        lines = [*said("compare.py", *both), *(line for words in tunings for line in said("tune.py", *words))]
        return [line.split(": ")[1].split()[0] for line in lines]

    rule, reporting = folder / "hypergradient" / "meta.py", folder / "reporting" / "curves.py"
    assert found() == ["0", "0", "0"]
    rule.write_text(f"# a comment\n{rule.read_text()}")
    reporting.write_text(statement(reporting.read_text()))
    assert found() == ["2", "1", "1"]
    rule.write_text(statement(rule.read_text()))
    assert found() == ["1", "0", "1"]
