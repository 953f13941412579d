"""Figures as JSON: what was measured, on what, with which versions, from which commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from treewright.envs.whole import write_whole

__all__ = ["hardware", "versions", "write_figures", "write_result"]

PACKAGES = ("treewright", "torch", "triton", "transformers", "numpy", "sqlalchemy", "playwright", "mcp", "langgraph")


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB and accelerators."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if "model name" in x), name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {"cpu": name, "cores": os.cpu_count(), "memory_gib": round(memory or 0, 1), "gpus": _gpus()}


def _gpus() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def versions() -> dict[str, str]:
    """Python and the packages that matter, those that are installed."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def commit() -> str | None:
    """The commit of the checkout this code runs from, with '+' if files differ; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        out = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def write_figures(path: Path, figures: Mapping[str, tuple[float, str]], **more: Any) -> None:
    """{"figures": {name: {"value", "unit"}}, "hardware", "versions", "commit"} and whatever else is given."""
    body = {
        "figures": {name: {"value": value, "unit": unit} for name, (value, unit) in figures.items()},
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
        **more,
    }
    write_whole(path, json.dumps(body, indent=1, allow_nan=True) + "\n")


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """A benchmark's result as JSON, completed by hardware, versions and commit where it has none of its own."""
    body = {"hardware": hardware(), "versions": versions(), "commit": commit(), **result}
    write_whole(path, json.dumps(body, indent=1) + "\n")
