"""Segments of a response: where it is cut, so that each part is continued by several draws.

A segment is a node without an action. Its children go on from the prompt and everything said so far in the turn; the
node that ends the turn holds the text of the whole turn, the tokens of its own part, and the action, which is executed.

Whether a segment ends behind a token depends on what was said up to it and on the distribution of the token to come,
never on the token that comes: so the draws behind a cut are independent draws of the policy, and trees stay exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.search.rules.schedules import repeats
from treewright.search.tree import Tree
from treewright.search.types import SEGMENT, Completion, Context, Origin, PolicyFault, Proposer

__all__ = [
    "SEGMENT",
    "Part",
    "Segmenting",
    "Segments",
    "drawn_on",
    "ended",
    "parts_of",
    "said_at",
    "segmenting",
    "usable",
]

KINDS = ("length", "delimiter", "entropy", "surprisal")
Said = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """How the responses of a search are cut; the section `search.segments`.

    by         length | delimiter | entropy | surprisal, or module:function of the segment's text that says True where
               it ends
    length     most tokens of a segment, whatever else ends it
    delimiter  text that ends a segment with the token that completes it
    threshold  in nats: a segment ends before a token whose distribution has at least that entropy (by = entropy), or
               whose likeliest token has at least that surprisal (by = surprisal)
    least      fewest tokens of a segment;  most  segments of a turn; what follows the last one is drawn whole
    repeat     above 0: a response whose last `repeat` tokens were said `times` times in a row at the end of a segment
               ends there, as at the limit of its length
    """

    by: str = "length"
    length: int = 64
    delimiter: str = "\n\n"
    threshold: float = 1.0
    least: int = 1
    most: int = 8
    repeat: int = 0
    times: int = 3

    def __post_init__(self) -> None:
        for name in ("length", "least", "most"):
            if getattr(self, name) < 1:
                raise TreewrightError(f"search.segments.{name} = {getattr(self, name)}; it must be at least 1")
        if self.by not in KINDS and ":" not in self.by:
            raise TreewrightError(f"search.segments.by = {self.by!r}; {nearest(self.by, KINDS)}, or module:function")
        if self.by == "delimiter" and not self.delimiter:
            raise TreewrightError("search.segments.delimiter is empty; write a text such as a blank line")
        if self.repeat < 0 or self.times < 2:
            raise TreewrightError(f"search.segments: repeat = {self.repeat}, times = {self.times}; need >= 0 and >= 2")

    @property
    def watched(self) -> bool:
        """Whether the text of a segment decides where it ends."""
        return self.by == "delimiter" or ":" in self.by

    @property
    def unsure(self) -> str | None:
        """Which uncertainty of the next token's distribution ends a segment, if one does."""
        return self.by if self.by in ("entropy", "surprisal") else None

    def over(self, text: str) -> bool:
        """Whether a segment of that text ends behind it."""
        return self.delimiter in text if self.by == "delimiter" else bool(_function(self.by)(text))

    def looping(self, ids: Sequence[int]) -> bool:
        """Whether a response of these tokens repeats itself and is stopped."""
        return self.repeat > 0 and repeats(ids, span=self.repeat, times=self.times)

    def cut(self, ids: Sequence[int], said: Said, unsure: Sequence[float] = ()) -> int | None:
        """How many of the tokens drawn for a segment belong to it; None for all of them.

        unsure  uncertainty of each token's distribution, where that ends segments
        """
        for n in range(self.least, min(len(ids), self.length + 1)):
            if self.unsure and unsure[n] >= self.threshold:
                return n
            if n == self.length or (self.watched and self.over(said(ids[:n]))):
                return n
        return None


@lru_cache(maxsize=64)
def _function(spec: str) -> Callable[[str], Any]:
    from treewright.envs.custom import load_named

    found = load_named(spec, "search.segments.by")
    if not callable(found):
        raise TreewrightError(f"search.segments.by = {spec!r} is a {type(found).__name__}, not a function of a text")
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Part:
    """A response under way: the draw seed of its last segment, its tokens and how many segments it has so far."""

    seed: int
    ids: tuple[int, ...]
    count: int


@runtime_checkable
class Segmenting(Protocol):
    """A proposer that can go on from the middle of a response."""

    def said(self, ids: Sequence[int]) -> str:
        """The text of a response's tokens, without the mark that ends a turn."""

    async def draw_segment(
        self, context: Context, seeds: Sequence[int], max_tokens: int, head: Sequence[int], segments: Segments | None
    ) -> Sequence[Completion]:
        """As `draw`, from a prompt that ends with `head`, the response so far, up to where a segment ends.

        max_tokens  left of the whole response;  segments  None: the rest of the response is one draw
        Completions that were cut have the finish reason SEGMENT and their own text; the text of the others is theirs
        alone too. Raises TreewrightError for a way of cutting that this proposer cannot follow.
        """


