"""An MCP server's tools as actions: names, effects that the owner declared, and what follows from them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcp_types import Tool

from treewright.envs.errors import TreewrightError
from treewright.envs.tools.schema import check_schema
from treewright.envs.types import Action, Call, Effect, ToolSpec

__all__ = ["Listing", "harmless_calls", "say_what_waits"]

log = logging.getLogger(__name__)

READS = ("read", "get", "list", "show", "search", "find", "query", "describe", "count", "status", "dump")
_SAID: set[str] = set()  # worlds whose user was told why nothing happens


@dataclass(frozen=True, slots=True)
class Listing:
    """How the tools of one world are read.

    effects      what each tool does, by name;  trust_hints  believe the server about the others
    end          the tool that ends an episode; it stands after the server's own
    """

    name: str
    effects: Mapping[str, Effect]
    trust_hints: bool
    end: ToolSpec

    def check_effects(self, tools: Sequence[Tool]) -> None:
        """Raises TreewrightError for an effect of a tool that the server does not have."""
        names = [tool.name for tool in tools]
        if unknown := sorted(set(self.effects) - set(names)):
            has = f"the server has {', '.join(names) or 'no tool'}"
            raise TreewrightError(f"{self.name}: effects name {unknown[0]!r}, but {has}")

    def read(self, tools: Sequence[Tool], sandboxed: bool) -> tuple[ToolSpec, ...]:
        """The actions. Raises TreewrightError where a tool has the ending's name."""
        if any(tool.name == self.end.name for tool in tools):
            raise TreewrightError(
                f"{self.name}: the server has a tool {self.end.name!r}, which ends the task here; give end = 'finish'"
            )
        specs: dict[str, ToolSpec] = {}
        for tool in tools:  # which of two tools of one name answers is the server's business: the worse effect counts
            effect = self._effect(tool, sandboxed)
            spec = specs.setdefault(tool.name, ToolSpec(tool.name, tool.description or "", tool.input_schema, effect))
            if effect.severity > spec.effect.severity:
                specs[tool.name] = dataclasses.replace(spec, effect=effect)
        for spec in specs.values():
            check_schema(spec)
        return (*specs.values(), self.end)

    def _effect(self, tool: Tool, sandboxed: bool) -> Effect:
        if tool.name in self.effects:
            return self.effects[tool.name]
        hints = tool.annotations
        if not self.trust_hints or hints is None:
            return Effect.UNKNOWN
        if hints.read_only_hint:
            return Effect.READ
        if hints.destructive_hint:
            return Effect.IRREVERSIBLE
        # "Not destructive" can be undone only where the whole state of the session can be put back.
        return Effect.REVERSIBLE if hints.destructive_hint is False and sandboxed else Effect.UNKNOWN


def harmless_calls(tools: Sequence[Tool], specs: Sequence[ToolSpec], sandboxed: bool) -> list[Action]:
    """Calls without arguments that only read. In a sandboxed world, where nothing can be harmed, the server's word or a
    tool's name is enough."""
    hints = {tool.name: tool.annotations for tool in tools}
    found = []
    for spec in specs:
        hint = hints.get(spec.name)
        said = (hint is not None and hint.read_only_hint) or spec.name.lower().startswith(READS)
        reads = spec.effect is Effect.READ or (sandboxed and spec.effect is Effect.UNKNOWN and said)
        if reads and not spec.terminal and not spec.parameters.get("required"):
            found.append(Action((Call(spec.name),)))
    return found


def say_what_waits(name: str, specs: Sequence[ToolSpec], sandboxed: bool) -> None:
    """Tells once why nothing is going to happen, where no tool may be explored."""
    own = [spec for spec in specs if not spec.terminal]
    if sandboxed or not own or name in _SAID or not all(spec.effect.needs_commit for spec in own):
        return
    _SAID.add(name)
    log.warning(
        "%s: nothing is explored, since this is a live world and each of its tools (%s) is irreversible or of unknown "
        "effect: such calls wait for a commit (run --approve ask). Say what the tools do with [effects] in a server "
        "file, believe the server's own word with --trust-hints, or promise with --sandboxed that a restart undoes all "
        "that they touch",
        name, ", ".join(spec.name for spec in own[:5]) + (", …" if len(own) > 5 else ""),
    )  # fmt: skip
