"""Segments of engines that draw to a length and nothing else: cut to size afterwards, what lies beyond is left out.

A prompt that ends in the middle of a response is a prompt like others: the engine's prefix cache serves
what was said before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from treewright.envs.errors import TreewrightError
from treewright.search.routes import routes_before
from treewright.search.segments import Segments, ended
from treewright.search.types import SEGMENT, Completion, Context

if TYPE_CHECKING:
    from treewright.agent.policies.prompts import Template

__all__ = ["CutAfterwards"]


class CutAfterwards:
    """For a policy that draws from token ids with a template; see `treewright.search.segments.Segmenting`."""

    template: Template
    stop_ids: tuple[int, ...]
    grammar: bool
    name: str

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        raise NotImplementedError

    def said(self, ids: Sequence[int]) -> str:
        """The text of a response's tokens."""
        over = bool(ids) and ids[-1] in self.stop_ids
        return self.template.encoder.text(tuple(ids[:-1] if over else ids))

    async def draw_segment(
        self, context: Context, seeds: Sequence[int], max_tokens: int, head: Sequence[int], segments: Segments | None
    ) -> list[Completion]:
        """Draws on from a response under way, up to where a segment ends. Tokens drawn beyond count as hidden.

        Raises TreewrightError for cuts by uncertainty, which the engine does not tell, and under a grammar.
        """
        if self.grammar:
            raise TreewrightError(f"{self.name}: a grammar begins with a response; leave it out to use search.segments")
        if segments is not None and segments.unsure:
            raise TreewrightError(
                f"{self.name} does not tell how unsure it is; cut its segments by length or delimiter, or use hf:…"
            )
        asked = max_tokens if segments is None else min(segments.length, max_tokens)
        return [self._cut(done, asked, max_tokens, segments) for done in await self.draw(context, seeds, asked)]

    def _cut(self, done: Completion, asked: int, left: int, segments: Segments | None) -> Completion:
        if segments is None:
            return done
        n = segments.cut(done.token_ids, self.said) if segments.watched else None
        if n is None:
            return ended(done, asked, left)
        ids = done.token_ids[:n]
        over = len(done.token_ids) - n
        return replace(
            done, text=self.said(ids), token_ids=ids, logprobs=done.logprobs[:n], finish_reason=SEGMENT,
            hidden=done.hidden + over, routes=routes_before(done.routes, over),
        )  # fmt: skip
