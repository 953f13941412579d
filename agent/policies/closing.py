"""Draws under a grammar that end in time: where few tokens are left, the rest of an action is its shortest end.

Without that a draw that rambles in a string is cut at its limit and is no action. The way to the end is a function of
what was drawn and of the limit, so the distribution that a draw comes from is known as before: a token that is the only
one has a log-prob of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Closers", "Held"]

ENDS = ('"}', '"]', '"', "}", "]", '"}}', '"]}', "}}", "]}", "0", "1", "true", "null")
"""Texts that bring JSON nearer to its end, the likeliest first."""
SPARE = 5  # tokens: what one token may open that takes more to close, such as \u and four digits
LONGEST = 64


class Closers:
    """The single tokens of a tokenizer that end JSON, and those that end a response."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        found = [tokenizer.encode(text, add_special_tokens=False) for text in ENDS]
        self.ids = [*stop_ids, *(ids[0] for ids in found if len(ids) == 1)]
        self._stops = frozenset(stop_ids)

    def way(self, matcher: Any) -> list[int] | None:
        """Tokens that end what `matcher` (llguidance's LLMatcher) has read so far, a stop id last; None where this
        finds no end. Not always the fewest."""
        ahead, path = matcher.deep_copy(), list[int]()
        while len(path) < LONGEST and not ahead.is_stopped():
            given = ahead.compute_ff_tokens()
            if not given:
                bits = ahead.compute_bitmask()
                given = [next((i for i in self.ids if bits[i // 8] >> (i % 8) & 1), _first(bits))]
            for token in given:
                if token < 0 or not ahead.consume_token(token):
                    return None
                path.append(token)
                if token in self._stops:
                    return path
        return path if ahead.is_stopped() and not ahead.is_error() else None


def _first(bits: bytes) -> int:
    """The first token that is allowed; −1 for none."""
    return next((8 * i + (byte & -byte).bit_length() - 1 for i, byte in enumerate(bits) if byte), -1)


class Held:
    """One draw's matcher, and how many tokens it may still draw."""

    def __init__(self, matcher: Any, closers: Closers, left: int) -> None:
        self.matcher, self.closers, self.left = matcher, closers, left
        self._look = left  # how many are left when the end is looked for next
        self._only: tuple[int, int | None] = (-1, None)  # what was found, and with how many left

    def copy(self) -> Held:
        twin = Held(self.matcher.deep_copy(), self.closers, self.left)
        twin._look, twin._only = self._look, self._only
        return twin

    def take(self, token: int) -> None:
        self.left -= 1
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)

    def ends_within(self, tokens: int) -> bool:
        """Whether the end has to be looked for before so many tokens more are drawn."""
        return self.left - tokens <= self._look

    def only(self) -> int | None:
        """The one token that may come next, where there is room for the end alone."""
        if self._only[0] != self.left:
            self._only = (self.left, self._found())
        return self._only[1]

    def _found(self) -> int | None:
        if self.matcher.is_stopped() or self.left > self._look:
            return None
        way = self.closers.way(self.matcher)
        spare = -1 if way is None else self.left - len(way) - SPARE
        self._look = self.left - max(1, spare // 2)
        return way[0] if way is not None and spare <= 0 and len(way) <= self.left else None
