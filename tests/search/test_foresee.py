"""What a lazy search knows of drafts before it pops them: effects in a live world, and reads that were made already."""

from __future__ import annotations

from typing import Any

import pytest
from not_none import not_none

from treewright.agent.policies.scripted import scripted_choice
from treewright.envs import Action, BaseEnvironment, Effect, EnvFault, Observation, StepResult, Task, ToolSpec
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import rule
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus

TASK = Task("desk", "1", "look and pay", horizon=3)
BOTH = scripted_choice([('use {"what": "look"}', 0.4), ('use {"what": "pay"}', 0.3), ('use { "what": "look" }', 0.3)])


class Desk(BaseEnvironment):
    """One tool of unknown effect; only the world itself can tell a look from a payment."""

    name, sandboxed = "desk", False
    tools = (ToolSpec("use", "uses", {"type": "object", "properties": {"what": {"type": "string"}}}, Effect.UNKNOWN),)

    def __init__(self, done: list[Any], trouble: bool = False) -> None:
        self.done, self.trouble = done, trouble
        self.at: tuple[Any, ...] = ()

    async def reset(self, task: Task, key: int) -> Observation:
        self.at = ()
        return Observation("a desk", "()")

    async def effect(self, action: Action) -> Effect:
        if self.trouble:
            raise EnvFault("cannot tell")
        return Effect.UNKNOWN if action.arguments["what"] == "pay" else Effect.READ

    async def step(self, action: Action, key: int) -> StepResult:
        self.done.append(action.arguments["what"])
        self.at = (*self.at, action.arguments["what"])
        return StepResult(Observation(f"after {self.at}", str(self.at)), effect=Effect.READ)


async def grown(
    name: str = "cascade", trouble: bool = False, share: bool = False, **options: Any
) -> tuple[Tree, list[Any]]:
    done: list[Any] = []

    async def opened() -> Desk:
        return Desk(done, trouble)

    tree = await search(
        TASK, Pool(opened), BOTH, rule=rule(name, draws=3, root_draws=3, eager=False, **options),
        budget=Budget(expansions=4), settings=Settings(seed=3, share_results=share),
    )  # fmt: skip
    return tree, done


@pytest.mark.asyncio
async def test_cascade_knows_the_effect_of_a_draft_when_it_is_drawn_and_pops_what_reads_first() -> None:
    tree, done = await grown()
    drafts = [i for i in range(1, len(tree)) if tree.status[i] is NodeStatus.DRAFT]
    pay = Action.of("use", what="pay")
    assert "look" in done and "pay" not in done and all(tree.action[node] != pay for node in tree.pops)
    assert len(tree.pops) == 4
    assert {tree.effect[i] for i in drafts if tree.action[i] == pay} == {Effect.IRREVERSIBLE}
    assert any(tree.action[i] == pay for i in drafts)


@pytest.mark.asyncio
async def test_a_rule_that_does_not_ask_judges_a_draft_when_it_is_popped() -> None:
    tree, done = await grown("uniform_cost")
    waiting = [i for i in range(1, len(tree)) if tree.status[i] is NodeStatus.DRAFT]
    assert "pay" not in done and Effect.UNKNOWN in {tree.effect[i] for i in waiting}


@pytest.mark.asyncio
async def test_a_world_that_cannot_be_asked_leaves_effects_unknown_until_the_pop() -> None:
    tree, done = await grown(trouble=True)
    assert not done and {tree.effect[i] for i in tree.children[0] if i not in tree.pops} <= {Effect.UNKNOWN}


@pytest.mark.asyncio
@pytest.mark.parametrize(("share", "looks"), [(True, 1), (False, 2)])
async def test_two_wordings_of_one_read_run_once_where_results_are_shared(share: bool, looks: int) -> None:
    done: list[Any] = []

    async def opened() -> Desk:
        return Desk(done)

    policy = scripted_choice([('use {"what": "look"}', 0.5), ('use { "what": "look" }', 0.5)])
    tree = await search(
        TASK, Pool(opened), policy, rule=rule("uniform_cost", draws=1, root_draws=6, eager=False),
        budget=Budget(expansions=3), settings=Settings(seed=1, share_results=share),
    )  # fmt: skip
    popped = [node for node in tree.pops if tree.depth[node] == 1]
    assert len(popped) == 2 and len({tree.text[node] for node in popped}) == 2
    assert {not_none(tree.observation[node]).text for node in popped} == {"after ('look',)"}
    assert done.count("look") - sum(tree.depth[node] == 2 for node in tree.pops) == looks
