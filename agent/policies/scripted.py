"""Policies without a model: a plain function, or a table of texts with probabilities. Bytes serve as token ids.

They make trees that are the same on every machine, so they carry the tests of everything above and below.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import random
import sys
from _random import Random as _Random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter
from typing import Any

from treewright.agent.policies.policy import PolicyStats
from treewright.envs.errors import TreewrightError
from treewright.envs.naming import place_of
from treewright.envs.records import quick
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.segments import Segments, ended
from treewright.search.types import Completion, Context, Exchange, PolicyFault

__all__ = ["END", "Choices", "Script", "ScriptedPolicy", "Situation", "scripted_choice"]

END, ACT = 256, 257
REMEMBERED = 4096  # texts that were said or shown: scripts see and say few of them, again and again
SHORT = 1024  # characters of a text that is worth it
SLOW = 0.001  # seconds of a draw after which others get their turn

Turns = Sequence[Exchange]
Ids = tuple[int, ...]
Floats = Sequence[float]
Script = Callable[[Task, Turns, Sequence[ToolSpec], random.Random], str] | Callable[..., str]
"""(task, turns, tools, rng) -> what the policy writes, one action such as 'find {"word": "tea"}'.

task   what is to be done: task.goal, task.data
turns  what was said and answered so far, oldest first; empty at the start. turns[-1].observation.text is what the
       world shows now, turns[-1].action what was done before
tools  what can be called now: tool.name, tool.description, tool.parameters
rng    a random.Random of this draw alone: the same seed gives the same draw
first  what the episode began with, an Observation; given to a function that has a parameter of this name
"""

Choices = Sequence[tuple[str, float]] | Callable[..., Sequence[tuple[str, float]]]
"""A table of texts with probabilities, or a function (task, turns, tools) -> table; it may take `first` too."""

set_seed = _Random.seed
"""What `Random.seed` does with a whole number, without asking first whether it is one."""

TAKES = "(task, turns, tools, rng), and may take first"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Situation(Context):
    """A prompt and what a script is told about its node; the token ids alone could not carry it."""

    task: Task
    turns: tuple[Exchange, ...]
    tools: tuple[ToolSpec, ...]
    first: Observation


def takes_first(function: Callable[..., Any], arguments: int, name: str) -> bool:
    """True where a script has a parameter `first`. Raises TreewrightError where it cannot be called as one."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False
    kinds = {p.name: p.kind for p in signature.parameters.values()}
    named = kinds.get("first") in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        signature.bind(*range(arguments), **({"first": None} if named else {}))
    except TypeError as error:
        wanted = TAKES if arguments == 4 else TAKES.replace(", rng", "")
        raise TreewrightError(f"{name} takes {signature}; a script takes {wanted}") from error
    if inspect.iscoroutinefunction(function):
        raise TreewrightError(f"{name} is async; a script is a plain function {TAKES}")
    return named


