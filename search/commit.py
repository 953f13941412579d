"""Executing a chosen path for real in a live world: every irreversible action at most once.

    result = await commit(tree, tree.chosen, pool, approve="ask", journal=store.journal)

Reads and reversible steps are repeated with their recorded keys and checked against the recorded fingerprints. Before
an irreversible action (an unknown one counts as one) comes the approval, bound to its canonical key; then the journal
has the intent on disk, then that it is being sent, then it is sent, then the answer. A process that dies in between
leaves an entry that says how far it got. What was sent and not answered is in doubt: the next start reports it and
nothing sends it again.

The promise, for every world that is not declared sandboxed: one approval, at most one execution. A search executes
nothing of irreversible or unknown effect; a commit executes it once, after the approval; and nothing executes it again
afterwards: no restore, replay, repair, retry after a fault, resume after a kill, or search that goes on from here. A
node that could be reached in no other way is UNREACHABLE. It holds as far as effects are known before an action is
executed: an environment that calls a mail a read is believed. It is at most once, not exactly once.

A commit ends its tree. Search goes on in a new one, see `continue_from`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from treewright.envs.errors import Divergence, EnvFault, InvalidAction, RestoreUnsupported
from treewright.envs.types import (
    Action,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
)
from treewright.envs.waiting import done_anyway
from treewright.search.approval import Approval, Approve, approves, open_approval
from treewright.search.continued import continue_from, past_of
from treewright.search.past import Past
from treewright.search.restore import Pool, Session, Snapshots, Waypoint
from treewright.search.store.journal import JournalEntry, JournalState
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

__all__ = [
    "Approve",
    "CommitJournal",
    "CommitResult",
    "Next",
    "commit",
    "continue_from",
    "needs_approval",
    "open_approval",
    "recover",
]


class CommitJournal(Protocol):
    """The journal of the tree store. Every call returns only when its row is on disk."""

    def entries(self, tree_id: str | None = None) -> Sequence[JournalEntry]:
        """Every entry in its last state, in order of intent; of one tree or of all."""

    async def intent(self, tree_id: str, node: int, call: int, action_key: str) -> int:
        """One call of an action is about to be sent; returns the entry's id."""

    async def dispatched(self, entry: int) -> None:
        """It is being sent. Raises where the entry was answered or given up in the meantime."""

    async def outcome(
        self,
        entry: int,
        state: JournalState,
        observation: Observation | None = None,
        *,
        reward: float | None = None,
        over: bool | None = None,
    ) -> None:
        """The answer: DONE, FAILED or IN_DOUBT, with what was seen; for DONE the reward, and whether it was the end."""


class Next(StrEnum):
    """What must be done after a commit.

    DONE      nothing: the episode is over
    CONTINUE  go on with a new search from where the world stands now (`continue_from`)
    APPROVE   the action of `refused` needs an approval; nothing irreversible after it was done
    SEARCH    the world is not where the tree expects it; search it anew
    SETTLE    a human must find out whether the actions of `in_doubt` happened, and then tell the journal:
              `await journal.outcome(entry.id, JournalState.DONE)` or `FAILED`
    """

    DONE = "done"
    CONTINUE = "continue"
    APPROVE = "approve"
    SEARCH = "search"
    SETTLE = "settle"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """What a commit did.

    committed    irreversible nodes that happened, and the leaf if it was reached
    refused      the node whose action was not approved, or None
    in_doubt     journal entries sent and not answered
    reached      the last node of the path at which the world stood; observation: what was seen there
    reward       sum of the world's rewards on the way; NaN in doubt
    task         the task with the turns that are left as its horizon
    snapshot     the state after the commit where the world can save it
    past         what the episode did up to `reached`, for the prompts of the next tree
    approved     canonical keys of the actions that were let through, in order; each was sent at most once
    """

    tree_id: str
    leaf: int
    next: Next
    reason: str
    committed: tuple[int, ...]
    refused: int | None
    in_doubt: tuple[JournalEntry, ...]
    reached: int
    observation: Observation
    reward: float
    task: Task
    snapshot: Snapshot | None = field(default=None, repr=False)
    approved: tuple[str, ...] = ()
    past: Past | None = field(default=None, repr=False)

    @property
    def continues(self) -> tuple[str, int]:
        """What the header of the next tree says: this tree and the node reached."""
        return self.tree_id, self.reached


