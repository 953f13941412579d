"""The tools of the suite `office`, all of them, in the order in which a policy is shown them."""

from __future__ import annotations

from treewright.envs.tools import office_desk, office_trade
from treewright.envs.tools.office_kit import KINDS, TOOLS, OfficeTool, Refused, call_tool, schema_of

__all__ = ["KINDS", "TOOLS", "OfficeTool", "Refused", "call_tool", "office_desk", "office_trade", "schema_of"]
