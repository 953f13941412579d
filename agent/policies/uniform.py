"""A policy without a model that knows nothing but the tools: uniform draws over valid calls.

    treewright run office/0 --policy scripted:treewright.agent.policies.uniform:uniform_calls

It takes a tool at random among those whose required arguments can all be filled from what was seen so far (the goal
and every observation on the path), then each argument at random among the values seen that the tool's schema allows.
Words are seen values; enumerated values count only once they were seen. What a search finds with it is the merit of
the search.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from treewright.agent.policies.scripted import END, ScriptedPolicy, Situation
from treewright.envs.types import ToolSpec
from treewright.search.rules.plan_memory import words_of
from treewright.search.types import Completion

__all__ = ["UniformPolicy", "uniform_answers", "uniform_calls", "values_for"]

Choice = tuple[ToolSpec, tuple[tuple[str, tuple[Any, ...]], ...]]


class UniformPolicy(ScriptedPolicy):
    """answers  whether free text of a tool that ends the episode is drawn from the words seen, or is always "ok" """

    def __init__(self, *, answers: bool, name: str) -> None:
        super().__init__(lambda *_: "", name=name, version=name, trainable=False)
        self._answers = answers
        self._held: tuple[Situation, list[Choice]] | None = None

    def _complete(self, known: Situation, seed: int, max_tokens: int) -> Completion:
        rng, choices = random.Random(seed), self._valid(known)
        if not choices:
            said = (*b"no call is possible", END)
            return self._cut(said, [self.logprob] * len(said), max_tokens)
        tool, values = choices[int(rng.random() * len(choices))]
        arguments = {name: some[int(rng.random() * len(some))] for name, some in values}
        text = f"{tool.name} {json.dumps(arguments, ensure_ascii=False)}".encode()
        return self._cut((*text, END), [self.logprob] * (len(text) + 1), max_tokens)

    def _valid(self, known: Situation) -> list[Choice]:
        """Made once for all draws at a node: they come one after the other."""
        if self._held is None or self._held[0] is not known:
            words = _seen(known)
            found = ((tool, self._values(tool, words)) for tool in known.tools)
            self._held = (known, [(tool, values) for tool, values in found if values is not None])
        return self._held[1]

    def _values(self, tool: ToolSpec, words: tuple[str, ...]) -> tuple[tuple[str, tuple[Any, ...]], ...] | None:
        """Values for each required argument; None where one cannot be filled."""
        properties = tool.parameters.get("properties", {})
        out = []
        for name in tool.parameters.get("required", ()):
            schema = properties.get(name, {})
            free = schema.get("type") == "string" and not schema.keys() & {"enum", "pattern", "const"}
            if free and tool.terminal and not self._answers:
                out.append((name, ("ok",)))
                continue
            values = values_for(schema, words)
            if not values:
                return None
            out.append((name, values))
        return tuple(out)


def _seen(known: Situation) -> tuple[str, ...]:
    texts = [known.task.goal, *(turn.observation.text for turn in known.turns)]
    return tuple(dict.fromkeys(word for text in texts for word in words_of(text)))


def values_for(schema: Mapping[str, Any], words: Sequence[str]) -> tuple[Any, ...]:
    """The words that an argument of this JSON schema may take; numbers and truth values as JSON reads them."""
    if "const" in schema:
        return (schema["const"],)
    if "enum" in schema:
        return tuple(value for value in schema["enum"] if not isinstance(value, str) or value in words)
    match schema.get("type"):
        case "string":
            pattern = schema.get("pattern")
            return tuple(words) if pattern is None else tuple(word for word in words if _fits(pattern, word))
        case "integer":
            return tuple(int(word) for word in words if word.isdecimal() and word.isascii())
        case "boolean":
            return (True, False)
    return ()


@functools.lru_cache(maxsize=65_536)
def _fits(pattern: str, word: str) -> bool:
    return re.search(pattern, word) is not None


uniform_calls = UniformPolicy(answers=False, name="uniform-calls")
"""For jobs that are judged by what they leave behind."""

uniform_answers = UniformPolicy(answers=True, name="uniform-answers")
"""For jobs that ask for an answer: it is drawn from the words seen."""