async def commit(
    tree: Tree,
    leaf: int,
    pool: Pool,
    *,
    approve: Approve = "never",
    journal: CommitJournal,
    snapshots: Snapshots | None = None,
) -> CommitResult:
    """Executes the path from the root to `leaf` in the world of `pool`.

    approve    who may let an irreversible action through, see `Approve`
    journal    durable record of what was sent, `store.journal`; the same one for every commit of this tree
    snapshots  shortcuts to nodes of the tree; without them the path begins with a reset

    Node statuses become COMMITTED or IN_DOUBT; their record is the journal, from which `recover` gives them to a tree
    that was loaded again. Faults, refusals and divergences are results, not exceptions. Raises IndexError for a leaf
    that is not in the tree and TreewrightError for an approval that cannot be asked, before anything was done.
    """
    allowed = open_approval(approve)
    path = tree.path(tree[leaf].id)
    doubts = await recover(journal, tree)
    run = _Run(tree, leaf, path, pool, allowed, journal, snapshots or Snapshots())
    if doubts:
        return run.result(Next.SETTLE, f"{len(doubts)} action(s) were sent and never answered", in_doubt=doubts)
    if run.before() is not None:
        return run.stands(f"node {run.reached} was committed before; it is not done again")
    try:
        async with pool.lease(tree.tree_id, (tree.seed[leaf],)) as session:
            return await run.walk(session)
    except _Stop as stop:
        return run.result(stop.then, str(stop), refused=stop.refused, in_doubt=stop.in_doubt)
    except (EnvFault, Divergence, RestoreUnsupported) as error:
        return run.result(Next.SEARCH, f"{type(error).__name__}: {error}")


def committed_before(tree: Tree, leaf: int, pool: Pool, journal: CommitJournal, reached: int | None) -> CommitResult:
    """What a commit of an earlier process did, after which the next tree was begun at `reached` of this one.

    None for a next tree that was begun at the same place as this one: nothing of this one was done.
    """
    run = _Run(tree, leaf, tree.path(leaf), pool, open_approval("never"), journal, Snapshots())
    if reached is None:
        return run.result(Next.SEARCH, "the world was not where the tree expected it")
    run.before()
    for node in run.path:
        if run.reached < node <= reached:
            run.reached, run.seen = node, tree.observation[node] or Observation("")
            run.reward += tree.reward(node)
    return run.result(Next.CONTINUE, "executed before; it is not done again")


def needs_approval(tree: Tree, node: int) -> bool:
    """The search knew the node's action to be irreversible; the live world may find further ones at commit.

    UNKNOWN counts once it was executed; of a draft it only means that nobody looked.
    """
    effect = tree.effect[node]
    return effect is Effect.IRREVERSIBLE or (effect is Effect.UNKNOWN and tree.observation[node] is not None)


async def recover(journal: CommitJournal, tree: Tree | None = None) -> tuple[JournalEntry, ...]:
    """What an earlier process left behind, of one tree or of the whole journal: the entries in doubt.

    Entries that were about to be sent and never were are closed as FAILED; those sent and not answered become
    IN_DOUBT. Nodes of `tree` get the status that the journal knows. Call it at every start.
    """
    doubts = []
    for entry in journal.entries(tree.tree_id if tree is not None else None):
        if entry.state is JournalState.INTENT:
            await journal.outcome(entry.id, JournalState.FAILED, Observation("never sent", "", provenance="error"))
        elif entry.state is JournalState.DISPATCHED:
            await journal.outcome(entry.id, JournalState.IN_DOUBT)
            doubts.append(replace(entry, state=JournalState.IN_DOUBT))
        elif entry.state is JournalState.IN_DOUBT:
            doubts.append(entry)
        elif entry.state is JournalState.DONE and tree is not None:
            tree.mark(entry.node, NodeStatus.COMMITTED, entry.observation)
    if tree is not None:
        for entry in doubts:
            tree.mark(entry.node, NodeStatus.IN_DOUBT)
    return tuple(doubts)


