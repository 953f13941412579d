"""The errors of the store."""

from __future__ import annotations

from treewright import __version__
from treewright.envs.errors import TreewrightError
from treewright.search.store.models import SCHEMA_VERSION

__all__ = ["Fenced", "StoreError", "StoreLost", "away", "newer", "older"]


class StoreError(TreewrightError):
    """The store cannot do what was asked: busy, damaged, too new, full, or the request does not fit the tree.

    Whatever was acknowledged before stays in the file.
    """


class StoreLost(StoreError):
    """Disk or database failed under the store: nothing more can be written, whatever it is."""


class Fenced(StoreError):
    """The lease of this tree ended and another process goes on with it: nothing that is still here can be written."""


def away(name: str, error: object) -> StoreLost:
    """A database that does not answer any more, or not yet."""
    why = str(getattr(error, "orig", None) or error).strip().splitlines() or ["no answer"]
    return StoreLost(
        f"{name} does not answer ({why[0]}); everything acknowledged is kept: start it again, then type the same line "
        "again"
    )


def newer(name: str, version: int, maker: str) -> StoreError:
    """A later version wrote the store: the version that reads it is named."""
    return StoreError(
        f"{name} has schema {version}, written by treewright {maker}; this is treewright {__version__}, "
        f"which reads schemas up to {SCHEMA_VERSION}: pip install 'treewright>={maker}'"
    )


def older(name: str, version: int) -> StoreError:
    """The store waits for an upgrade, which only a writer makes."""
    return StoreError(
        f"{name} has schema {version}, this version reads schema {SCHEMA_VERSION}: open it once for writing, which "
        f"upgrades it in one transaction, e.g. treewright store compact {name}"
    )
