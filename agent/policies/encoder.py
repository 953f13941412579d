"""Text to token ids and back, over a transformers tokenizer, as part of a longer text.

Tokenizers are not additive: encode(a) + encode(b) is often not encode(a + b). SentencePiece puts a space in front of
whatever stands first, and pieces merge over the seam. So what stands together is encoded together, and what follows a
response that is kept as sampled tokens is encoded as it would stand behind text.

What comes from the world is `Foreign`: a mark spelled in it is written in ordinary tokens and never becomes the mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

__all__ = ["BEHIND_TEXT", "Encoder", "Foreign", "Ids"]

NO_CHARACTER = "\U0010fffd"  # no vocabulary has it: what stands for it stands for everything unknown
Ids = tuple[int, ...]
Span = tuple[int, int]

MARK_LIKE = re.compile(r"[<\[].*[>\]]", re.DOTALL)
BEHIND_TEXT = ("\n", "}", "x", ":")
"""What may stand in front of a text whose neighbour is not known: the first that keeps its own tokens is taken."""


class Foreign(str):
    """A part of a prompt that comes from outside: an observation, a goal, the words of a tool."""


class Encoder:
    """Ids of texts under one tokenizer.

    ids_of   id of each added token by its text
    marks    text of each token that only a template may write, by id: special ones, and added ones like <name>, [name]
    control  the special ones among the marks
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        added = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items()}
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        self.ids_of = {text: i for i, text in added.items()}
        self.marks = {i: added.get(i, "") for i in special | {i for i in added if MARK_LIKE.fullmatch(added[i])}}
        self.control = {i: self.marks[i] for i in special}
        self._unknown = set(self.template(NO_CHARACTER)) & set(self.marks)
        self._whole = lru_cache(maxsize=1024)(self._encoded)
        self._behind = lru_cache(maxsize=64)(self.template)

    def template(self, text: str) -> Ids:
        """Trusted text that stands alone: marks in it become marks."""
        return tuple(i for i, _ in self._tokens(text))

    def plain(self, text: str) -> Ids:
        """Foreign text that stands behind other text."""
        return self.encode([Foreign(text)], BEHIND_TEXT)

    def encode(self, parts: Sequence[str], after: Sequence[str] = (), written: bool = False) -> Ids:
        """The ids of `parts` as one text; marks become marks except in `Foreign` parts.

        after    texts that may stand in front of it; none: it stands first. The first one counts whose own tokens stay
                 as they are when the parts follow; where none does, the parts are encoded as if they stood alone
        written  the foreign parts are what a policy says: tokens that are no control tokens, such as <think> and
                 <tool_call>, are its words and stay
        """
        spans: list[Span] = []
        at = 0
        for part in parts:
            if isinstance(part, Foreign) and part:
                spans.append((at, at + len(part)))
            at += len(part)
        return self._whole("".join(parts).encode("utf-8", "replace").decode(), tuple(spans), tuple(after), written)

    def text(self, ids: Sequence[int]) -> str:
        """The ids as text, marks spelled out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def first_mark(self, text: str) -> tuple[int, int, int] | None:
        """(id, start, stop) of the first mark in a trusted text, None without one."""
        if self._backend is None:
            at = {i: text.find(mark) for i, mark in self.marks.items() if mark in text and mark}
            return min(((i, k, k + len(self.marks[i])) for i, k in at.items()), key=lambda m: m[1], default=None)
        found = ((i, *self._literal(i, text, span)) for i, span in self._tokens(text) if span and i in self.marks)
        return next(found, None)

    def _encoded(self, text: str, foreign: tuple[Span, ...], after: tuple[str, ...], written: bool) -> Ids:
        guarded = self.control if written else self.marks
        for before in after:
            head, size = self._behind(before), len(before)
            tokens = self._tokens(before + text)
            if head and tuple(i for i, _ in tokens[: len(head)]) == head:
                moved = [(i, span and (max(0, span[0] - size), span[1] - size)) for i, span in tokens[len(head) :]]
                return self._spelled(text, moved, foreign, guarded)
        return self._spelled(text, self._tokens(text), foreign, guarded)

    def _tokens(self, text: str) -> list[tuple[int, Span | None]]:
        """Ids with the place of each in the text; a tokenizer without a Rust core does not know places."""
        if self._backend is None:
            return [(i, None) for i in self.tokenizer.encode(text, add_special_tokens=False)]
        self._as_loaded()
        made = self._backend.encode(text, add_special_tokens=False)
        return list(zip(made.ids, made.offsets, strict=True))

    def _as_loaded(self) -> None:
        """Calls of the tokenizer elsewhere leave their options behind: cut texts, padding, marks read as text."""
        if self._backend.encode_special_tokens:
            self._backend.encode_special_tokens = False
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()

    def _spelled(
        self, text: str, tokens: Sequence[tuple[int, Span | None]], foreign: Sequence[Span], guarded: Mapping[int, str]
    ) -> Ids:
        """The ids, with ordinary tokens in the place of guarded marks that lie in foreign text."""
        if self._unknown and not any(
            self.marks[i] in text for i in self._unknown
        ):  # what the vocabulary lacks is no mark
            guarded = {i: mark for i, mark in guarded.items() if i not in self._unknown}
        if not foreign or not any(i in guarded for i, _ in tokens):
            return tuple(i for i, _ in tokens)
        if self._backend is None:
            return self._apart(text, tokens, foreign, guarded)
        out: list[int] = []
        for i, span in tokens:
            if i in guarded and span is not None and _meets(self._literal(i, text, span), foreign):
                out += self._broken(i, text[slice(*span)])
            else:
                out.append(i)
        return tuple(out)

    def _literal(self, i: int, text: str, span: Span) -> Span:
        """Where the mark itself stands: some marks swallow the white space beside them."""
        at = text.find(self.marks[i], *span)
        return (at, at + len(self.marks[i])) if at >= 0 else span

    def _broken(self, mark: int, text: str) -> Ids:
        """Foreign text that was read as a mark: in two pieces, each behind other text, until none of it is one."""
        if mark in self._unknown and self.marks[mark] not in text:  # a character that the vocabulary lacks
            return (mark,)
        if len(text) < 2:
            return tuple(i for i in self.template(text) if i not in self.marks)
        return (*self.plain(text[:1]), *self.plain(text[1:]))

    def _apart(
        self, text: str, tokens: Sequence[tuple[int, Span | None]], foreign: Sequence[Span], guarded: Mapping[int, str]
    ) -> Ids:
        """Where places are unknown: the whole if all its marks are those of the trusted parts, else each part alone."""
        edges = [0, *(edge for span in foreign for edge in span), len(text)]
        alone = [self.template(text[start:stop]) for start, stop in pairwise(edges)]
        marks = [i for part in alone[::2] for i in part if i in guarded]
        whole = tuple(i for i, _ in tokens)
        if [i for i in whole if i in guarded] == marks:
            return whole
        out: list[int] = []
        for k, part in enumerate(alone):
            for i in part:
                out += self._broken(i, guarded[i]) if k % 2 and i in guarded else (i,)
        return tuple(out)


def _meets(span: Span, others: Sequence[Span]) -> bool:
    return any(span[0] < stop and start < span[1] for start, stop in others)