def segmenting(policy: Proposer) -> Segmenting:
    """The policy as one that goes on within a response. Raises TreewrightError for one that cannot."""
    able: object = policy
    if not isinstance(able, Segmenting):
        raise TreewrightError(
            "search.segments needs a policy that goes on from the middle of a response, and nothing put around it: "
            "seedling, hf:…, vllm:…, or scripted choices"
        )
    return able


def parts_of(tree: Tree, node: int) -> list[int]:
    """The nodes of the turn that `node` belongs to, from its first segment down to `node`."""
    out = [node]
    while (up := tree.parent[out[-1]]) > 0 and tree.in_turn(up):
        out.append(up)
    return out[::-1]


def said_at(tree: Tree, node: int) -> str:
    """What the turn has said down to `node`: all of it where the turn ends there."""
    return tree.text[node] if not tree.in_turn(node) else "".join(tree.text[i] for i in parts_of(tree, node))


async def drawn_on(
    policy: Proposer,
    context: Context,
    seeds: Sequence[int],
    max_tokens: int,
    part: Part | None,
    segments: Segments | None,
) -> list[Completion]:
    """First segments, or draws on from `part` of a response; what ends a turn has the text of all of it.

    max_tokens  of the whole response;  segments  None: to its end
    """
    able, head, count = segmenting(policy), part.ids if part else (), part.count if part else 0
    cuts = segments if segments is None or count < segments.most else None
    out = []
    for done in await able.draw_segment(context, seeds, max_tokens - len(head), head, cuts):
        said = head + done.token_ids
        if done.finish_reason == SEGMENT and cuts is not None and cuts.looping(said):
            done = replace(done, finish_reason="length")
        given = done.finish_reason == SEGMENT or done.origin is not Origin.POLICY
        out.append(done if given else replace(done, text=able.said(said)))
    return out


def ended(done: Completion, asked: int, left: int) -> Completion:
    """A draw of at most `asked` of the `left` tokens of a response: a segment where it only ran to that length."""
    cut = done.finish_reason == "length" and len(done.token_ids) == asked < left
    if not cut:
        return done
    return replace(done, finish_reason=SEGMENT)


def usable(done: Completion) -> Completion:
    """The draw, with log-probs that training and rules can count on, or none.

    Raises PolicyFault for what is no draw, and for a draw to train on that says it has log-probs and has not: a token
    that was drawn has a finite one. Found only in training, one such node would cost the whole batch.
    """
    if type(done) is Completion and type(done.text) is str:  # a draw as it should be, which most are
        ids, logprobs = done.token_ids, done.logprobs
        if (
            type(ids) is tuple
            and type(logprobs) is tuple
            and len(ids) == len(logprobs)
            and math.isfinite(sum(logprobs))
        ):
            return done
    if not isinstance(done, Completion) or not isinstance(done.text, str):
        shown = f"a Completion of {done.text!r:.60}" if isinstance(done, Completion) else f"{done!r:.60}"
        raise PolicyFault(f"the policy gave {shown}, not a treewright.search.Completion with its text")
    if type(done.token_ids) is not tuple or type(done.logprobs) is not tuple:  # lists and arrays are taken as well
        done = replace(done, token_ids=tuple(map(int, done.token_ids)), logprobs=tuple(map(float, done.logprobs)))
    if done.origin is not Origin.POLICY:
        return done  # stored and demonstrated tokens are given: they need none
    whole = math.isfinite(sum(done.logprobs)) or all(map(math.isfinite, done.logprobs))  # a sum keeps NaN and infinity
    if whole and (not done.logprobs or not done.token_ids or len(done.logprobs) == len(done.token_ids)):
        return done if done.logprobs or not done.token_ids else replace(done, trainable=False)
    if not done.trainable:
        return replace(done, logprobs=())
    if whole:
        why = f"{len(done.logprobs)} log-probs for {len(done.token_ids)} tokens"
    else:
        at = next(i for i, value in enumerate(done.logprobs) if not math.isfinite(value))
        why = f"log-prob {done.logprobs[at]} for token {at} of {len(done.logprobs)}, which was drawn"
    raise PolicyFault(f"the policy gave {why}; such a draw cannot be trained on")
