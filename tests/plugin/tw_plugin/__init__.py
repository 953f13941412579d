"""One of each kind of part that treewright takes from others. `USED` tells which were used, and with which options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from treewright.agent.policies.prompts import CompactTemplate
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs.retrieval import kg
from treewright.envs.types import Observation, Suite, Task, ToolSpec
from treewright.search.rules import Rule
from treewright.search.types import Candidate, Completion, Context, Exchange, Score

if TYPE_CHECKING:
    from treewright.training.credit.arrays import TreeArrays
    from treewright.training.export.view import View


if TYPE_CHECKING:
    from treewright.training.credit.arrays import Credit


USED: dict[str, Any] = {}


# -- worlds: a suite with tasks of its own, and a class whose methods become tools


def tasks(split: Any, count: int) -> list[Any]:
    return [replace(task, suite="plug_world") for task in kg.SUITE.tasks(split, count)]


SUITE = Suite("plug_world", tasks, kg.SUITE.open, max_tokens=kg.SUITE.max_tokens)


class Desk:
    sandboxed = True
    effects = {"file": "reversible"}

    def __init__(self) -> None:
        self.filed: list[Any] = []

    def file(self, letter: str) -> str:
        self.filed.append(letter)
        return f"{letter} is filed"


# -- what acts


class Clerk(ScriptedPolicy):
    def __init__(self, word: str = "ada") -> None:
        super().__init__(self.say, name="clerk", version=f"clerk-{word}")
        self.word = word

    def say(self, task: Task, turns: Any, tools: Any, rng: Random) -> str:
        USED["policy"] = self.word
        if tools[0].name == "file":
            return 'file {"letter": "a"}' if not turns else 'done {"answer": "done"}'
        return f'answer {{"entity": "{self.word}"}}'


class Counted:
    """A proposer around the policy that counts the draws."""

    def __init__(self, policy: Any, mark: str = "counted") -> None:
        self.inner, self.mark, self.name, self.stats = policy, mark, policy.name, policy.stats

    @property
    def version(self) -> str:
        return str(self.inner.version)

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        made: Context = self.inner.context(task, tools, first, turns, base)
        return made

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        USED["proposer"] = self.mark
        drawn: Sequence[Completion] = await self.inner.draw(context, seeds, max_tokens)
        return drawn

    async def close(self) -> None:
        await self.inner.close()


class Renamed(CompactTemplate):
    """Shows tasks as those of another suite, such as the model was trained on."""

    def __init__(self, tokenizer: Any, window: int | None = None, suite: str = "?") -> None:
        super().__init__(tokenizer, window)
        self.suite = suite

    def opening(self, task: Task, tools: Sequence[ToolSpec], seen: str, last: bool) -> tuple[int, ...]:
        USED["template"] = self.suite
        return super().opening(replace(task, suite=self.suite), tools, seen, last)


# -- what searches


def deepest(draws: int = 2, root_draws: int = 4, tilt: float = 1.0) -> Rule:
    USED["rule"] = tilt
    return Rule(
        name=f"deepest(tilt={tilt})",
        priority=lambda node: tilt * node.depth,
        draws=lambda node: draws if node.depth else root_draws,
    )


class Steady:
    def __init__(self, worth: float = 0.5) -> None:
        self.worth = worth

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Any]:
        USED["evaluator"] = self.worth
        return [Score(self.worth) for _ in candidates]


# -- what learns


def halved(
    arrays: TreeArrays, *, omega: float = 0.5, root_baseline: float | None = None, allow_biased: bool = False
) -> Credit:
    from treewright.training.credit import estimate

    USED["estimator"] = omega
    credit = estimate("split_loo", arrays, root_baseline=root_baseline, allow_biased=allow_biased)
    return replace(credit, coef=omega * credit.coef)


def plain_ratio(
    delta: Any, logp: Any, coef: Any, low: Any, high: Any, options: Any, scale: float = 1.0
) -> tuple[Any, Any]:
    USED["loss"] = scale
    return scale * delta.exp() * coef, delta != delta


# -- what is written


def sizes(view: View, least: int = 1) -> Iterator[dict[str, Any]]:
    """The size of each tree."""
    USED["exporter"] = least
    if len(view.tree) >= least:
        yield {"tree_id": view.tree.tree_id, "nodes": len(view.tree), "values": view.value, "goal": view.tree.task.goal}


class TextFile:
    def __init__(self, folder: Any, run: Any, file: str = "tracked.txt") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / file).open("a")
        self.file.write(f"{run}\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.file.write(f"{step} {values['loss']:.6f}\n")

    def close(self) -> None:
        self.file.close()
