"""From a task and its turns to the token ids that a model reads, turn by turn.

What a policy sampled stays in the prompt as the tokens it sampled; only what the template and the world say is encoded.
A prompt is a sequence of blocks between responses:

    opening | response 1 | turn 1 | response 2 | turn 2 | …

`opening` holds rules, goal and first observation; turn i holds observation i; both end where the policy writes. A block
is encoded as one text, so that it has the tokens that it would have in the whole prompt. Most templates are
append-only: the next prompt is the last one plus response plus turn. Where they are not (thinking is dropped, old
observations are replaced in a window), blocks are exchanged and responses kept, and `Context.keep` says how much of the
front stayed. Observations come from the world and are untrusted: a mark written in them never becomes the mark.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from treewright.agent.policies.encoder import BEHIND_TEXT, Encoder, Foreign, Ids
from treewright.agent.policies.prompt_text import LEFT_OUT, THOUGHT, observation_text, said_text, shown_texts
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Observation, Task, ToolSpec
from treewright.search.types import Context, Exchange

__all__ = ["MARKS", "WINDOWS", "CompactTemplate", "Template", "Window", "window_of"]

log = logging.getLogger(__name__)

WINDOWS = {"market": 1, "bazaar": 1, "miniwob": 1}
"""The compact form's own windows: pages are long, and small models have short contexts."""
MARKS = ("<|task|>", "<|obs|>", "<|act|>", "<|end|>")

Window = int | Mapping[str, int] | None


def window_of(windows: Mapping[str, int], suite: str) -> int | None:
    """The window of a suite; that of `miniwob` is that of `miniwob:simple` too."""
    return windows.get(suite, windows.get(suite.partition(":")[0]))


class Template:
    """The blocks of a prompt. A subclass gives `opening`, `turn`, `response`, `closing`, `stop_ids` and whether prompts
    only grow.

    window    how many of the newest observations stay in full; None for all, a mapping for a number by suite
    left_out  what stands for the others
    closing   what the template writes to end a response, the end-of-turn mark last; every turn begins with it
    """

    left_out = LEFT_OUT
    stop_ids: frozenset[int] = frozenset()
    closing: Ids = ()
    append_only = True
    drops_thinking = False

    def __init__(self, tokenizer: Any, window: Window = None) -> None:
        sizes = [window] if isinstance(window, int) else (window or {}).values()
        if any(size < 1 for size in sizes):
            raise TreewrightError(f"window = {window} would show no observation; give at least 1, or None for all")
        self.encoder = Encoder(tokenizer)
        self.window, self._told = window, False

    def _window(self, task: Task) -> int | None:
        return window_of(self.window, task.suite) if isinstance(self.window, Mapping) else self.window

    def opening(self, task: Task, tools: Sequence[ToolSpec], seen: str, last: bool) -> Ids:
        """Everything before the first response; `last` if the policy writes next, not long ago."""
        raise NotImplementedError

    def turn(self, seen: str, last: bool) -> Ids:
        """Everything between the end of a response and the next one, `closing` first."""
        raise NotImplementedError

    def response(self, text: str) -> Ids:
        """What a policy would have sampled to say `text`, the end-of-turn mark included; for demonstrations."""
        raise NotImplementedError

    def says(self, text: str, action: Action | None) -> str:
        """The text in which a policy under this template takes the action; `text` itself where it takes none."""
        thought, mark, _ = text.rpartition(THOUGHT)
        return text if action is None else f"{thought}{mark}\n\n{action}" if mark else str(action)

    def context(
        self,
        task: Task,
        tools: Sequence[ToolSpec],
        first: Observation,
        turns: Sequence[Exchange],
        base: Sequence[int],
    ) -> Context:
        """The prompt after `turns`; `base` is the parent's prompt and response, see Proposer.context."""
        base = tuple(base)
        if not turns:
            ids = self.opening(task, tools, observation_text(first), True)
            return Context(keep=0, delta=ids, ids=ids)
        thought = self.drops_thinking and THOUGHT in turns[-1].response
        window = self._window(task)
        if base and self.append_only and not thought and window is None:
            delta = self._after(base, self.turn(observation_text(turns[-1].observation), True))
            return Context(keep=len(base), delta=delta, ids=base + delta)
        before = self._blocks(task, tools, shown_texts(first, turns[:-1], window, self.left_out))
        responses = self._responses(before, base)
        if responses is None:
            ids = self._rendered(task, tools, first, turns)
        else:
            if self.drops_thinking:
                responses[-1] = self._visible(responses[-1])
            ids = ()
            blocks = self._blocks(task, tools, shown_texts(first, turns, window, self.left_out))
            for response, block in zip([(), *responses], blocks, strict=True):
                ids += response
                ids += self._after(ids, block)
        return _kept(base, ids)

    def _blocks(self, task: Task, tools: Sequence[ToolSpec], shown: Sequence[str]) -> list[Ids]:
        end = len(shown) - 1
        return [
            self.opening(task, tools, shown[0], end == 0),
            *(self.turn(seen, i == end) for i, seen in enumerate(shown[1:], 1)),
        ]

    def _after(self, ids: Ids, block: Ids) -> Ids:
        """`block` as it follows `ids`: without what ends a turn if the policy has written it."""
        return self._unclosed(block) if ids and ids[-1] in self.stop_ids else block

    def _unclosed(self, block: Ids) -> Ids:
        """`block` without what ends the turn before it."""
        size = len(self.closing)
        return block[size:] if size and block[:size] == self.closing else block

    def _responses(self, blocks: Sequence[Ids], base: Ids) -> list[Ids] | None:
        """Cuts `base` at the blocks it was made of; None if it was not made of them."""
        if base[: len(blocks[0])] != blocks[0]:
            return None
        out, at = [], len(blocks[0])
        for block in blocks[1:]:
            part = self._unclosed(block)
            found = _find(base, part, at)
            if found < 0:
                return None
            out.append(base[at:found])
            at = found + len(part)
        return [*out, base[at:]]

    def _visible(self, response: Ids) -> Ids:
        """The response without its thinking, cut between tokens."""
        text = self.encoder.text
        if THOUGHT not in text(response):
            return response
        low, high = 0, len(response)
        while low < high:  # the shortest front that holds the mark
            middle = (low + high) // 2
            low, high = (low, middle) if THOUGHT in text(response[:middle]) else (middle + 1, high)
        while low < len(response) and not text(response[low : low + 1]).strip():
            low += 1
        return response[low:]

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            log.warning("a prompt was not built by this template (another one, or another window?); encoded from texts")

    def _rendered(self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange]) -> Ids:
        """The prompt from texts alone; only for prompts that are no sequence of known blocks."""
        self._tell()
        blocks = self._blocks(task, tools, shown_texts(first, turns, self._window(task), self.left_out))
        ids = blocks[0]
        for turn, block in zip(turns, blocks[1:], strict=True):
            ids += self.response(said_text(turn) if self.drops_thinking else turn.response)
            ids += self._after(ids, block)
        return ids


