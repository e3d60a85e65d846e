"""Check that the built wheel contains the package and nothing else, and can be imported: `make wheel`."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

[wheel] = Path("dist").glob("*.whl")
names = set(zipfile.ZipFile(wheel).namelist())
missing = {str(path) for path in Path("hypergradient").glob("*.py*")} - names
strangers = {name for name in names if not name.startswith("hypergradient")}
if missing or strangers:
    sys.exit(f"{wheel} lacks {sorted(missing)} and must not contain {sorted(strangers)}: see pyproject.toml.")
with tempfile.TemporaryDirectory() as empty:
    found = subprocess.run(
        [sys.executable, "-P", "-c", "import hypergradient; print(hypergradient.__file__)"],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(wheel.resolve())},
        capture_output=True,
        text=True,
        check=False,
    )
if ".whl" not in found.stdout:
    sys.exit(f"{wheel} cannot be imported: {found.stderr or found.stdout}")
