"""Where the trees of a run are."""

from __future__ import annotations

from pathlib import Path

from treewright.agent.config import load_config
from treewright.envs.errors import TreewrightError

__all__ = ["find_store"]


def find_store(name: str) -> str:
    """A file or URL as it is; else the store in the folder or in the run of this name. Raises TreewrightError."""
    if "://" in name or Path(name).is_file():
        return name
    run = Path("runs") / name / "trees.sqlite"
    for home in (Path(name), Path("runs") / name):
        if (home / "run.toml").is_file() and (kept := load_config(home / "run.toml").store):
            return kept
    for there in (Path(name) / "trees.sqlite", run):
        if there.is_file():
            return str(there)
    raise TreewrightError(
        f"there is no store {name!r}: neither a file of this name nor {run}; type: treewright collect --name {name}"
    )
