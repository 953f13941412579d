"""Where the trees of a run are."""

from __future__ import annotations

from pathlib import Path

from treewright.agent.config import load_config
from treewright.envs.errors import TreewrightError

__all__ = ["find_store", "new_store", "store_to_fill"]

STORE = "trees.sqlite"


def find_store(name: str) -> str:
    """A file or URL as it is; else the store in the folder or in the run of this name. Raises TreewrightError."""
    if (found := _found(name)) is not None:
        return found
    raise TreewrightError(
        f"there is no store {name!r}: neither a file of this name nor {_homes(name)[1] / STORE}; "
        f"type: treewright collect --name {name}"
    )


def store_to_fill(name: str) -> str:
    """The store of this name as `find_store` has it, else a file to be made. Raises TreewrightError for a folder."""
    return _found(name) or new_store(name)


def new_store(name: str) -> str:
    """A file or URL as it is, which may be new. Raises TreewrightError for a folder or a run of this name."""
    if "://" not in name and not Path(name).is_file():
        for home in _homes(name):
            if home.is_dir():
                file = home / ("new.sqlite" if (home / STORE).exists() else STORE)
                raise TreewrightError(f"{home} is a folder; name a file in it, such as {file}")
    return name


def _found(name: str) -> str | None:
    if "://" in name or Path(name).is_file():
        return name
    for home in _homes(name):
        if (home / "run.toml").is_file() and (kept := load_config(home / "run.toml").store):
            return kept
    for home in _homes(name):
        if (home / STORE).is_file():
            return str(home / STORE)
    return None


def _homes(name: str) -> tuple[Path, Path]:
    return Path(name), Path("runs") / name
