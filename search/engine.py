"""The search: pop, restore, propose, screen, step, evaluate, append. One loop for every rule and world.

Nothing that a result depends on may depend on timing: with W expansions in flight, pop j sees exactly the results of
the pops up to j−W, applied in the order of the pops. Sessions only execute, so one session and eight give the same
tree. A result is an `Expansion`; a resumed search reads the stored ones back instead of computing them, and so arrives
at the tree, frontier and budget of a search that was never interrupted.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from treewright.envs.errors import EnvFault, TreewrightError
from treewright.envs.types import Effect, Environment, Observation, Restore, Suite, Task, is_sandboxed, seed_of
from treewright.search.evidence import Evidence
from treewright.search.expand import Expander, Pop
from treewright.search.frontier import Frontier
from treewright.search.peers import Peers
from treewright.search.restore import Pool, Snapshots
from treewright.search.retake import Repairs, is_repair
from treewright.search.rules import Rule, best_first, frontier_of
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import (
    Budget,
    Costly,
    Evaluator,
    Expansion,
    NodeStatus,
    Outcome,
    Proposer,
    Sampler,
    Spent,
    layers,
)

__all__ = ["Keeper", "Settings", "Stepper", "search"]


REPAIRS = 2  # times a step is taken again, unless the settings say otherwise
BUNDLE, LINGER = 64, 0.02  # expansions, and seconds one of them waits, before they are handed to the store together
GRACE = 1.0  # seconds that an expansion begun within the time budget may take beyond it
TURN = 0.005  # seconds after which a search that never waits gives other tasks their turn


class Keeper(Protocol):
    """The part of the tree store that a search needs; writes are queued in order and durable once flushed."""

    def status(self, tree_id: str) -> str | None: ...
    def header(self, tree_id: str) -> TreeHeader: ...
    def expansions(self, tree_id: str) -> Sequence[Expansion]: ...
    def load(self, tree_id: str) -> Tree: ...
    def create(self, header: TreeHeader) -> object: ...
    def append_nowait(self, tree_id: str, expansion: Expansion, first_id: int) -> object: ...
    def finish(self, tree: Tree) -> object: ...
    async def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How a tree is grown; stored with it, and a resume with other settings is refused.

    run, attempt, seed  name the tree and seed every draw and step
    in_flight   expansions at once; part of the result, unlike the number of sessions
    max_tokens  most tokens of one draw
    close       finish every open node by one rollout when the budget is spent: needed to train on the tree
    answers     stop once this many finished leaves were seen (closing still happens); None = never
    retries     how often a faulty action is tried again from a restored node
    repairs     how often a step is taken again where a replay found another state than recorded; 0 = never
    peers       most other branches that a prompt tells of, see treewright.search.peers; 0 = none
    share_results  drafts of one expansion with equal actions in other words share one step of the world. For worlds
                whose steps do not depend on the step's key; each draft goes on in its own context
    merge       token-identical draws of a node become one, with their multiplicity: it is executed and gone on from
                once. False keeps them apart, each with its own step and subtree, which tells more where rewards or
                steps are random. Both are exact
    """

    run: str = "run"
    attempt: int = 0
    seed: int = 0
    in_flight: int = 1
    max_tokens: int = 48
    close: bool = False
    answers: int | None = None
    retries: int = 2
    repairs: int = REPAIRS
    peers: int = 0
    share_results: bool = False
    merge: bool = True

    def __post_init__(self) -> None:
        for name in ("in_flight", "max_tokens"):
            if getattr(self, name) < 1:
                raise TreewrightError(f"settings.{name} = {getattr(self, name)}; it must be at least 1")
        for name in ("repairs", "peers"):
            if getattr(self, name) < 0:
                raise TreewrightError(f"settings.{name} = {getattr(self, name)}; it must be at least 0")


