"""Ways back in a live world: what cannot be undone is never executed a second time, and the node says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ledger_worlds import lines, write
from not_none import not_none

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import (
    Action,
    BaseEnvironment,
    Effect,
    EnvFault,
    Observation,
    RestoreUnsupported,
    StepResult,
    Task,
    ToolSpec,
)
from treewright.search.commit import Next, commit
from treewright.search.engine import Settings, search
from treewright.search.planning.repair import EnvironmentProbe
from treewright.search.restore import Pool
from treewright.search.rooted import search_from, start_at
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus

TASK = Task("post", "1", "write to ada", horizon=4)
WHY = "is not declared sandboxed: what happened for real is never repeated"


class Post(BaseEnvironment):
    """Declares nothing. `seen` is the effect that a step reports afterwards; `trouble` comes after the mail left."""

    name = "post"
    tools = (ToolSpec("send", "sends", {"type": "object", "properties": {"to": {"type": "integer"}}}),)

    def __init__(self, ledger: Path, seen: Effect = Effect.READ, trouble: bool = False) -> None:
        self.ledger, self.seen, self.trouble = ledger, seen, trouble
        self.sent: tuple[Any, ...] = ()

    async def reset(self, task: Task, key: int) -> Observation:
        self.sent = ()
        return Observation("ready", "()")

    async def step(self, action: Action, key: int) -> StepResult:
        write(self.ledger, str(key))
        if self.trouble:
            raise EnvFault("the line is dead")
        self.sent = (*self.sent, action.arguments["to"])
        return StepResult(Observation(f"sent {self.sent}", str(self.sent)), effect=self.seen)


class Misjudged(Post):
    """Takes its mails for reads until it sees what they did."""

    tools = (ToolSpec("send", "sends", Post.tools[0].parameters, Effect.READ),)


class Sandbox(Post):
    sandboxed = True


class Bare:
    """An environment of nothing but the methods that a search calls: not even `sandboxed` is there."""

    def __init__(self, inner: Post) -> None:
        self.inner = inner
        self.name, self.restore_ways, self.stochastic = "bare", inner.restore_ways, False
        for name in ("reset", "step", "actions", "effect", "snapshot", "restore", "close"):
            setattr(self, name, getattr(inner, name))


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def pool(make: Callable[[], Any], size: int = 1) -> Pool:
    async def opened() -> Any:
        return make()

    return Pool(opened, size)


def sender(task: Task, turns: Any, tools: Any, rng: Random) -> str:
    return f'send {{"to": {rng.randrange(100)}}}'


async def grow(
    where: Pool,
    eager: bool = True,
    store: TreeStore | None = None,
    changes: Callable[[Any], Any] | None = None,
    expansions: int = 8,
    **settings: Any,
) -> Tree:
    return await search(
        TASK, where, ScriptedPolicy(sender), rule=best_first(draws=2, root_draws=2, eager=eager), store=store,
        budget=Budget(expansions=expansions), settings=Settings(max_tokens=100, **settings), changes=changes,
    )  # fmt: skip


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("bare", [False, True])
async def test_a_world_that_declares_nothing_executes_nothing_of_unknown_effect_while_searching(
    ledger: Path, eager: bool, bare: bool
) -> None:
    tree = await grow(pool(lambda: Bare(Post(ledger)) if bare else Post(ledger)), eager)
    assert len(tree) == 3 and {tree.status[i] for i in (1, 2)} == {NodeStatus.DRAFT}
    assert lines(ledger) == []


async def test_a_declared_sandbox_repeats_as_it_likes(ledger: Path) -> None:
    tree = await grow(pool(lambda: Sandbox(ledger)))
    sent = lines(ledger)
    assert len(sent) > len(set(sent)) and tree.header.root.status is NodeStatus.OPEN


@pytest.mark.parametrize("sandboxed", [1, "yes", None])
async def test_only_true_declares_a_sandbox(ledger: Path, sandboxed: int | str | None) -> None:
    made = type("Odd", (Post,), {"sandboxed": sandboxed})
    await grow(pool(lambda: made(ledger)))
    assert lines(ledger) == []


@pytest.mark.parametrize("seen", [Effect.IRREVERSIBLE, Effect.UNKNOWN])
@pytest.mark.parametrize(("sessions", "eager"), [(1, True), (1, False), (8, True)])
async def test_a_step_that_was_seen_to_be_irreversible_is_not_replayed(
    ledger: Path, seen: Effect, sessions: int, eager: bool
) -> None:
    tree = await grow(pool(lambda: Misjudged(ledger, seen), sessions), eager, in_flight=2)
    sent = lines(ledger)
    assert len(sent) == len(set(sent)) > 0
    lost = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.UNREACHABLE]
    faults = [tree.fault[i] for i in lost] + [fault for pop in tree.pops if (fault := getattr(pop, "fault", None))]
    assert faults and all("RestoreUnsupported" in not_none(fault) and WHY in not_none(fault) for fault in faults)
    assert "Declare sandboxed = True" in not_none(faults[0])


async def test_a_fault_after_dispatch_is_not_retried_by_search_nor_by_commit(tmp_path: Path, ledger: Path) -> None:
    with TreeStore.open(tmp_path / "trees.db") as store:
        tree = await grow(pool(lambda: Post(ledger, trouble=True)), store=store, retries=3)
        assert lines(ledger) == []
        for _ in range(3):
            where = pool(lambda: Post(ledger, trouble=True))
            result = await commit(tree, 1, where, approve=lambda task, action: True, journal=store.journal)
            assert result.next is Next.SETTLE and len(lines(ledger)) == 1


async def test_a_step_that_the_world_has_changed_is_not_taken_again(ledger: Path) -> None:
    once: list[Any] = []

    def changes(tree: Tree) -> list[Any]:
        if len(tree.pops) == 3 and not once:
            once.append(True)
            return [1]
        return []

    tree = await grow(pool(lambda: Misjudged(ledger, Effect.IRREVERSIBLE)), changes=changes)
    sent = lines(ledger)
    assert once and len(sent) == len(set(sent)) and sent.count(str(tree.key(1))) == 1
    again = [i for i in range(len(tree)) if tree.supersedes(i) == 1]
    assert [tree.status[i] for i in again] == [NodeStatus.UNREACHABLE]


async def test_a_kill_between_two_appends_repeats_nothing_when_the_search_is_resumed(
    tmp_path: Path, ledger: Path
) -> None:
    with TreeStore.open(tmp_path / "trees.db") as store:

        class Half(Exception):
            pass

        def stop(tree: Tree, new: Any) -> None:
            if len(tree.pops) == 3:
                raise Half

        with pytest.raises(Half):
            await search(
                TASK, pool(lambda: Misjudged(ledger, Effect.IRREVERSIBLE)), ScriptedPolicy(sender), store=store,
                rule=best_first(draws=2, root_draws=2, eager=True), budget=Budget(expansions=8),
                settings=Settings(max_tokens=100), on_expansion=stop,
            )  # fmt: skip
        before = lines(ledger)
        tree = await grow(pool(lambda: Misjudged(ledger, Effect.IRREVERSIBLE)), store=store)
    assert lines(ledger) == before and any(s is NodeStatus.UNREACHABLE for s in tree.status)


@pytest.mark.parametrize("make", [Post, Misjudged])
async def test_a_tree_from_a_committed_node_does_not_make_its_call_again(
    tmp_path: Path, ledger: Path, make: type[Post] | type[Misjudged]
) -> None:
    with TreeStore.open(tmp_path / "trees.db") as store:
        tree = await grow(pool(lambda: make(ledger, Effect.IRREVERSIBLE)), store=store, expansions=1)
        if make is Post:
            yes = lambda task, action: True  # noqa: E731
            assert (await commit(tree, 1, pool(lambda: Post(ledger)), approve=yes, journal=store.journal)).committed
    before = lines(ledger)

    async def opened() -> Post:
        return make(ledger)

    grown = await search_from(
        start_at(tree, 1), opened, ScriptedPolicy(sender), respond=lambda text: list(text.encode()),
        settings=Settings(run="from", max_tokens=100),
    )  # fmt: skip
    assert lines(ledger) == before
    assert grown.status[1] is NodeStatus.UNREACHABLE and WHY in not_none(grown.fault[1])


async def test_a_planner_does_not_step_where_steps_cannot_be_undone(ledger: Path) -> None:
    probe = EnvironmentProbe(Post(ledger), TASK, actions=[Action.of("send", to=1)])
    start = await probe.start()
    with pytest.raises(RestoreUnsupported, match=WHY):
        await probe.look(start.to, start.actions[0], lambda: [])
    assert lines(ledger) == []
