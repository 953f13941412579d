"""A scripted policy whose turns are worth nothing for training, for tests of worlds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from treewright.agent.policies.scripted import ScriptedPolicy

if TYPE_CHECKING:
    from treewright.envs.code.bugs import Programmer


def script_policy(script: Callable[[Any, Any, Any, Any], Any] | Programmer) -> ScriptedPolicy:
    return ScriptedPolicy(script, trainable=False)
