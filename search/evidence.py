"""Evidence: a draft names the words it acts on, and they must be there.

    <evidence>bob, the coach of ada</evidence>
    search {"entity": "bob", "relation": "mentor"}

After THE-Tree's verified steps: what is named must stand in the goal or in something that was observed on the way to
the node. Where it does not, or where evidence is missing and asked for, the turn is invalid output like any other: it
is executed as an error observation, counted in K and trained on. Nothing is dropped, so trees stay exact.

The policy is told so: the form stands behind the goal in each of its prompts, and is no evidence itself.

With a judge, what is named need not be quoted: it may say in other words what was seen, but it must be a reason for the
action. The judge says how likely both are; it reads what the policy has seen and never a reward.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from treewright.envs.types import Action, Observation, Task, ToolSpec
from treewright.envs.waiting import together
from treewright.search.segments import Segments, segmenting
from treewright.search.types import Completion, Context, Draft, Exchange, Proposer, Score

__all__ = ["Entails", "Evidence", "Told"]

OPENS, CLOSES = "<evidence>", "</evidence>"
SHORTEST = 3


class Entails(Protocol):
    """Judges evidence that need not be a quote."""

    @property
    def name(self) -> str:
        """Names the judge; part of the name of the evidence, so that a resume with another is noticed."""

    async def supports(self, task: Task, seen: Sequence[str], said: str, action: Action) -> Score:
        """How likely it is that what was seen says `said`, and that this is a reason for the action; in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """tools  names of the tools that need evidence; None: all of them, () : none, but what is named is checked.
    judge  None: what is named must stand there word for word; else it must be likelier than `least`, by the judge

    An error message of the world is no evidence.
    """

    tools: Collection[str] | None = None
    judge: Entails | None = None
    least: float = 0.5

    @property
    def name(self) -> str:
        judged = f", {self.judge.name} >= {self.least}" if self.judge is not None else ""
        return f"evidence({'all' if self.tools is None else ', '.join(sorted(self.tools))}{judged})"

    @property
    def form(self) -> str:
        """How evidence is written, in words for the policy."""
        how = "words of the task or of what you were shown, exactly as they stand there"
        if self.judge is not None:
            how = "what the task or what you were shown says, which must be a reason for the action"
        if self.tools is not None and not self.tools:
            return f"Where you name what you act on, write before the action: <evidence>{how}</evidence>"
        which = "each action" if self.tools is None else f"the actions {', '.join(sorted(self.tools))}"
        return f"Before {which}, name what you act on: <evidence>{how}</evidence>. Without it nothing is done."

    def split(self, text: str) -> tuple[list[str], str]:
        """The spans that a draft names and the rest of its text, the action. In one pass, whatever a policy wrote."""
        spans: list[str] = []
        rest: list[str] = []
        at = 0
        while (begin := text.find(OPENS, at)) >= 0 and (end := text.find(CLOSES, begin + len(OPENS))) >= 0:
            spans.append(" ".join(text[begin + len(OPENS) : end].split()))
            rest.append(text[at:begin].rstrip())
            at = end + len(CLOSES)
            while at < len(text) and text[at].isspace():
                at += 1
        return spans, "".join([*rest, text[at:]])

    def complaint(
        self, spans: Sequence[str], action: Action, task: Task, first: Observation, turns: Sequence[Exchange]
    ) -> str | None:
        """What is wrong with the evidence, in words for the policy; None if nothing is."""
        needed = any(self.tools is None or call.name in self.tools for call in action.calls)
        if not spans:
            return "name what you act on first: <evidence>words you have seen</evidence>" if needed else None
        known = [_folded(text) for text in _seen(task, first, turns)]
        for span in spans:
            if len(span) < SHORTEST:
                return f"the evidence {span!r} is too short to say anything"
            if self.judge is None and not any(_folded(span) in text for text in known):
                return f"the evidence {span[:80]!r} is not in what you were shown; quote it word for word"
        return None

    async def judged(
        self, drafts: Sequence[Draft], task: Task, first: Observation, turns: Sequence[Exchange]
    ) -> tuple[list[Draft], int]:
        """The drafts, those that the judge does not believe as invalid output; and the tokens that it took.

        Every span is judged, all of them side by side. Without a judge the drafts come back as they are.
        """
        judge = self.judge
        if judge is None:
            return list(drafts), 0
        seen = _seen(task, first, turns)
        asked = [
            (i, span, draft.action)
            for i, draft in enumerate(drafts)
            if draft.action is not None
            for span in self.split(draft.completion.text)[0]
        ]
        scores = await together(judge.supports(task, seen, span, action) for _, span, action in asked)
        out = list(drafts)
        for (i, span, _), score in zip(asked, scores, strict=True):
            if score.value < self.least and out[i].action is not None:
                why = f"what you were shown does not say {span[:80]!r}, or it is no reason for this action"
                out[i] = replace(out[i], action=None, error=why)
        return out, sum(score.tokens for score in scores)


class Told:
    """A policy whose prompts say behind the goal in which form evidence is named."""

    def __init__(self, inner: Proposer, form: str) -> None:
        self.inner, self.form = inner, form

    @property
    def version(self) -> str:
        return self.inner.version

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        told = replace(task, goal=f"{task.goal}\n\n{self.form}")
        return self.inner.context(told, tools, first, turns, base)

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        return await self.inner.draw(context, seeds, max_tokens)

    def said(self, ids: Sequence[int]) -> str:
        """As the policy, which must go on within responses."""
        return segmenting(self.inner).said(ids)

    async def draw_segment(
        self, context: Context, seeds: Sequence[int], max_tokens: int, head: Sequence[int], segments: Segments | None
    ) -> Sequence[Completion]:
        return await segmenting(self.inner).draw_segment(context, seeds, max_tokens, head, segments)


def _seen(task: Task, first: Observation, turns: Sequence[Exchange]) -> list[str]:
    shown = (turn.observation for turn in turns)
    return [task.goal, first.text, *(seen.text for seen in shown if seen.provenance != "error")]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
