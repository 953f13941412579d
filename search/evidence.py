"""Evidence: a draft names the words it acts on, and they must be there.

    <evidence>bob, the coach of ada</evidence>
    search {"entity": "bob", "relation": "mentor"}

After THE-Tree's verified steps: what is named must stand in the goal or in something that was observed on the way to
the node. Where it does not, or where evidence is missing and asked for, the turn is invalid output like any other: it
is executed as an error observation, counted in K and trained on. Nothing is dropped, so trees stay exact.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from treewright.envs.types import Action, Observation, Task
from treewright.search.types import Exchange

__all__ = ["Evidence"]

NAMED = re.compile(r"\s*<evidence>(.*?)</evidence>\s*", re.DOTALL)
SHORTEST = 3


@dataclass(frozen=True, slots=True)
class Evidence:
    """tools  names of the tools that need evidence; None: all of them, () : none, but what is named is checked.

    An error message of the world is no evidence.
    """

    tools: Collection[str] | None = None

    @property
    def name(self) -> str:
        return f"evidence({'all' if self.tools is None else ', '.join(sorted(self.tools))})"

    def split(self, text: str) -> tuple[list[str], str]:
        """The spans that a draft names and the rest of its text, the action."""
        return [" ".join(span.split()) for span in NAMED.findall(text)], NAMED.sub("", text)

    def complaint(
        self, spans: Sequence[str], action: Action, task: Task, first: Observation, turns: Sequence[Exchange]
    ) -> str | None:
        """What is wrong with the evidence, in words for the policy; None if nothing is."""
        needed = any(self.tools is None or call.name in self.tools for call in action.calls)
        if not spans:
            return "name what you act on first: <evidence>words you have seen</evidence>" if needed else None
        seen = [task.goal, first.text, *(t.observation.text for t in turns if t.observation.provenance != "error")]
        known = [_folded(text) for text in seen]
        for span in spans:
            if len(span) < SHORTEST:
                return f"the evidence {span!r} is too short to say anything"
            if not any(_folded(span) in text for text in known):
                return f"the evidence {span[:80]!r} is not in what you were shown; quote it word for word"
        return None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
