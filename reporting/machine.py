"""The machine and the versions that published numbers depend on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def processor() -> str:
    """Return the name of the processor (on other systems than Linux, its architecture) and torch's vector extension."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def machine() -> str:
    """Describe what the last digits of a run depend on: processor, cores and versions."""
    versions = [f"{name} {version(name)}" for name in ("torch", "pytorch-lightning")]
    return ", ".join([processor(), f"{os.cpu_count()} cores", f"Python {platform.python_version()}", *versions])
