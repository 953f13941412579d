"""What a run was begun with beside its settings, for whoever runs it again: versions, commit, hardware, the line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import treewright
from treewright.envs.redact import without_secrets

__all__ = ["begun_with"]

PACKAGES = ("torch", "transformers", "peft", "vllm", "numpy", "sqlalchemy")


def begun_with(seed: int) -> dict[str, Any]:
    """Facts for the section [begun] of run.toml: they are read by people alone."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "line": shlex.join(["treewright", *map(without_secrets, sys.argv[1:])]),
        "seed": seed,
        "treewright": treewright.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _installed(name))},
        "hardware": {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count() or 1,
                     "memory": _memory(), "gpus": _gpus(), "processes": int(os.environ.get("WORLD_SIZE", "1"))},
    }  # fmt: skip


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Of the sources, where they are a git checkout; with a + where something in it is not committed."""
    home = Path(treewright.__file__).resolve().parent
    said = [_git(home, "rev-parse", "HEAD"), _git(home, "status", "--porcelain", "--untracked-files=no")]
    return said[0] + ("+" if said[1] else "") if said[0] else ""


def _git(home: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(home), *words], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return ""


def _gpus() -> list[str]:
    """Names of NVIDIA GPUs, as the driver tells them."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return found