async def search(
    task: Task,
    env: Environment | Suite | Pool,
    policy: Proposer,
    *,
    rule: Rule | None = None,
    evaluator: Evaluator | None = None,
    budget: Budget | None = None,
    settings: Settings | None = None,
    store: Keeper | None = None,
    on_expansion: Callable[[Tree, range], None] | None = None,
    continues: tuple[str, int] | None = None,
    changes: Callable[[Tree], Iterable[int]] | None = None,
    evidence: Evidence | None = None,
) -> Tree:
    """Grows one tree for one task and returns it, rewards revealed, with the chosen leaf in `tree.chosen`.

    env     an environment (used as the only session and left open), a suite (sessions are opened and closed here) or
            a Pool shared with other searches
    rule    what to expand next, best_first() if None;  budget  24 expansions if None
    store   keeps every expansion; an unfinished tree of the same (run, task, attempt) found there is resumed
    continues  (tree_id, node) of the commit that this search goes on from; kept in the header
    changes  asked after every pop which nodes' steps the world has changed since: they are taken again, and what hangs
             on them is only reached anew where it comes out the same; everything else stays as it is
    evidence  drafts must name what they act on, see `Evidence`
    Raises TreewrightError for contradictory input; faults of world or policy end in the tree, not in an exception.
    """
    rule, budget, settings = rule or best_first(), budget or Budget(expansions=24), settings or Settings()
    pool, owned = _pool_of(env)
    try:
        return await _Search(
            task,
            pool,
            policy,
            rule,
            evaluator,
            budget,
            settings,
            store,
            on_expansion,
            continues,
            changes,
            evidence,
        ).run()
    finally:
        if owned:
            await pool.close()


def _pool_of(env: Environment | Suite | Pool) -> tuple[Pool, bool]:
    if isinstance(env, Pool):
        return env, False
    if isinstance(env, Suite):
        return Pool(env.open), True

    async def given() -> Environment:
        return env

    return Pool(given), False


