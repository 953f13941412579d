"""The episode as a LangGraph graph, to be embedded in graphs of one's own; the engine itself stays plain.

    graph = episode_graph(Pool(suite.open), suite.tasks("train", 8), policy, checkpointer=InMemorySaver())
    await graph.ainvoke({"task_id": "train-3-0"}, {"configurable": {"thread_id": "1"}})

          ┌──────────┐
    propose → explore┘
       └─ budget spent → commit (interrupts for approval) → end

One round is one pop of the engine, and the tree is the one `search` grows with width 1: `propose` draws and screens,
`explore` executes, judges and applies. A step of the graph costs several times what a pop does, so there are no more
than can be stopped at usefully: before drafts are executed, and before the next are drawn. The state, and
so every checkpoint, holds ids only; what a checkpoint cannot hold lives in the process, and in the store. After a crash
the store wins: a pop that was under way is made again, with the same draws.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Task
from treewright.search.commit import CommitJournal, CommitResult, commit, needs_approval, recover
from treewright.search.engine import Keeper, Settings
from treewright.search.expand import Pop
from treewright.search.restore import Pool
from treewright.search.rules import Rule, best_first
from treewright.search.stepper import Stepper
from treewright.search.tree import Tree
from treewright.search.types import Budget, Evaluator, NodeStatus, Proposer

__all__ = ["EpisodeState", "episode_graph"]

ROUND, AROUND = 2, 16  # steps of the graph for one pop, and for everything else


class EpisodeState(TypedDict, total=False):
    """Ids only. Input: task_id. Output: the tree, and the node at which the episode stands (-1: no leaf to commit)."""

    task_id: str
    tree_id: str
    node_id: int


def episode_graph(
    pool: Pool,
    tasks: Sequence[Task],
    policy: Proposer,
    *,
    rule: Rule | None = None,
    evaluator: Evaluator | None = None,
    budget: Budget | None = None,
    settings: Settings | None = None,
    store: Keeper | None = None,
    live: Pool | None = None,
    journal: CommitJournal | None = None,
    on_end: Callable[[Tree, CommitResult | None], None] | None = None,
    checkpointer: Any = None,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A compiled graph that explores one task for each invocation; see `treewright.search` for what is not said here.

    pool, live    where to explore, and where to execute the chosen path for real (None: nothing is executed); the
                  caller closes both
    journal       of irreversible actions, needed with `live`: `store.journal`
    on_end        gets the finished tree and what its commit did
    checkpointer  any of LangGraph's; needed for approvals

    Before an irreversible action of the chosen path the graph interrupts with {"tree_id", "node_id", "action"}, where
    `action` is the canonical key. `Command(resume=True)`, or resuming with the key itself, approves exactly that
    action; anything else refuses it.

    Raises TreewrightError for `live` without a journal and for a width other than 1.
    """
    if live is not None and journal is None:
        raise TreewrightError("live needs a journal, or an action could happen twice; give journal=store.journal")
    budget, settings = budget or Budget(expansions=24), settings or Settings()

    def stepper(task: Task) -> Stepper:
        return Stepper(
            task, pool, policy, rule=rule or best_first(), evaluator=evaluator, budget=budget, settings=settings,
            store=store,
        )  # fmt: skip

    if tasks:
        stepper(tasks[0])  # contradictory settings are told now, not in the middle of an episode
    episodes = _Episodes({task.id: task for task in tasks}, stepper, live, journal, on_end, {})
    graph: Any = StateGraph(EpisodeState)
    graph.add_node("propose", episodes.propose)
    graph.add_node("explore", episodes.explore)
    graph.add_node("commit", episodes.commit)
    graph.add_edge(START, "propose")
    graph.add_edge("explore", "propose")
    compiled = graph.compile(checkpointer=checkpointer, name="episode")
    rounds = budget.expansions if budget.expansions is not None else 100_000
    return compiled.with_config(recursion_limit=ROUND * rounds + AROUND)


@dataclass(slots=True)
class _Running:
    """One episode in this process: `pop` while a round is under way, `tree` once the search is over."""

    stepper: Stepper
    tree: Tree | None
    pop: Pop | None = None


@dataclass(slots=True)
class _Episodes:
    """The nodes of the graph. Everything in `running`, by task, can be made again from the task and the store."""

    tasks: dict[str, Task]
    stepper: Callable[[Task], Stepper]
    live: Pool | None
    journal: CommitJournal | None
    on_end: Callable[[Tree, CommitResult | None], None] | None
    running: dict[str, _Running]

    async def propose(self, state: EpisodeState) -> Command[Literal["explore", "commit"]]:
        run = await self._run(state)
        ids = {"tree_id": run.stepper.tree_id}
        run.pop = run.stepper.pop() if run.tree is None else None
        if run.pop is not None:
            await run.stepper.work.propose(run.pop)
            run.stepper.work.screen(run.pop)
            return Command(update={**ids, "node_id": run.pop.node}, goto="explore")
        if run.tree is None:
            run.tree = await run.stepper.finish()
        leaf = run.tree.chosen
        return Command(update={**ids, "node_id": -1 if leaf is None else leaf}, goto="commit")

    async def explore(self, state: EpisodeState) -> EpisodeState:
        run = await self._run(state)
        if run.pop is not None:
            await run.stepper.work.explore(run.pop)
            await run.stepper.work.judge(run.pop)
            pop, run.pop = run.pop, None
            run.stepper.apply(pop)
        return {}

    async def commit(self, state: EpisodeState) -> Command[Literal["propose", "__end__"]]:
        run = await self._run(state)
        if run.tree is None:  # a new process without a store: grow the same tree again
            return Command(goto="propose")
        leaf, result = state["node_id"], None
        if leaf >= 0 and self.live is not None and self.journal is not None:
            await recover(self.journal, run.tree)
            approved = _approvals(run.tree, leaf)
            result = await commit(run.tree, leaf, self.live, approve=_among(approved), journal=self.journal)
            leaf = result.reached
        del self.running[state["task_id"]]
        if self.on_end is not None:
            self.on_end(run.tree, result)
        return Command(update={"node_id": leaf}, goto=END)

    async def _run(self, state: EpisodeState) -> _Running:
        """The episode in this process, begun or taken up from the store if it is not there."""
        name = state.get("task_id", "")
        if name not in self.tasks:
            near = difflib.get_close_matches(name, self.tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {len(self.tasks)} tasks"
            raise TreewrightError(f"this graph has no task {name!r}; {hint}")
        if name not in self.running:
            stepper = self.stepper(self.tasks[name])
            self.running[name] = _Running(stepper, await stepper.start())
        return self.running[name]


def _approvals(tree: Tree, leaf: int) -> list[str]:
    """Asks for every irreversible action on the path; the keys that were approved.

    All are asked before anything is executed: LangGraph runs the node again from its beginning after each answer.
    """
    approved: list[str] = []
    path = tree.path(leaf)
    if any(tree.status[node] in (NodeStatus.COMMITTED, NodeStatus.IN_DOUBT) for node in path):
        return approved  # an earlier process was at it: nothing more of this path is sent
    for node in path[1:]:
        action = tree.action[node]
        if action is None or tree.error[node] is not None or not needs_approval(tree, node):
            continue
        answer = interrupt({"tree_id": tree.tree_id, "node_id": node, "action": action.key})
        if answer is True or answer == action.key:
            approved.append(action.key)
    return approved


def _among(approved: list[str]) -> Callable[[Task, Action], bool]:
    """Lets each approved action through once."""

    def allowed(task: Task, action: Action) -> bool:
        if action.key not in approved:
            return False
        approved.remove(action.key)
        return True

    return allowed
