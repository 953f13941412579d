"""The episode as a LangGraph graph: the engine's own tree, ids only in the state, approval by interrupt."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from commit_parts import TASK, FileJournal, Live, a_move, pressed
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from walker import Likelihood, Walker

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.graph import episode_graph
from treewright.envs import Action, TreewrightError
from treewright.envs.maze import SUITE
from treewright.envs.types import Task
from treewright.search.commit import Next
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget, NodeStatus

TASKS = SUITE.tasks("train", 3)
BUDGET = Budget(expansions=12)
CONFIG = {"configurable": {"thread_id": "1"}}


def explore(
    ended: list[Any],
    policy: Walker | ScriptedPolicy | None = None,
    tasks: list[Any] | Sequence[Task] = TASKS,
    pool: Pool | None = None,
    **options: Any,
) -> Any:
    options = {"evaluator": Likelihood(), "budget": BUDGET, **options}
    ends = lambda tree, result: ended.append((tree, result))  # noqa: E731
    return episode_graph(pool or Pool(SUITE.open), tasks, policy or Walker(), on_end=ends, **options)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("close", [True, False])
async def test_the_graph_grows_the_tree_of_the_bare_engine(eager: bool, close: bool) -> None:
    same: dict[str, Any] = {"rule": best_first(eager=eager), "settings": Settings(close=close)}
    bare = await search(TASKS[2], SUITE, Walker(), evaluator=Likelihood(), budget=BUDGET, **same)
    ended: list[Any] = []
    state = await explore(ended, **same).ainvoke({"task_id": TASKS[2].id})
    ((tree, result),) = ended
    assert tree.digest() == bare.digest() and tree.chosen == bare.chosen and result is None
    assert state["tree_id"] == bare.tree_id


async def test_the_phases_run_in_the_order_of_an_expansion() -> None:
    graph, seen = explore([], budget=Budget(expansions=2)), []
    async for update in graph.astream({"task_id": TASKS[0].id}, stream_mode="updates"):
        seen += update
    assert seen == ["propose", "explore"] * 2 + ["propose", "commit"]


async def test_every_checkpoint_holds_ids_only() -> None:
    graph = explore([], checkpointer=InMemorySaver())
    await graph.ainvoke({"task_id": TASKS[2].id}, CONFIG)
    states = [state.values async for state in graph.aget_state_history(CONFIG)]
    assert len(states) > 24  # two for each of twelve pops
    assert {key for values in states for key in values} == {"task_id", "tree_id", "node_id"}
    assert all(isinstance(v, int) or len(v) <= 32 for values in states for v in values.values())


async def test_two_threads_of_one_graph_do_not_mix() -> None:
    ended: list[Any] = []
    graph = explore(ended, pool=Pool(SUITE.open, 2))
    await asyncio.gather(*(graph.ainvoke({"task_id": task.id}) for task in TASKS[:2]))
    for tree, _ in ended:
        alone = await search(tree.task, SUITE, Walker(), evaluator=Likelihood(), budget=BUDGET)
        assert tree.digest() == alone.digest()


async def test_a_new_process_goes_on_from_the_store_in_mid_search(tmp_path: Path) -> None:
    bare = await search(TASKS[2], SUITE, Walker(), evaluator=Likelihood(), budget=BUDGET)
    ended: list[Any]
    saver, ended = InMemorySaver(), []
    with TreeStore.open(tmp_path / "trees.db") as store:
        steps = 0
        async for _ in explore([], store=store, checkpointer=saver).astream({"task_id": TASKS[2].id}, CONFIG):
            steps += 1
            if steps == 11:
                break
    policy = Walker()
    with TreeStore.open(tmp_path / "trees.db") as store:
        await explore(ended, policy, store=store, checkpointer=saver).ainvoke(None, CONFIG)
    assert ended[0][0].digest() == bare.digest()
    assert policy.asked == 12 - 11 // 2


# -- approval -------------------------------------------------------------------------------------------------------


def live_graph(tmp_path: Path, ended: list[Any], policy: ScriptedPolicy | None = None, **options: Any) -> Any:
    """Explores and commits in a live maze whose policy walks one step and presses."""
    ledger = tmp_path / "ledger"

    async def opened() -> Live:
        return Live(ledger)

    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        return "press {}" if turns else a_move()

    pool = Pool(opened)
    return explore(
        ended, policy or ScriptedPolicy(script), [TASK], pool, live=pool, evaluator=None,
        journal=FileJournal(tmp_path / "journal"), rule=best_first(draws=1, root_draws=1), **options,
    )  # fmt: skip


PRESS = Action.of("press").key


@pytest.mark.parametrize("answer", [True, PRESS, "yes", 1, False])
async def test_the_graph_interrupts_for_approval_and_resumes_with_the_answer(
    tmp_path: Path, answer: bool | str | int
) -> None:
    ended: list[Any]
    ended, times = [], int(answer is True or answer == PRESS)
    graph = live_graph(tmp_path, ended, checkpointer=InMemorySaver())
    state = await graph.ainvoke({"task_id": TASK.id}, CONFIG)
    (asked,) = state["__interrupt__"]
    assert asked.value == {"tree_id": state["tree_id"], "node_id": 2, "action": PRESS}
    assert pressed(tmp_path / "ledger") == [] and ended == []
    state = await graph.ainvoke(Command(resume=answer), CONFIG)
    ((tree, result),) = ended
    assert result.next is (Next.CONTINUE if times else Next.APPROVE) and len(pressed(tmp_path / "ledger")) == times
    assert tree.status[2] is (NodeStatus.COMMITTED if times else NodeStatus.DRAFT)
    assert state["node_id"] == (2 if times else 1)


async def test_a_new_process_resumes_an_approval_with_the_tree_of_the_store(tmp_path: Path) -> None:
    ended: list[Any]
    saver, ended = InMemorySaver(), []
    with TreeStore.open(tmp_path / "trees.db") as store:
        await live_graph(tmp_path, [], store=store, checkpointer=saver).ainvoke({"task_id": TASK.id}, CONFIG)

    def nothing(*_: Any) -> str:
        raise AssertionError("the policy must not be asked again")

    with TreeStore.open(tmp_path / "trees.db") as store:
        graph = live_graph(tmp_path, ended, ScriptedPolicy(nothing), store=store, checkpointer=saver)
        await graph.ainvoke(Command(resume=True), CONFIG)
    assert ended[0][1].committed == (2,) and len(pressed(tmp_path / "ledger")) == 1


async def test_a_new_process_without_a_store_grows_the_same_tree_again(tmp_path: Path) -> None:
    ended: list[Any]
    saver, ended = InMemorySaver(), []
    first = await live_graph(tmp_path, [], checkpointer=saver).ainvoke({"task_id": TASK.id}, CONFIG)
    graph = live_graph(tmp_path, ended, checkpointer=saver)
    again = await graph.ainvoke(Command(resume=True), CONFIG)
    assert again["__interrupt__"], "the answer was given to another process; this one asks again"
    await graph.ainvoke(Command(resume=True), CONFIG)
    assert ended[0][0].tree_id == first["tree_id"] and len(pressed(tmp_path / "ledger")) == 1


async def test_a_committed_action_is_not_asked_for_again_when_the_graph_forgot_it(tmp_path: Path) -> None:
    """Killed between the commit and the next checkpoint: the graph stands before the commit, the journal does not."""
    saver = InMemorySaver()
    ended: list[Any] = []
    with TreeStore.open(tmp_path / "trees.db") as store:
        await live_graph(tmp_path, [], store=store, checkpointer=saver).ainvoke({"task_id": TASK.id}, CONFIG)
    before = copy.deepcopy(saver.storage), copy.deepcopy(saver.writes), copy.deepcopy(saver.blobs)
    with TreeStore.open(tmp_path / "trees.db") as store:
        await live_graph(tmp_path, [], store=store, checkpointer=saver).ainvoke(Command(resume=True), CONFIG)
    saver.storage, saver.writes, saver.blobs = before
    with TreeStore.open(tmp_path / "trees.db") as store:
        graph = live_graph(tmp_path, ended, store=store, checkpointer=saver)
        state = await graph.ainvoke(None, CONFIG)
    ((tree, result),) = ended
    assert "__interrupt__" not in state and (result.next, result.reached) == (Next.CONTINUE, 2)
    assert state["node_id"] == 2 and tree.status[2] is NodeStatus.COMMITTED
    assert len(pressed(tmp_path / "ledger")) == 1


# -- errors ---------------------------------------------------------------------------------------------------------


async def test_contradictory_input_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match="no task 'trian-3-2'; did you mean 'train-3-2'"):
        await explore([]).ainvoke({"task_id": "trian-3-2"})
    with pytest.raises(TreewrightError, match="in_flight = 4; a search can only be stepped with 1"):
        explore([], settings=Settings(in_flight=4))
    with pytest.raises(TreewrightError, match="live needs a journal"):
        explore([], live=Pool(SUITE.open))
