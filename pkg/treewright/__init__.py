"""treewright: tree search for agents, exact tree datasets, training from tree rollouts.

    tree = await treewright.search(task, env, policy)

Names are imported when first used, so that `import treewright` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from treewright._moved import install as _install

if TYPE_CHECKING:
    from treewright.envs.registry import suite as suite
    from treewright.search.engine import search as search

__version__ = "0.2.0"

_install()

_HOMES = {"suite": "treewright.envs.registry", "Budget": "treewright.search", "Settings": "treewright.search"}


def __getattr__(name: str) -> Any:
    if name in ("agent", "envs", "kernels", "search", "training"):
        return import_module(f"treewright.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'treewright' has no attribute {name!r}")