def _kept(base: Ids, ids: Ids) -> Context:
    keep = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(base, ids, strict=False)))
    return Context(keep=keep, delta=ids[keep:], ids=ids)


def _find(ids: Ids, part: Ids, start: int) -> int:
    """Index of the first occurrence of `part` in `ids` from `start`, or -1."""
    size = len(part)
    return next((i for i in range(start, len(ids) - size + 1) if ids[i : i + size] == part), -1) if part else -1


class CompactTemplate(Template):
    """`<|task|>{suite} {goal}<|obs|>{observation}<|act|>` response `<|end|>` `<|obs|>{observation}<|act|>` …

    For small models trained on it. A mark that the tokenizer lacks is written as text, and broken up where an
    observation spells it; a tokenizer without `<|end|>` ends turns with its end-of-sequence token. Without a window of
    its own it has those of WINDOWS, with nothing for what is left out; `window={}` shows everything.
    """

    left_out = ""

    def __init__(self, tokenizer: Any, window: Window = None) -> None:
        super().__init__(tokenizer, WINDOWS if window is None else window)
        known = self.encoder.ids_of
        self.spelled = [mark for mark in MARKS if mark not in known]
        end = known.get(MARKS[3], tokenizer.eos_token_id)
        if end is None:
            raise TreewrightError(
                "the tokenizer has neither <|end|> nor an end-of-sequence token to end a turn with; add one to it"
            )
        self.closing = (int(end),)
        self.stop_ids = frozenset(self.closing)
        self._end = MARKS[3] if MARKS[3] in known else str(tokenizer.eos_token)

    def opening(self, task: Task, tools: Sequence[ToolSpec], seen: str, last: bool) -> Ids:
        return self.encoder.encode([MARKS[0], self._foreign(f"{task.suite} {task.goal}"), *self._seen(seen)])

    def turn(self, seen: str, last: bool) -> Ids:
        return self.closing + self.encoder.encode(self._seen(seen), (self._end, *BEHIND_TEXT))

    def response(self, text: str) -> Ids:
        return self.encoder.encode([Foreign(text)], (MARKS[2], *BEHIND_TEXT), written=True) + self.closing

    def _seen(self, text: str) -> list[str]:
        return [MARKS[1], self._foreign(text), MARKS[2]]

    def _foreign(self, text: str) -> Foreign:
        for mark in self.spelled:
            text = text.replace(mark, mark[0] + " " + mark[1:])
        return Foreign(text)