class _Search:
    """One running search. Everything a resume needs is in the header and the expansions; this object is disposable."""

    def __init__(
        self,
        task: Task,
        pool: Pool,
        policy: Proposer,
        rule: Rule,
        evaluator: Evaluator | None,
        budget: Budget,
        settings: Settings,
        store: Keeper | None,
        on_expansion: Callable[[Tree, range], None] | None,
        continues: tuple[str, int] | None = None,
        changes: Callable[[Tree], Iterable[int]] | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self.evidence = evidence
        self.task, self.pool, self.policy, self.rule = task, pool, policy, rule
        self.evaluator, self.budget, self.settings, self.store = evaluator, budget, settings, store
        self.on_expansion, self.continues, self.repairs = on_expansion, continues, Repairs(settings.repairs, changes)
        self.open_nodes = deque[int]()
        self.snapshots = Snapshots()
        self.recorded: Sequence[Expansion] = ()
        self.reserved = Spent()
        self.unsaved: list[tuple[Expansion, int]] = []
        self.linger: asyncio.TimerHandle | None = None
        self.finished = self.popped = 0
        self.began, self.earlier = time.monotonic(), 0.0
        self.seed = seed_of(settings.seed, task.suite, task.id, settings.attempt)

    # -- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> Tree:
        if (done := await self.start()) is not None:
            return done
        try:
            await self._grow(self._next, self.settings.in_flight)
            await self.close()
        finally:
            if self.store is not None:
                self._save()
                await asyncio.shield(self.store.flush())
        return await self.finish()

    async def start(self) -> Tree | None:
        """Resets or resumes; the tree itself if it was finished before."""
        header = self._header()
        status = self.store.status(header.tree_id) if self.store is not None else None
        if status == "done" and self.store is not None:
            return self.store.load(header.tree_id)
        self.tree, self.work = await self._begin(header, resume=status is not None)
        self.frontier: Frontier = frontier_of(self.rule, self.tree)
        if self.tree.status[0] is NodeStatus.OPEN:
            self._offer(0)
        return None

    async def close(self) -> None:
        """Prunes what the rule gave up; finishes every open node by one rollout, if the settings say so."""
        if self.rule.prunes is not None and self.frontier.dropped:
            self.tree.prune(self.frontier.dropped, self.rule.prunes)
        if self.settings.close and self.tree.status[0] is not NodeStatus.FAULT:
            self.open_nodes.extend(i for i in range(len(self.tree)) if self._unfinished(i))
            # Closing rollouts do not depend on each other: their number in flight changes nothing.
            await self._grow(self._next_open, max(self.settings.in_flight, self.pool.size))

    async def finish(self) -> Tree:
        self.tree.chosen = self.rule.choose(self.tree)
        if any(self._unfinished(i) for i in range(len(self.tree))):
            self.tree.inexact("open nodes were not closed")
        self.tree.reveal()
        if self.store is not None:
            self._save()
            self.store.finish(self.tree)
            await self.store.flush()
        return self.tree

    async def _grow(self, pick: Callable[[], tuple[int, Spent] | None], width: int) -> None:
        """Pops, expands up to `width` at once, applies in the order of the pops."""
        self.popped, closing = len(self.tree.pops), pick == self._next_open
        if width == 1 and self.budget.seconds is None:
            return await self._grow_singly(pick, closing)
        flying: deque[tuple[asyncio.Task[Expansion] | Expansion, Spent]] = deque()
        try:
            while True:
                while len(flying) < width and (picked := pick()) is not None:
                    node, reserve = picked
                    self.reserved = self.reserved + reserve
                    work = self._dispatch(self.popped, node, closing)
                    flying.append((work if isinstance(work, Expansion) else asyncio.create_task(work), reserve))
                    self.popped += 1
                if not flying:
                    return
                job, reserve = flying[0]
                expansion = job if isinstance(job, Expansion) else await self._in_time(job, closing)
                if expansion is None:
                    return
                flying.popleft()
                self.reserved = self.reserved + -reserve
                self._apply(expansion)
        finally:
            pending = [job for job, _ in flying if isinstance(job, asyncio.Task)]
            for job in pending:
                job.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _grow_singly(self, pick: Callable[[], tuple[int, Spent] | None], closing: bool) -> None:
        """With one pop in flight none needs a task of its own."""
        turn = time.monotonic() + TURN
        while (picked := pick()) is not None:
            job = self._dispatch(self.popped, picked[0], closing)
            self.popped += 1
            self._apply(job if isinstance(job, Expansion) else await job)
            if time.monotonic() > turn:
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN

    async def _in_time(self, job: asyncio.Task[Expansion], closing: bool) -> Expansion | None:
        """The result, or None if the time budget ran out on it; a closing rollout always runs to its end."""
        if closing or self.budget.seconds is None:
            return await job
        done, _ = await asyncio.wait({job}, timeout=max(self.budget.seconds + GRACE - self._seconds(), 0.05))
        if not done:
            self.tree.stopped_by = "seconds"
            return None
        return job.result()

    def _seconds(self) -> float:
        """Time used, that of an interrupted search before this one included."""
        return self.earlier + time.monotonic() - self.began

    def _dispatch(self, seq: int, node: int, closing: bool) -> Coroutine[Any, Any, Expansion] | Expansion:
        """The stored result of a pop, or the work that makes it."""
        if seq < len(self.recorded):
            expansion = self.recorded[seq]
            if (expansion.node, expansion.closing) != (node, closing):
                raise TreewrightError(
                    f"cannot resume tree {self.tree.tree_id}: stored pop {seq} expanded node {expansion.node}, this "
                    f"rule pops node {node}; it was grown by another rule or version: start a run with a new name"
                )
            return expansion
        if closing:
            return self.work.close(seq, node)
        again = self.repairs.of_pop.pop(seq, None)
        return self.work.expand(seq, node, self.rule.draws(self.tree[node]), again)

    def _apply(self, expansion: Expansion) -> None:
        new = self.tree.apply(expansion)
        if self.work.peers is not None:
            self.work.peers.note(self.tree, expansion, new)
        self.finished += sum(self.tree.status[i] in (NodeStatus.TERMINAL, NodeStatus.TRUNCATED) for i in new)
        if not expansion.closing:
            if not is_repair(self.tree, expansion):  # which took nothing from the frontier
                self.frontier.applied(expansion.node, new)
            for node in new:
                if self._spared(node):
                    self._offer(node)
            self.repairs.look(self.tree, expansion, new)
        if self.store is not None and expansion.seq >= len(self.recorded):
            self.unsaved.append((expansion, new.start))
            if len(self.unsaved) == 1:
                self.linger = asyncio.get_running_loop().call_later(LINGER, self._save_late)
            elif len(self.unsaved) == BUNDLE:
                self._save()
        if self.on_expansion is not None:
            self.on_expansion(self.tree, new)

    def _spared(self, node: int) -> bool:
        """False for a new node that the rule stops or that loses its coin; the tree records either."""
        tree, rule = self.tree, self.rule
        if not self._waits(node):
            return True
        if rule.stop is not None and (why := rule.stop(tree[node])) is not None:
            tree.status[node] = NodeStatus.PRUNED
            tree.inexact(why)
        elif rule.keep is not None:
            tree.toss(node, rule.keep(tree[node]))
        return tree.status[node] is not NodeStatus.PRUNED

    def _waits(self, node: int) -> bool:
        """A pop could do something with it."""
        return self.tree.status[node] is NodeStatus.OPEN or (not self.work.eager and self._unfinished(node))

    def _save(self) -> None:
        """Hands what waits to the store, in one go: it becomes one transaction."""
        if self.linger is not None:
            self.linger.cancel()
        waiting, self.unsaved = self.unsaved, []
        if self.store is not None:
            for expansion, first in waiting:
                self.store.append_nowait(self.tree.tree_id, expansion, first)

    def _save_late(self) -> None:
        """`_save` from a timer, where nobody hears an error: a store that cannot write says so at the next flush."""
        with suppress(TreewrightError):
            self._save()

    def _offer(self, node: int) -> None:
        """Puts a node on the frontier if a pop could do something with it."""
        if self._waits(node):
            self.frontier.offer(node)

    def _next(self) -> tuple[int, Spent] | None:
        if self._stored_growth_ended():
            return None
        if self.settings.answers is not None and self.finished >= self.settings.answers:
            self.tree.stopped_by = "answers"
            return None
        stored = self.recorded[self.popped] if self.popped < len(self.recorded) else None
        broken = self.repairs.next(self.tree, self.popped, stored)
        node = self._best() if broken is None else self.tree.parent[broken]
        if node is None:
            return None
        reserve = self._reserve(node) if broken is None else Spent(1, 0, 0, 1)
        self.tree.stopped_by = self._over(reserve)
        if self.tree.stopped_by is not None:
            return None
        return (self.frontier.take() if broken is None else node), reserve

    def _best(self) -> int | None:
        """What the frontier shows, or the rule expands again; what a repair has cut off is taken out on the way."""
        while (node := self.frontier.peek()) is not None:
            if not self.tree.repaired or self.tree.status[node] is not NodeStatus.UNREACHABLE:
                return node
            self.frontier.take()
            self.frontier.applied(node, range(0))
        if self.rule.again is not None and self.popped == len(self.tree.pops):
            chosen = self.rule.again(self.tree)
            if chosen is not None:
                self.frontier.offer(chosen)
        return self.frontier.peek()

    def _next_open(self) -> tuple[int, Spent] | None:
        return (self.open_nodes.popleft(), Spent()) if self.open_nodes else None

    def _stored_growth_ended(self) -> bool:
        """The interrupted search had gone on to close nodes (it may have stopped by the clock): so do we."""
        return self.popped < len(self.recorded) and self.recorded[self.popped].closing

    def _over(self, reserve: Spent) -> str | None:
        """The ceiling that one more pop could pass. Stored pops were made within the time they had."""
        if len(self.tree.pops) < len(self.recorded):
            return replace(self.budget, seconds=None).exhausted(self.tree.spent + self.reserved, reserve)
        spent = self.tree.spent + self.reserved
        if self.budget.seconds is not None:
            spent = replace(spent, seconds=self._seconds())
        return self.budget.exhausted(spent, reserve)

    def _reserve(self, node: int) -> Spent:
        """The most a pop can cost, known before it is dispatched."""
        draws = self.rule.draws(self.tree[node])
        if draws < 1:
            raise TreewrightError(f"rule {self.rule.name!r} gave node {node} {draws} draws; at least 1 is needed")
        steps = draws if self.work.eager else 1
        costly = next((p for p in layers(self.policy) if isinstance(p, Costly)), None)
        money = draws * costly.dearest(self.settings.max_tokens) if costly is not None else 0.0
        return Spent(1, draws * self.settings.max_tokens, 0, steps, money=money)

    def _unfinished(self, node: int) -> bool:
        """Open, or a draft that may still be executed: its effect is not known to wait for commit."""
        status = self.tree.status[node]
        return status is NodeStatus.OPEN or (status is NodeStatus.DRAFT and self.tree.effect[node] is Effect.UNKNOWN)

    # -- starting and resuming ----------------------------------------------------------------------------------

    def _header(self) -> TreeHeader:
        settings = {**asdict(self.settings), "rule": self.rule.name, "budget": asdict(self.budget)}
        settings["width"] = settings.pop("in_flight")  # as it was called when the first trees were stored
        if self.settings.repairs == REPAIRS:
            del settings["repairs"]  # trees begun before there were repairs have no such setting
        for name in ("share_results", "peers"):
            if not settings[name]:
                del settings[name]
        if self.settings.merge:
            del settings["merge"]
        if self.evidence is not None:
            settings["evidence"] = self.evidence.name
        sampler = next((p for p in layers(self.policy) if isinstance(p, Sampler)), None)
        if sampler is not None and sampler.sampling:
            settings["sampling"] = sampler.sampling  # how draws differ from plain ones at temperature 1
        root = Outcome(Observation(""), NodeStatus.OPEN)
        run, attempt, version = self.settings.run, self.settings.attempt, self.policy.version
        return TreeHeader(run, self.task, attempt, self.seed, version, settings, root, self.continues)

    async def _begin(self, header: TreeHeader, resume: bool) -> tuple[Tree, Expander]:
        async with self.pool.lease(header.tree_id) as session:
            ways, sandboxed = session.env.restore_ways, is_sandboxed(session.env)
        eager = self.rule.eager if self.rule.eager is not None else bool(ways & {Restore.FORK, Restore.STATE})
        work = Expander(
            self.task, self.pool, self.policy, self.evaluator, self.settings.max_tokens, self.settings.retries,
            eager, sandboxed, ways, Tree.start(header), self.snapshots, {}, OrderedDict(), self.evidence,
            self.settings.share_results, self.settings.merge,
            peers=Peers(self.settings.peers, self.settings.in_flight) if self.settings.peers else None,
        )  # fmt: skip
        if resume:
            work.tree = self._resume(header)
        else:
            work.tree = Tree.start(replace(header, root=await self._reset(work)))
            if self.store is not None:
                self.store.create(work.tree.header)
        return work.tree, work

    def _resume(self, header: TreeHeader) -> Tree:
        assert self.store is not None
        stored = self.store.header(header.tree_id)
        if stored.settings != header.settings:
            keys = sorted({*stored.settings, *header.settings})
            changed = [k for k in keys if stored.settings.get(k) != header.settings.get(k)]
            raise TreewrightError(
                f"cannot resume tree {stored.tree_id}: {', '.join(changed)} changed since it was begun; "
                "use the stored settings or another run name"
            )
        self.recorded = self.store.expansions(stored.tree_id)
        self.earlier = sum(e.spent.seconds for e in self.recorded)
        tree = Tree.start(stored)
        if stored.policy_version != self.policy.version:
            tree.inexact(f"resumed with policy {self.policy.version}, begun with {stored.policy_version}")
        return tree

    async def _reset(self, work: Expander) -> Outcome:
        fault = ""
        for _ in range(self.settings.retries + 1):
            try:
                async with self.pool.lease(work.tree.tree_id) as session:
                    try:
                        return await work.reset(session)
                    except EnvFault as error:
                        fault = f"{type(error).__name__}: {error}"
                        await self.pool.replace(session)
            except EnvFault as error:  # not even a new session could be had
                fault = f"{type(error).__name__}: {error}"
        return Outcome(Observation(fault, "", "error"), NodeStatus.FAULT, reward=math.nan, fault=fault)


class Stepper:
    """A search that is driven from outside, one pop at a time and phase by phase; ends in the tree of `search`.

    done = await stepper.start()
    while done is None and (pop := stepper.pop()):
        await stepper.work.propose(pop); stepper.work.screen(pop)
        await stepper.work.explore(pop); await stepper.work.judge(pop)
        stepper.apply(pop)
    tree = done or await stepper.finish()

    Only one expansion at a time can be stepped: more pops at once would not see each other's results in order.
    """

    def __init__(
        self,
        task: Task,
        pool: Pool,
        policy: Proposer,
        *,
        rule: Rule,
        evaluator: Evaluator | None = None,
        budget: Budget,
        settings: Settings,
        store: Keeper | None = None,
    ) -> None:
        if settings.in_flight != 1:
            raise TreewrightError(f"settings.in_flight = {settings.in_flight}; a search can only be stepped with 1")
        self._search = _Search(task, pool, policy, rule, evaluator, budget, settings, store, None)
        self.tree_id = self._search._header().tree_id

    @property
    def work(self) -> Expander:
        """The four phases of a pop; there once `start` has returned None."""
        return self._search.work

    async def start(self) -> Tree | None:
        """Resets, or resumes what the store has; the tree itself if it was finished before."""
        if (done := await self._search.start()) is not None:
            return done
        search = self._search
        while len(search.tree.pops) < len(search.recorded) and (node := self._pick()) is not None:
            stored = search._dispatch(len(search.tree.pops), node, closing=False)
            assert isinstance(stored, Expansion)
            search._apply(stored)
        return None

    def pop(self) -> Pop | None:
        """Takes the best node; None when the budget is spent or nothing is left."""
        node = self._pick()
        if node is None:
            return None
        search, seq = self._search, len(self._search.tree.pops)
        again = search.repairs.of_pop.pop(seq, None)
        return Pop(seq, node, search.rule.draws(search.tree[node]), again, first=search.tree.drawn[node])

    def _pick(self) -> int | None:
        self._search.popped = len(self._search.tree.pops)
        picked = self._search._next()
        return picked[0] if picked is not None else None

    def apply(self, pop: Pop) -> None:
        """Adds the result to the tree, the frontier and the store."""
        self._search._apply(pop.expansion())
        self._search._save()  # whoever drives from outside may stop at any step

    async def finish(self) -> Tree:
        """Closes open nodes if the settings say so, chooses, reveals, and waits until the store has it all."""
        await self._search.close()
        return await self._search.finish()