class ScriptedPolicy:
    """A policy that calls `script` once for each draw.

    Token ids are the UTF-8 bytes of the text, then END; a prompt is the bytes of task and observations, each closed
    by ACT. Every token gets `logprob` as its log-probability: leave it 0 for a script that ignores its random numbers;
    a script that uses them does not know its probabilities, so set `trainable=False` or use `scripted_choice`.
    With `newest_only` a prompt is the task and the newest observation, so that prompts do not grow with the path; the
    script is told all turns either way.
    """

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        version: str = "scripted",
        logprob: float = 0.0,
        trainable: bool = True,
        newest_only: bool = False,
    ) -> None:
        self.script, self.newest_only = script, newest_only
        self.name = name
        self.logprob, self.trainable = logprob, trainable
        self.stats = PolicyStats()
        self._version = version
        self._takes_first = takes_first(script, 4, name)
        self._said: dict[tuple[str, int], Completion] = {}
        self._shown: dict[str, Ids] = {}
        self._rngs: list[random.Random] = []

    @property
    def version(self) -> str:
        return self._version

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Turns, base: Sequence[int]
    ) -> Context:
        """Appends the newest observation, or begins anew with it."""
        if self.newest_only:
            base = ()
        shown = turns[-1].observation.text if turns else first.text
        if not base:
            shown = f"{task.suite}/{task.id} {task.goal}\n{shown}"
        delta = self._shown.get(shown)
        if delta is None:
            delta = (*shown.encode("utf-8", "replace"), ACT)
            if len(self._shown) >= REMEMBERED:
                self._shown.clear()
            if len(shown) <= SHORT:
                self._shown[shown] = delta
        return Situation(
            keep=len(base),
            delta=delta,
            ids=(*base, *delta) if base else delta,
            task=task,
            turns=tuple(turns),
            tools=tuple(tools),
            first=first,
        )

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One call of the script for each seed. Raises TreewrightError for a context this policy did not make."""
        if not isinstance(context, Situation):
            raise TreewrightError(f"{self.name} was given a context it did not make; call its context(...) first")
        return await self._each(seeds, lambda seed: self._complete(context, seed, max_tokens))

    async def _each(self, seeds: Sequence[int], drawn: Callable[[int], Completion]) -> list[Completion]:
        """One draw for each seed. A script that takes its time lets others have their turn: leases must be renewed."""
        done = []
        for seed in seeds:
            began = perf_counter()
            done.append(drawn(seed))
            if perf_counter() - began > SLOW:
                await asyncio.sleep(0)
        self.stats.requests += 1
        self.stats.draws += len(done)
        self.stats.sampled_tokens += sum([len(c.token_ids) for c in done])
        return done

    def _complete(self, known: Situation, seed: int, max_tokens: int) -> Completion:
        rng = self._rngs.pop() if self._rngs else random.Random(0)
        set_seed(rng, seed)
        rng.gauss_next = None  # type: ignore[attr-defined]
        text = self._asked(self.script, known, rng)
        if sys.getrefcount(rng) == 2:  # the script kept nothing of it: its 2.5 KB of state serve the next draw
            self._rngs.append(rng)
        if not isinstance(text, str):
            raise PolicyFault(
                f'{self.name} gave a {type(text).__name__}, not a text such as \'find {{"word": "tea"}}\''
            )
        said = self._said.get((text, max_tokens))
        if said is None:
            ids = (*text.encode("utf-8", "replace"), END)
            said = self._cut(ids, [self.logprob] * len(ids), max_tokens)
            if len(self._said) >= REMEMBERED:
                self._said.clear()
            self._said[text, max_tokens] = said
        return said

    def said(self, ids: Sequence[int]) -> str:
        """The text of a response's bytes."""
        return bytes(i for i in ids if i < END).decode("utf-8", "replace")

    async def draw_segment(
        self, context: Context, seeds: Sequence[int], max_tokens: int, head: Sequence[int], segments: Segments | None
    ) -> list[Completion]:
        """Draws on from a response under way, up to where a segment ends; see `Segmenting`.

        A function is asked anew, and must begin its text as the response does: scripts that use their random numbers
        cannot go on from the middle, `scripted_choice` can.
        """
        if not isinstance(context, Situation):
            raise TreewrightError(f"{self.name} was given a context it did not make; call its context(...) first")
        return await self._each(seeds, lambda seed: self._segment(context, seed, max_tokens, tuple(head), segments))

    def _segment(
        self, known: Situation, seed: int, max_tokens: int, head: Ids, segments: Segments | None
    ) -> Completion:
        ids, logprobs = self._rest(known, seed, head)
        if segments is None:
            return self._cut(ids, logprobs, max_tokens)
        n = segments.cut(ids, self.said, self._unsure(known, head, ids, segments.unsure) if segments.unsure else ())
        asked = min(max_tokens, len(ids) if n is None else n)
        done = self._cut(ids, logprobs, asked)
        return ended(done, asked, max_tokens) if n is not None else done

    def _unsure(self, known: Situation, head: Ids, ids: Ids, kind: str) -> Floats:
        """How unsure the policy is before each of the bytes `ids` behind `head`."""
        raise TreewrightError(f"{self.name} does not know how unsure it is; cut its segments by length or delimiter")

    def _rest(self, known: Situation, seed: int, head: Ids) -> tuple[Ids, Floats]:
        """What a draw says behind `head`, and the log-probs of its bytes."""
        whole = self._complete(known, seed, 1 << 30)
        if whole.token_ids[: len(head)] != head:
            raise PolicyFault(f"{self.name} said something else before; segments need scripted_choice or no randomness")
        return whole.token_ids[len(head) :], whole.logprobs[len(head) :]

    def _cut(self, ids: Sequence[int], logprobs: Sequence[float], max_tokens: int) -> Completion:
        kept = tuple(ids[:max_tokens])
        ended = bool(kept) and kept[-1] == END
        text = bytes(kept[:-1] if ended else kept).decode("utf-8", "replace")
        reason = "stop" if ended else "length"
        return Completion(
            text,
            kept,
            tuple(logprobs[:max_tokens]),
            finish_reason=reason,
            policy_version=self.version,
            trainable=self.trainable,
        )

    def _asked(self, function: Callable[..., Any], known: Situation, *more: Any) -> Any:
        """What the function says here. Raises PolicyFault with the place where it fails."""
        try:
            if self._takes_first:
                return function(known.task, known.turns, known.tools, *more, first=known.first)
            return function(known.task, known.turns, known.tools, *more)
        except (Exception, SystemExit) as error:
            raise PolicyFault(f"{self.name} raised {type(error).__name__}: {error}{place_of(error)}") from error

    async def close(self) -> None:
        self._said.clear()
        self._shown.clear()


