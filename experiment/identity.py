"""Identify a run by digests of its configuration and its code. The data module adds that of its samples."""

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from experiment.options import ROOT

SHOWS_OR_STORES = ("logger", "enable_progress_bar", "enable_model_summary", "default_root_dir")
"""Options of the Trainer that do not change what a run computes."""
APART = {"experiment", "reporting", "tracking", *sys.stdlib_module_names}
"""Packages that start, show and store runs, and the standard library: their code does not identify a run."""
OWN = {"callbacks", "data", "hypergradient", "lightning_modules"}
"""Packages whose `__init__` only re-exports names: only the modules that a run uses identify it."""
INSTALLED = {"site-packages", "dist-packages"}
# written by the commands, or not part of a run
WRITTEN = (":!results", ":!configs/tuned", ":!docs", ":!tests")


def digest(content: bytes) -> str:
    """Return a short digest of the content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()[:16]}"


def identity(config: dict[str, Any]) -> dict[str, str]:
    """Return the tags `config` and `code`. Options that only show or store a run are left out of `config`."""
    facts = {name: config[name] for name in ("seed_everything", "threads", "model", "data")}
    facts["trainer"] = {name: value for name, value in config["trainer"].items() if name not in SHOWS_OR_STORES}
    return {"config": digest(json.dumps(facts, sort_keys=True).encode()), "code": code(tuple(_paths(facts)))}


def _paths(value: Any) -> Iterator[str]:
    """Yield the strings in a configuration that may be the path of a class or a function."""
    if isinstance(value, str) and "." in value:
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _paths(part)


# cached, since Python imports a module once per process: later runs of a command do not see edits made meanwhile
@lru_cache(None)
def code(paths: tuple[str, ...]) -> str:
    """Return a digest of `experiment/run.py`, the modules that define the objects at `paths`, and all their imports.

    Import statements anywhere in a file are followed, also into the user's own files, but not into installed packages.
    Comments, layout and docstrings do not change the digest. Imports by name (`importlib.import_module`) are ignored.
    """
    found, waiting = {"experiment.run": _read(str(ROOT / "experiment" / "run.py"), "experiment")[0]}, [*paths]
    while waiting:
        for module in _modules(waiting.pop()):
            if module.origin and module.name not in found:
                found[module.name], imports = _read(module.origin, module.parent or "")
                waiting += imports
    return digest(ascii(sorted(found.items())).encode())


def _modules(path: str) -> list[ModuleSpec]:
    """Return the modules that the import of a path like `package.module.name` executes, without installed ones.

    For a package in OWN, return only the module that defines the name.
    """
    top, *names = path.split(".")
    found: list[ModuleSpec] = []
    folders: Any = None
    for depth in range(0 if top in APART else len(names) + 1):
        spec = PathFinder.find_spec(".".join([top, *names[:depth]]), folders)
        if spec is None or INSTALLED & {*Path(spec.origin or "").parts}:
            break
        found.append(spec)
        if not (folders := spec.submodule_search_locations):
            break
    if top not in OWN or not found:
        return found
    if len(found) == 1 and names:
        return _modules(getattr(getattr(sys.modules.get(top), names[0], None), "__module__", top))
    return found[-1:]


@lru_cache(None)
def _read(file: str, package: str) -> tuple[str, tuple[str, ...]]:
    """Return a digest of a module's syntax tree (of the bytes if it is not Python) and the paths that it imports."""
    content, imports = Path(file).read_bytes(), []
    if not file.endswith(".py"):
        return digest(content), ()
    tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            imports += [f"{base}.{alias.name}" for alias in node.names]
    return digest(ascii(_skeleton(tree)).encode()), tuple(imports)


def _skeleton(node: Any) -> Any:
    """Return a syntax tree as tuples, without docstrings and other constant statements.

    Empty fields are left out, so that the tuples are equal in Python 3.11 to 3.13, unlike the output of `ast.dump`.
    """
    if isinstance(node, list):
        effective = (part for part in node if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)))
        return [_skeleton(part) for part in effective]
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, _skeleton(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
    return type(node).__name__, *fields


@lru_cache(None)
def uncommitted() -> bool:
    """Return whether Python or YAML files have uncommitted changes, except for files written by commands."""
    git = shutil.which("git")
    command = ["status", "--porcelain", "--", "*.py", "*.yaml", *WRITTEN]
    return bool(git and subprocess.run([git, *command], cwd=ROOT, capture_output=True, check=False).stdout)