class _Stop(Exception):
    """The commit ends before its leaf."""

    def __init__(
        self, then: Next, reason: str, *, refused: int | None = None, in_doubt: Sequence[JournalEntry] = ()
    ) -> None:
        super().__init__(reason)
        self.then, self.refused, self.in_doubt = then, refused, tuple(in_doubt)


@dataclass(slots=True)
class _Run:
    """One commit under way."""

    tree: Tree
    leaf: int
    path: Sequence[int]
    pool: Pool
    allowed: Approval
    journal: CommitJournal
    snapshots: Snapshots
    committed: list[int] = field(default_factory=list)
    reached: int = 0
    seen: Observation = field(default_factory=lambda: Observation(""))
    reward: float = 0.0
    over: bool = False
    approved: list[str] = field(default_factory=list)

    async def walk(self, session: Session) -> CommitResult:
        """Step by step from the nearest node that costs nothing; from the root if there is none."""
        points = [self._waypoint(node) for node in self.path]
        at = await self._start(session, points)
        for node, point in zip(self.path[at + 1 :], points[at + 1 :], strict=True):
            if point.action is None:  # invalid output: nothing was executed then, nothing is now
                self.reached = node
                continue
            if self.over:
                raise _Stop(Next.SEARCH, f"the world ended the episode before node {node}")
            result = await self._take(session, node, point.action, point.key)
            self._arrive(session, node, result)
            self._verify(node, result.observation.fingerprint)
        if self.leaf not in self.committed and self.leaf:
            self.committed.append(self.leaf)
            self.tree.mark(self.leaf, NodeStatus.COMMITTED)
        if self.over or self.tree.turns(self.leaf) >= self.tree.task.horizon:
            return self.stands("the path was executed")
        saved = None
        if session.env.restore_ways & {Restore.FORK, Restore.STATE}:
            saved = await self.pool.timed(session.env.snapshot(), "snapshot")
        return self.result(Next.CONTINUE, "the path was executed", snapshot=saved)

    def before(self) -> int | None:
        """Puts the run where an earlier process left the world: at the last node of the path that the journal has."""
        done: dict[int, JournalEntry] = {}
        for entry in self.journal.entries(self.tree.tree_id):
            if entry.state is JournalState.DONE:
                done.setdefault(entry.node, entry)
        self.committed = [node for node in self.path if node in done]
        if not self.committed:
            return None
        last = self.committed[-1]
        self.reached, self.over = last, bool(done[last].over)
        self.seen = done[last].observation or self.tree.observation[last] or Observation("")
        for node in self.path[1 : self.path.index(last) + 1]:  # of what was settled by hand nobody knows the reward
            known = done[node].reward if node in done else self.tree.reward(node)
            self.reward += math.nan if known is None else known
        return last

    def stands(self, reason: str) -> CommitResult:
        """Where the world stands without a saved state of it."""
        spent = self.tree.turns(self.reached) >= self.tree.task.horizon
        return self.result(Next.DONE if self.over or spent else Next.CONTINUE, reason)

    async def _take(self, session: Session, node: int, action: Action, key: int) -> StepResult:
        """One action, sent as its effect demands."""
        session.lost()
        effect = await self.pool.timed(session.env.effect(action), "effect")
        try:
            if not (effect.needs_commit or needs_approval(self.tree, node)):
                return await self.pool.timed(session.env.step(action, key), "commit")
            if not await approves(self.allowed, self.tree.task, action):
                raise _Stop(Next.APPROVE, f"not approved: {action.key}", refused=node)
            self.approved.append(action.key)
            result = await self._send(session, node, action, key)
        except InvalidAction as error:
            raise _Stop(Next.SEARCH, f"the world refused node {node}: {error}") from error
        self.tree.mark(node, NodeStatus.COMMITTED, result.observation, result.reward)
        self.committed.append(node)
        return result

    def _waypoint(self, node: int) -> Waypoint:
        tree = self.tree
        seen = tree.observation[node]
        action = tree.action[node] if tree.error[node] is None else None
        # A copy by way of the canonical key: nobody who holds the tree's action can change what is sent.
        bound = Action.from_key(action.key) if action is not None else None
        return Waypoint(tree.seed[node], tree.key(node), bound, seen.fingerprint if seen else "")

    async def _start(self, session: Session, points: Sequence[Waypoint]) -> int:
        """Brings the session to a node before the first irreversible one and returns its place on the path."""
        irreversible = [i for i, node in enumerate(self.path) if i and needs_approval(self.tree, node)]
        last = min([*irreversible, len(points)]) - 1
        here = session.at if session.tree == self.tree.tree_id else None
        free = [i for i in range(last + 1) if points[i].seed == here or points[i].seed in self.snapshots]
        # The last step of the path is always taken here, so that its answer is seen and not only its fingerprint.
        at = max((i for i in free if i < len(points) - 1), default=0)
        if here == points[-1].seed:
            session.lost()
        await self.pool.reach(session, self.tree.tree_id, self.tree.task, points[: at + 1], self.snapshots)
        self.reached, self.seen = self.path[at], self.tree.observation[self.path[at]] or Observation("")
        return at

    async def _send(self, session: Session, node: int, action: Action, key: int) -> StepResult:
        """Intent, dispatch, outcome. Raises InvalidAction where nothing happened and _Stop where nobody knows."""
        tree_id = self.tree.tree_id
        keys = [Action((call,)).key for call in action.calls]
        entries = [await self.journal.intent(tree_id, node, i, call_key) for i, call_key in enumerate(keys)]
        await self._first(node, entries)
        for entry in entries:
            await self.journal.dispatched(entry)
        try:
            result = await self.pool.timed(session.env.step(action, key), "commit")
        except InvalidAction as error:
            await self._answer(entries, JournalState.FAILED, Observation(f"error: {error}", "", provenance="error"))
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            doubt = Observation(reason, "", provenance="error")
            await done_anyway(self._answer(entries, JournalState.IN_DOUBT, doubt))
            if not isinstance(error, Exception):
                raise
            found = [entry for entry in self.journal.entries(tree_id) if entry.id in entries]
            self.tree.mark(node, NodeStatus.IN_DOUBT)
            raise _Stop(Next.SETTLE, f"node {node} was sent and not answered: {reason}", in_doubt=found) from error
        over = result.terminated or result.truncated
        for entry in entries:
            await self.journal.outcome(entry, JournalState.DONE, result.observation, reward=result.reward, over=over)
        return result

    async def _first(self, node: int, entries: Sequence[int]) -> None:
        """Two commits of one node at once: the one whose intent is older goes on, the other gives up."""
        for other in self.journal.entries(self.tree.tree_id):
            if other.node == node and other.id < entries[0] and other.state is not JournalState.FAILED:
                await self._answer(entries, JournalState.FAILED, Observation("never sent", "", provenance="error"))
                raise _Stop(Next.SETTLE, f"node {node} is being committed by somebody else", in_doubt=[other])

    async def _answer(self, entries: Sequence[int], state: JournalState, seen: Observation) -> None:
        for entry in entries:
            await self.journal.outcome(entry, state, seen)

    def _arrive(self, session: Session, node: int, result: StepResult) -> None:
        session.at = self.tree.seed[node]
        self.reached, self.seen = node, result.observation
        self.reward += result.reward
        self.over = result.terminated or result.truncated

    def _verify(self, node: int, found: str) -> None:
        recorded = self.tree.observation[node]
        if recorded is not None and recorded.fingerprint != found:
            raise Divergence(recorded.fingerprint, found, self.tree.depth[node])

    def result(
        self,
        then: Next,
        reason: str,
        *,
        refused: int | None = None,
        in_doubt: tuple[JournalEntry, ...] = (),
        snapshot: Snapshot | None = None,
    ) -> CommitResult:
        left = max(1, self.tree.task.horizon - self.tree.turns(self.reached))
        return CommitResult(
            tree_id=self.tree.tree_id,
            leaf=self.leaf,
            next=then,
            reason=reason,
            committed=tuple(self.committed),
            refused=refused,
            in_doubt=in_doubt,
            reached=self.reached,
            observation=self.seen,
            reward=math.nan if in_doubt else self.reward,
            task=replace(self.tree.task, horizon=left),
            snapshot=snapshot,
            approved=tuple(self.approved),
            past=past_of(self.tree, self.reached),
        )
