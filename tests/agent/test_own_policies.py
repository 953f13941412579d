"""What a policy of one's own raises, or gives that is no prompt and no draw, is one sentence that names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from treewright.agent.policies.policy import PolicyStats
from treewright.envs import TreewrightError, suite
from treewright.search import Budget, Settings, search
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Completion, Context

KG = suite("kg")
(TASK,) = KG.tasks("train", 1)
ANSWER = 'answer {"text": "x"}'


class Own:
    """Gives `drawn` for each seed."""

    name, version = "own", "1"

    def __init__(self, drawn: Any = None, prompt: Any = None) -> None:
        self.drawn, self.prompt, self.stats = drawn, prompt, PolicyStats()

    def context(self, task: Any, tools: Any, first: Any, turns: Any, base: Any) -> Any:
        if callable(self.prompt):
            return self.prompt()
        return Context(keep=0, delta=(5,), ids=(5,)) if self.prompt is None else self.prompt

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Any]:
        return [self.drawn for _ in seeds]

    async def close(self) -> None:
        pass


class Sync(Own):
    def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Any]:  # type: ignore[override]
        return [self.drawn for _ in seeds]


async def grown(policy: Any) -> Tree:
    return await search(TASK, KG, policy, rule=best_first(draws=2), budget=Budget(expansions=1), settings=Settings())


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Own("look {}"), "the policy gave 'look {}', not a treewright.search.Completion"),
        (Own({"text": "look"}), "not a treewright.search.Completion"),
        (Own(None), "the policy gave None"),
        (Own(Completion(None)), "a Completion of None, not"),  # type: ignore[arg-type]
        (Sync(Completion(ANSWER)), "write it as async def draw"),
    ],
)
async def test_what_is_no_draw_is_a_fault_that_says_what_was_given(policy: Own, says: str) -> None:
    with pytest.warns(RuntimeWarning) as told:
        tree = await grown(policy)
    assert says in str(told[0].message) and len(tree) == 1


@pytest.mark.parametrize(
    "ids", [[1, 2], np.array([1, 2]), (np.int64(1), np.int64(2))], ids=["list", "array", "tuple of numpy numbers"]
)
async def test_ids_and_log_probs_may_be_lists_and_arrays(ids: Any) -> None:
    tree = await grown(Own(Completion(ANSWER, ids, [-0.5, -0.25])))  # type: ignore[arg-type]
    assert tree.ids[1] == (1, 2) and tree.logprobs[1] == (-0.5, -0.25)
    assert all(type(token) is int for token in tree.ids[1])


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (lambda: 1 / 0, r"the policy own raised ZeroDivisionError in context\(\): division by zero \(.*line \d+\)"),
        (lambda: dict[str, str]()["goal"], r"raised KeyError in context\(\): 'goal'"),
        ("a prompt", r"gave a str as context, not a treewright\.search\.Context\(keep=0"),
    ],
)
async def test_a_prompt_that_cannot_be_made_ends_the_search_with_its_place(prompt: Any, says: str) -> None:
    with pytest.raises(TreewrightError, match=says):
        await grown(Own(Completion(ANSWER), prompt))
