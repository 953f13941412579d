"""Inputs that nobody meant: real ones changed at random places, and JSON of any shape. All from one `random.Random`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

__all__ = ["changed_bytes", "changed_json", "changed_text", "json_text", "odd_json", "odd_text"]

PIECES = (
    "", "\0", "\ufeff", "\u2028", "\r\n", "\x1b[31m", "\ud800", "\udc00", "😀", "é", "\\ud83d", "null", "NaN",
    "Infinity", "-1", "1e999", "1" * 5000, "0.1", "true", "{", "}", "[", "]", '"', "'", "\\", ",", ":", "=", "#",
    "{{", "%s", "$ref",
    "<tool_call>", "</tool_call>", "</think>", "<|end|>", "[" * 3000, '{"a":' * 3000, "((" * 2000, "x" * 20_000,
    "a" * 40 + "!", "[[", "]]", '"""', "../../x", "http://[::1", "http://a:99999999/", "data:,x", "\n\n", "\t", "0x",
    "1_000", "2026-01-01", "(a+)+$", "(?:a|a)*b", "^(\\w+\\s?)*$",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ",
    "x", "0", "\0", "\ud800", "é" * 300, "x" * 5000, [], {}, [[]], [None], [0, "a"], {"": ""}, {"a": None},
    {"type": "object"}, {"$ref": "#"}, {"__bytes__": "!"}, {"b": "é"}, {"type": "string", "pattern": "(a+)+$"},
    {"pattern": "("}, {"enum": []}, {"$ref": "#/x/0"},
)  # fmt: skip
NAMES = ("", "id", "type", "name", "text", "content", "arguments", "error", "message", "$ref", "__class__", "\ud800")


def _deep(depth: int) -> Any:
    value: Any = []
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def odd_value(rng: random.Random) -> Any:
    return _deep(rng.choice((40, 300, 700))) if rng.random() < 0.03 else copy.deepcopy(rng.choice(VALUES))


def _places(value: Any) -> list[tuple[Any, ...]]:
    """The paths of all values in it, as deep as it goes at most 20 steps."""
    found: list[tuple[Any, ...]] = [()]
    level: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while level and len(level[0][0]) < 20:
        inner: list[tuple[tuple[Any, ...], Any]] = []
        for path, one in level:
            parts = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
            inner += [((*path, key), part) for key, part in parts]
        found += [path for path, _ in inner]
        level = inner
    return found


def changed_json(value: Any, rng: random.Random, changes: int | None = None) -> Any:
    """A copy with one to three values replaced, left out, repeated, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(changes or rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(_places(value))
        if not path:
            value = odd_value(rng) if rng.random() < 0.1 else value
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        last, how = path[-1], rng.randrange(6)
        if how <= 2:
            holder[last] = odd_value(rng)
        elif how == 3:
            del holder[last]
        elif how == 4 and isinstance(holder, list):
            holder.insert(last, holder[last])
        elif isinstance(holder, dict):
            holder[rng.choice(NAMES)] = holder.pop(last) if how == 4 else odd_value(rng)
    return value


def changed_text(text: str, rng: random.Random) -> str:
    """The text with one to four pieces cut out, put in, repeated or exchanged."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + rng.choice((0, 1, 1, 3, 20)))
        how = rng.randrange(5)
        piece = rng.choice(PIECES) if how < 3 else text[a:b] * rng.choice((0, 2, 2, 50)) if how == 3 else text[b:][:40]
        text = text[:a] + piece + text[b:]
    return text


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with bits turned, pieces cut, repeated or overwritten, or cut short."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not data:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
        at, how = rng.randrange(len(data)), rng.randrange(6)
        size = min(rng.choice((1, 2, 8, 512)), len(data) - at)
        if how == 0:
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + data[at + size :]
        elif how == 2:
            data = data[:at] + data[at : at + size] + data[at:]
        elif how == 3:
            data = data[:at] + rng.choice((b"\0", b"\xff", b"\x80\xfe")) * size + data[at + size :]
        elif how == 4:
            data = data[:at]
        else:
            data = data[:at] + rng.choice(PIECES).encode("utf-8", "surrogatepass")[:3000] + data[at:]
    return data


def json_text(value: Any) -> str:
    """JSON as careless programs write it: NaN and half surrogates among it."""
    return json.dumps(value)


odd_text = st.text(st.characters(), max_size=60) | st.sampled_from(PIECES)
_leaf = st.none() | st.booleans() | st.integers() | st.floats() | odd_text | st.sampled_from(VALUES[:24])
odd_json = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | odd_text, inner, max_size=4),
    max_leaves=12,
)

Change = Callable[[Any, random.Random], Any]


def chosen(seeds: Sequence[Any], rng: random.Random, change: Change) -> Any:
    """A changed one of the real inputs; one in fifty stays as it is."""
    seed = rng.choice(seeds)
    return seed if rng.random() < 0.02 else change(seed, rng)
