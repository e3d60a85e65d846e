import subprocess
import sys
from pathlib import Path

from options import ROOT


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


def test_the_package_imports_torch_alone() -> None:
    code = "import sys, hypergradient; print({'numpy', 'pytorch_lightning', 'mlflow'} & sys.modules.keys() - {'numpy'})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