class _ChoicePolicy(ScriptedPolicy):
    """Draws from a table. Byte log-probs are exact, log P(prefix + byte) - log P(prefix), and sum to log p(text)."""

    def __init__(self, choices: Choices, *, name: str, version: str) -> None:
        super().__init__(lambda *_: "", name=name, version=version)
        self.choices = choices
        self._takes_first = callable(choices) and takes_first(choices, 3, name)

    def _complete(self, known: Situation, seed: int, max_tokens: int) -> Completion:
        return _at(known, self._cut(*self._rest(known, seed, ()), max_tokens))

    def _segment(
        self, known: Situation, seed: int, max_tokens: int, head: Ids, segments: Segments | None
    ) -> Completion:
        return _at(known, super()._segment(known, seed, max_tokens, head, segments))

    def _coded(self, known: Situation, head: Ids) -> list[tuple[Ids, float]]:
        """The bytes and probabilities of the texts that begin with `head`."""
        table = self.choices
        rows = _checked(self._asked(table, known) if callable(table) else table)
        coded = (((*text.encode("utf-8", "replace"), END), p) for text, p in rows)
        return [(ids, p) for ids, p in coded if ids[: len(head)] == head]

    def _rest(self, known: Situation, seed: int, head: Ids) -> tuple[Ids, Floats]:
        coded = self._coded(known, head)
        if not coded:
            raise PolicyFault(f"{self.name} has no text that begins with {self.said(head)!r}")
        if known.temperature is not None and known.temperature != 1.0:
            return _warm_rest(coded, head, random.Random(seed), known.temperature)
        at, ids = random.Random(seed).random() * math.fsum(p for _, p in coded), coded[-1][0]
        for candidate, p in coded:
            at -= p
            if at < 0:
                ids = candidate
                break
        mass = [math.fsum(p for other, p in coded if other[:n] == ids[:n]) for n in range(len(head), len(ids) + 1)]
        logprobs = [min(0.0, math.log(b / a)) for a, b in pairwise(mass)]
        return ids[len(head) :], logprobs

    def _unsure(self, known: Situation, head: Ids, ids: Ids, kind: str) -> Floats:
        coded, whole = self._coded(known, head), head + ids
        return [_unsure(coded, whole[:n], kind) for n in range(len(head), len(whole))]


def _at(known: Situation, done: Completion) -> Completion:
    return done if known.temperature is None else replace(done, temperature=known.temperature)


def _warm_rest(
    coded: Sequence[tuple[Ids, float]], head: Ids, rng: random.Random, temperature: float
) -> tuple[Ids, Floats]:
    """A draw behind `head`, byte by byte, each with p^(1/temperature) made to sum to 1; and its bytes' log-probs."""
    said, logprobs = head, list[float]()
    while not said[len(head) :] or said[-1] != END:
        mass: dict[int, float] = {}
        for ids, p in coded:
            if ids[: len(said)] == said:
                mass[ids[len(said)]] = mass.get(ids[len(said)], 0.0) + p
        warm = {byte: p ** (1 / temperature) for byte, p in mass.items()}
        byte = rng.choices(list(warm), list(warm.values()))[0]
        logprobs.append(math.log(warm[byte] / math.fsum(warm.values())))
        said = (*said, byte)
    return said[len(head) :], logprobs


def _unsure(coded: Sequence[tuple[Ids, float]], said: Ids, kind: str) -> float:
    """The entropy of the byte behind `said`, or the surprisal of the likeliest one, in nats."""
    mass: dict[int, float] = {}
    for ids, p in coded:
        if ids[: len(said)] == said:
            mass[ids[len(said)]] = mass.get(ids[len(said)], 0.0) + p
    total = math.fsum(mass.values())
    shares = [m / total for m in mass.values()]
    return -math.fsum(p * math.log(p) for p in shares) if kind == "entropy" else -math.log(max(shares))


def _checked(rows: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    kept = [(text, p) for text, p in rows if p > 0]
    total = math.fsum(p for _, p in rows)
    if not kept or any(p < 0 for _, p in rows) or abs(total - 1) > 1e-6:
        raise TreewrightError(f"scripted choices need probabilities >= 0 that sum to 1, not {[p for _, p in rows]}")
    return kept


def scripted_choice(
    choices: Choices, *, name: str = "scripted-choice", version: str = "scripted-choice"
) -> ScriptedPolicy:
    """A policy that says `text` with probability p for each (text, p); with exact token log-probs.

    `choices` is such a list, or a function (task, turns, tools) -> list for a policy that depends on the state.
    Raises TreewrightError where the probabilities do not sum to 1.
    """
    if not callable(choices):
        _checked(choices)
    return _ChoicePolicy(choices, name=name, version=version)
