"""What an episode did before a tree that goes on from a commit, for the prompts of that tree."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from treewright.envs.types import Action, Observation
from treewright.search.types import Exchange

__all__ = ["Past", "with_past", "without_past"]

KEY = "past"


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The committed turns before a tree's root, of all the trees that it goes on from.

    first    what the episode began with
    turns    oldest first, up to the node that the tree continues; at least one
    ids      prompt and response of the last turn as token ids: the root's prompt keeps them; () = not known
    version  of the policy whose tokens they are
    """

    first: Observation
    turns: tuple[Exchange, ...]
    ids: tuple[int, ...] = ()
    version: str = ""

    def until(self, seen: Observation) -> tuple[Exchange, ...]:
        """The turns as they are shown at the root, where the world shows `seen`: behind the last answer, unless that
        says the same."""
        *before, last = self.turns
        told = last.observation
        if not seen.text or told.text in ("", seen.text):
            shown = seen if seen.text else told
        else:
            source = seen.provenance if told.provenance == "environment" else told.provenance
            both, parts = f"{told.text}\n\n{seen.text}", (*told.parts, *seen.parts)
            shown = Observation(both, seen.fingerprint, provenance=source, parts=parts)
        return (*before, replace(last, observation=shown))

    def to(self, version: str) -> Past:
        """For a policy of that version: tokens of another one are left out, the texts are encoded anew."""
        return self if version == self.version else replace(self, ids=())


# -- in the settings of a stored header -------------------------------------------------------------------------------


def with_past(settings: Mapping[str, Any], past: Past | None) -> Mapping[str, Any]:
    """The settings as they are stored: the past of a tree is one more of them."""
    if past is None:
        return settings
    turns = [
        {"said": t.response, "did": t.action.key if t.action is not None else None, "seen": _written(t.observation)}
        for t in past.turns
    ]
    ids = base64.b64encode(struct.pack(f"<{len(past.ids)}i", *past.ids)).decode()
    own = {"first": _written(past.first), "turns": turns, "ids": ids, "version": past.version}
    return {**settings, KEY: own}


def without_past(stored: Mapping[str, Any]) -> tuple[dict[str, Any], Past | None]:
    """Settings and past out of what was stored. Raises KeyError, TypeError or ValueError for a past that is none."""
    own = stored.get(KEY)
    settings = {name: value for name, value in stored.items() if name != KEY}
    if own is None:
        return settings, None
    turns = tuple(
        Exchange(t["said"], None if t["did"] is None else Action.from_key(t["did"]), _read(t["seen"]))
        for t in own["turns"]
    )
    packed = base64.b64decode(own["ids"])
    ids = struct.unpack(f"<{len(packed) // 4}i", packed)
    return settings, Past(first=_read(own["first"]), turns=turns, ids=ids, version=own["version"])


def _written(seen: Observation) -> dict[str, Any]:
    parts = {"parts": list(seen.parts)} if seen.parts else {}
    return {"text": seen.text, "fingerprint": seen.fingerprint, "provenance": seen.provenance, **parts}


def _read(row: Mapping[str, Any]) -> Observation:
    return Observation(row["text"], row["fingerprint"], provenance=row["provenance"], parts=tuple(row.get("parts", ())))
