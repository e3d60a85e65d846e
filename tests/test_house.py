"""The structure of the repository, checked on the files in git: others in the clone are the user's own."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from experiment.options import ROOT

LISTED = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
FILES = [Path(name) for name in LISTED.stdout.splitlines() if (ROOT / name).is_file()]
COMMANDS = {path.stem for path in FILES if len(path.parts) == 1}
PACKAGES = sorted(path.parts[0] for path in FILES if path.name == "__init__.py" and path.parts[0] != "benchmarks")
FRAMEWORK = {
    "huggingface.py": {"transformers"},
    "lightning_average.py": {"pytorch_lightning", "lightning"},
}  # `hypergradient`: a file named for what it imports


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


def modules(package: str) -> list[Path]:
    """The files of a package."""
    return [ROOT / path for path in FILES if path.parts[0] == package]


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_a_command(package: str) -> None:
    for path in modules(package):
        assert not COMMANDS & set(imported(path)), path


def test_the_method_imports_torch_alone() -> None:
    for path in modules("hypergradient"):
        allowed = {"torch", "hypergradient"} | FRAMEWORK.get(path.name, set()) | sys.stdlib_module_names
        assert set(imported(path)) <= allowed, path


def test_the_root_holds_four_commands_of_less_than_80_lines() -> None:
    assert {"train", "tune", "compare", "results"} == COMMANDS
    for command in COMMANDS:
        assert len((ROOT / f"{command}.py").read_text(encoding="utf-8").splitlines()) < 80


def test_the_page_on_design_names_every_package() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    drawn, rooms = text.split("```")[1], [line for line in text.splitlines() if line.startswith("| `")]
    for package in PACKAGES:
        assert f"{package}/" in drawn
        assert [line for line in rooms if line.startswith(f"| `{package}/` |")], package


def test_editors_and_make_run_the_same_checks() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for tool in ("ruff check", "ruff format", "mypy", "lint-imports"):
        assert f"$(BIN)/{tool}" in makefile
        assert [hook for hook in hooks if f".venv/bin/{tool}" in hook["entry"]], tool


def test_the_lock_pins_what_is_asked_for() -> None:
    asked, locked = (
        {
            re.sub(r"\[.*?\]", "", line.split()[0]).lower().replace("_", "-")
            for line in text.splitlines()
            if re.match(r"[\w.-]+(\[\w+\])?==", line)
        }
        for text in ((ROOT / name).read_text(encoding="utf-8") for name in ("requirements.txt", "requirements.lock"))
    )
    assert {line for line in asked if not line.startswith("torch==")} <= locked
    assert len(locked) > 3 * len(asked)
    hashes = (ROOT / "requirements.lock").read_text(encoding="utf-8").count("--hash=sha256:")
    assert hashes >= len(locked)
