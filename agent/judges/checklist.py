"""A judge that asks a model, item by item, how far an episode has come, and reads the answer's probabilities.

For each goal the model writes a short checklist once. For each candidate and item it is asked for one word, yes, no or
in progress, and what counts is not the word but its log-probability: s = mean over items of P(yes) + ½ P(in progress),
after WebOperator. All items of all siblings are asked in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from treewright.agent.policies.once import Once
from treewright.agent.policies.prompt_text import read_items
from treewright.envs.types import Task
from treewright.search.types import Candidate, Score

__all__ = ["Checklist", "Model", "answer_shares", "read_items"]

ANSWERS = ("yes", "no", "in progress")
REMEMBERED = 4096


@runtime_checkable
class Model(Protocol):
    """What the judge needs of a model; `HFPolicy`, `OpenAIPolicy` and `VLLMPolicy` have it."""

    async def first_tokens(self, prompts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """For each prompt the likeliest first tokens of an answer: text → log-probability in nats."""

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        """One answer to a prompt."""


class Checklist:
    """The evaluator.

    items     the checklist of a task; None lets the model write it, at most `most` items in `max_tokens` tokens
    turns     how many of the last turns a prompt shows;  letters  most letters of one observation
    Judge tokens are those sampled: one for each item and candidate, and the checklist's own, charged where it was made.
    """

    def __init__(
        self,
        model: Model,
        *,
        items: Callable[[Task], Sequence[str]] | None = None,
        most: int = 5,
        max_tokens: int = 160,
        turns: int = 6,
        letters: int = 1200,
    ) -> None:
        self.model, self.items, self.most, self.max_tokens = model, items, most, max_tokens
        self.turns, self.letters = turns, letters
        self._written_once: Once[str, tuple[str, ...]] = Once(REMEMBERED)

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        items, spent = await self._checklist(task)
        prompts = [self._prompt(task, candidate, item) for candidate in candidates for item in items]
        found = [answer_shares(tokens) for tokens in await self.model.first_tokens(prompts)]
        scores = []
        for i in range(len(candidates)):
            own = found[i * len(items) : (i + 1) * len(items)]
            value = math.fsum(yes + 0.5 * going for yes, _, going in own) / len(items)
            scores.append(Score(value, len(items) + (spent if i == 0 else 0)))
        return scores

    async def _checklist(self, task: Task) -> tuple[tuple[str, ...], int]:
        """The items of a goal and the tokens it took to write them; nothing the second time."""
        if self.items is not None:
            return tuple(self.items(task)) or (task.goal,), 0
        made = task.goal not in self._written_once
        items = await self._written_once.get(task.goal, lambda: self._written(task))
        return items, self.max_tokens if made else 0

    async def _written(self, task: Task) -> tuple[str, ...]:
        prompt = (
            f"Task: {task.goal}\n\nWrite a checklist of at most {self.most} short items, one per line, each beginning "
            "with '- ', that tell whether the task was done. Write nothing else.\n"
        )
        items = read_items(await self.model.write(prompt, task.seed & 0x7FFFFFFF, self.max_tokens))
        return tuple(items[: self.most]) or (task.goal,)

    def _prompt(self, task: Task, candidate: Candidate, item: str) -> str:
        lines = [f"Task: {task.goal}", "", "What was done:"]
        for turn in candidate.turns[-self.turns :]:
            lines += [f"> {turn.response.strip()}", turn.observation.text[: self.letters]]
        seen = candidate.observation.text[: self.letters] if candidate.observation is not None else "(not executed yet)"
        lines += [f"> {candidate.completion.text.strip()}", candidate.error or seen, ""]
        lines += [f"Checklist item: {item}", "Is it done? Answer with one of: yes, no, in progress.", "Answer:"]
        return "\n".join(lines)


def answer_shares(tokens: Mapping[str, float]) -> tuple[float, float, float]:
    """(P(yes), P(no), P(in progress)) from first tokens and their log-probs, normalised over the three.

    A token counts for the answer it begins, whatever its case and leading space: 'Yes', ' y', 'in'. Where none of them
    is among the tokens nothing is known: a third each.
    """
    mass = [0.0, 0.0, 0.0]
    for token, logprob in tokens.items():
        word = token.strip().strip("\"'*`▁Ġ").casefold()
        if word:
            for i, answer in enumerate(ANSWERS):
                if answer.startswith(word) or word.startswith(answer):
                    mass[i] += math.exp(min(0.0, logprob))
                    break
    total = math.fsum(mass)
    return (mass[0] / total, mass[1] / total, mass[2] / total) if total else (1 / 3, 1 / 3, 1 / 3)
