"""What identifies a run: all that changes its result."""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(config: dict[str, Any]) -> str:
    """Identify what a run computes: its configuration less what only shows or stores it.

    With a prefix: as an option, 885e201949542093 would be read as a number.
    """
    aside = {"logger", "enable_progress_bar", "enable_model_summary", "default_root_dir"}
    trainer = {key: value for key, value in config["trainer"].items() if key not in aside}
    facts = {key: config[key] for key in ("seed_everything", "threads", "model", "data")} | {"trainer": trainer}
    if replayed := _replayed(config["model"]):  # what it holds, not where it lies
        facts["replayed"] = hashlib.sha256(replayed.read_bytes()).hexdigest()
        schedule = config["model"]["init_args"]["schedule"]["class_path"]
        facts["model"] = config["model"] | {"init_args": config["model"]["init_args"] | {"schedule": schedule}}
    return f"sha256:{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def _replayed(model: dict[str, Any]) -> Path | None:
    """Return the file of the schedule that a run replays; None for other schedules."""
    schedule = model["init_args"].get("schedule")
    path = schedule.get("init_args", {}).get("path") if isinstance(schedule, dict) else None
    return Path(path) if path and Path(path).is_file() else None
