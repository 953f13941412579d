"""Old module paths that documents of version 0.1 showed; they import the modules' new homes, with a warning, until 0.3."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "install"]

MOVED = {
    "treewright.agent.policy": "treewright.agent.policies",
    "treewright.agent.propose": "treewright.agent.policies.propose",
    "treewright.agent.prompts": "treewright.agent.policies.prompts",
    "treewright.agent.clients": "treewright.agent.policies",
    "treewright.agent.judge": "treewright.agent.judges.judge",
    "treewright.agent.plans": "treewright.agent.judges.plans",
    "treewright.agent.collect": "treewright.agent.runs.collect",
    "treewright.agent.loop": "treewright.agent.runs.loop",
    "treewright.agent.evaluate": "treewright.agent.runs.evaluate",
    "treewright.agent.graph": "treewright.agent.runs.graph",
    "treewright.agent.probtree": "treewright.agent.runs.probtree",
    "treewright.search.all_nodes": "treewright.search.planning.all_nodes",
    "treewright.search.repair": "treewright.search.planning.repair",
    "treewright.search.equal": "treewright.search.planning.equal",
    "treewright.search.growth": "treewright.search.rules.training",
    "treewright.search.plan_memory": "treewright.search.rules.plan_memory",
    "treewright.search.schedules": "treewright.search.rules.schedules",
    "treewright.training.mdp": "treewright.training.check.mdp",
}


def _home(name: str) -> str | None:
    """The new path of a module or of one below it; None where nothing moved."""
    for old, new in MOVED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return None


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if _home(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        home = _home(spec.name)
        assert home is not None
        warnings.warn(f"{spec.name} moved to {home}; the old path works until 0.3", DeprecationWarning, stacklevel=2)
        return importlib.import_module(home)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to run: the module is the new one."""


def install() -> None:
    """Old paths are looked for after everything else."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
