"""The search: pop, restore, propose, screen, step, evaluate, append. One loop for every rule and world.

Nothing that a result depends on may depend on timing: with W expansions in flight, pop j sees exactly the results of
the pops up to j−W, applied in the order of the pops. Sessions only execute, so one session and eight give the same
tree. A result is an `Expansion`; a resumed search reads the stored ones back instead of computing them, and so arrives
at the tree, frontier and budget of a search that was never interrupted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Effect, Environment, Restore, Suite, Task, is_sandboxed, seed_of
from treewright.envs.waiting import done_anyway
from treewright.search.evidence import Evidence, Told
from treewright.search.expand import Expander
from treewright.search.frontier import Allotting, Frontier, Proving
from treewright.search.meter import measured, recorder, work_of
from treewright.search.past import Past
from treewright.search.peers import Peers
from treewright.search.restore import Pool, Snapshots
from treewright.search.resume import finished, first_outcome, header_of, resumed
from treewright.search.retake import Repairs, is_repair
from treewright.search.rules import Rule, best_first, frontier_of
from treewright.search.segments import segmenting
from treewright.search.settings import Keeper, Settings
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Budget, Costly, Evaluator, Expansion, NodeStatus, Proposer, Reader, Spent, layers

__all__ = ["Keeper", "Running", "Settings", "search"]


BUNDLE, LINGER = 64, 0.02  # expansions, and seconds one of them waits, before they are handed to the store together
GRACE = 1.0  # seconds that an expansion begun within the time budget may take beyond it
NOTHING = Spent()
TURN = 0.005  # seconds after which a search that never waits gives other tasks their turn


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
    past: Past | None = None,
) -> Tree:
    """Grows one tree for one task and returns it, rewards revealed, with the chosen leaf in `tree.chosen`.

    env     an environment (used as the only session and left open), a suite (sessions are opened and closed here) or
            a Pool shared with other searches
    rule    what to expand next, best_first() if None;  budget  24 expansions if None
    store   keeps every expansion; an unfinished tree of the same (run, task, attempt) found there is resumed
    continues, past  (tree_id, node) of the commit that this search goes on from, and what was done until then, which
            is shown to policy and evaluator (agents remember it themselves); kept in the header
    changes  asked after every pop which nodes' steps the world has changed since: they are taken again, and what hangs
             on them is only reached anew where it comes out the same; everything else stays as it is
    evidence  drafts must name what they act on, see `Evidence`
    Raises TreewrightError for contradictory input; faults of world or policy end in the tree, not in an exception.
    """
    rule, budget, settings = rule or best_first(), budget or Budget(expansions=24), settings or Settings()
    pool, owned = _pool_of(env)
    try:
        return await Running(
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
            past,
        ).run()
    finally:
        if owned:
            await pool.close()


def _pool_of(env: Environment | Suite | Pool) -> tuple[Pool, bool]:
    if isinstance(env, Pool):
        return env, False
    if isinstance(env, Suite):
        return Pool(env.open, around=env.around), True

    async def given() -> Environment:
        return env

    return Pool(given), False


class Running:
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
        past: Past | None = None,
    ) -> None:
        self.evidence, self.past = evidence, past if pool.around is None else None
        self.task, self.pool, self.rule = task, pool, rule
        self.policy: Proposer = policy if pool.around is None else pool.around(policy)
        if evidence is not None:
            self.policy = Told(self.policy, evidence.form)
        self.evaluator, self.budget, self.settings, self.store = evaluator, budget, settings, store
        self.on_expansion, self.continues, self.repairs = on_expansion, continues, Repairs(settings.repairs, changes)
        self.open_nodes = deque[int]()
        self.snapshots = Snapshots()
        self.recorded: Sequence[Expansion] = ()
        self.reserved = NOTHING
        self.unsaved: list[tuple[Expansion, int]] = []
        self.linger: asyncio.TimerHandle | None = None
        self.finished = self.ended = self.popped = 0
        self.began, self.earlier = time.monotonic(), 0.0
        self.costly = next((p for p in layers(self.policy) if isinstance(p, Costly)), None)
        self.allotting: Allotting | None = None  # asked once: a look at a protocol costs as much as a node
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
                await done_anyway(self.store.flush())
        return await self.finish()

    async def start(self) -> Tree | None:
        """Resets or resumes; the tree itself if it was finished before."""
        header = self.header()
        status = self.store.status(header.tree_id) if self.store is not None else None
        if status == "done" and self.store is not None:
            return finished(self.store, header)
        self.tree, self.work = await self._begin(header, resume=status is not None)
        self.frontier: Frontier = frontier_of(self.rule, self.tree)
        self.allotting = self.frontier if isinstance(self.frontier, Allotting) else None
        if self.settings.stop == "proved" and not isinstance(self.frontier, Proving):
            raise TreewrightError(
                f"search.stop=proved is for rules with costs, as astar and uniform_cost, not {self.rule.name}; "
                "type --set search.stop=first or budget"
            )
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
        if (spent := recorder()) is not None:
            spent.add(measured(self.tree, work_of(self.policy)))
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
        return self.work.expand(seq, node, self._draws(node), again)

    def _apply(self, expansion: Expansion) -> None:
        new = self.tree.apply(expansion)
        if self.work.peers is not None:
            self.work.peers.note(self.tree, expansion, new)
        status = self.tree.status
        fresh = status[new.start :]
        here = (*fresh, status[expansion.node])  # a lazy rule's draft ends at its own pop
        self.ended += here.count(NodeStatus.TERMINAL)
        self.finished += here.count(NodeStatus.TERMINAL) + here.count(NodeStatus.TRUNCATED)
        if not expansion.closing:
            if not is_repair(self.tree, expansion):  # which took nothing from the frontier
                self.frontier.applied(expansion.node, new)
            offer, lazy = self.frontier.offer, not self.work.eager
            plain = self.rule.stop is None and self.rule.keep_prob is None
            for node in new:
                open_still = status[node] is NodeStatus.OPEN or (lazy and self._unfinished(node))
                if open_still and (plain or self._spared(node)):
                    offer(node)
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
        elif rule.keep_prob is not None:
            tree.toss(node, rule.keep_prob(tree[node]))
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
        stored = self.recorded[self.popped] if self.popped < len(self.recorded) else None
        closing = stored is not None and stored.closing  # the search before this one had stopped here: so do we
        most = self.settings.answers if stored is None or closing else None  # older versions counted fewer answers
        if most is not None and self.finished >= most:
            self.tree.stopped_by = "answers"
            return None
        if self._enough():
            self.tree.stopped_by = self.settings.stop
            return None
        broken = self.repairs.next(self.tree, self.popped, stored)
        node = self._best() if broken is None else self.tree.parent[broken]
        if node is None:
            return None
        reserve = (
            self._reserve(node) if broken is None else Spent(expansions=1, policy_tokens=0, judge_tokens=0, env_steps=1)
        )
        self.tree.stopped_by = self._over(reserve)
        if closing and self.tree.stopped_by is None and self.budget.seconds is not None:
            self.tree.stopped_by = "seconds"  # of the search that stopped; pops from the store take none
        if closing or self.tree.stopped_by is not None:
            return None
        return (self.frontier.take() if broken is None else node), reserve

    def _enough(self) -> bool:
        """What settings.stop waits for is there. Closing rollouts come later and do not count."""
        if self.settings.stop == "first":
            return self.ended > 0
        return self.settings.stop == "proved" and isinstance(self.frontier, Proving) and self.frontier.proved()

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
        return (self.open_nodes.popleft(), NOTHING) if self.open_nodes else None

    def _over(self, reserve: Spent) -> str | None:
        """The ceiling that one more pop could pass. Stored pops were made within the time they had."""
        spent = self.tree.spent if self.reserved is NOTHING else self.tree.spent + self.reserved
        if self.budget.seconds is not None:
            if len(self.tree.pops) < len(self.recorded):
                return replace(self.budget, seconds=None).exhausted(spent, reserve)
            spent = replace(spent, seconds=self._seconds())
        return self.budget.exhausted(spent, reserve)

    def _draws(self, node: int) -> int:
        shared = self.allotting.draws(node) if self.allotting is not None else None
        return self.rule.draws(self.tree[node]) if shared is None else shared

    def _reserve(self, node: int) -> Spent:
        """The most a pop can cost, known before it is dispatched."""
        draws = self._draws(node)
        if draws < 1:
            raise TreewrightError(f"rule {self.rule.name!r} gave node {node} {draws} draws; at least 1 is needed")
        steps = draws if self.work.eager else 1
        money = draws * self.costly.dearest(self.settings.max_tokens) if self.costly is not None else 0.0
        return Spent(
            expansions=1, policy_tokens=draws * self.settings.max_tokens, judge_tokens=0, env_steps=steps, money=money
        )

    def _unfinished(self, node: int) -> bool:
        """Open, or a draft that may still be executed: its effect is not known to wait for commit."""
        status = self.tree.status[node]
        waiting = self.tree.effect[node] is Effect.IRREVERSIBLE
        return status is NodeStatus.OPEN or (status is NodeStatus.DRAFT and not waiting)

    def header(self) -> TreeHeader:
        """What names the tree; its root is still to come."""
        told = self.evidence, self.continues, self.past
        return header_of(self.task, self.policy, self.rule, self.budget, self.settings, self.seed, *told)

    async def _begin(self, header: TreeHeader, resume: bool) -> tuple[Tree, Expander]:
        async with self.pool.lease(header.tree_id) as session:
            ways, sandboxed = session.env.restore_ways, is_sandboxed(session.env)
        settings = self.settings
        work = Expander(
            task=self.task,
            pool=self.pool,
            policy=self.policy,
            evaluator=self.evaluator,
            max_tokens=settings.max_tokens,
            retries=settings.retries,
            eager=self.rule.eager if self.rule.eager is not None else bool(ways & {Restore.FORK, Restore.STATE}),
            sandboxed=sandboxed,
            ways=ways,
            tree=Tree.start(header),
            snapshots=self.snapshots,
            evidence=self.evidence,
            share_results=settings.share_results,
            merge=settings.merge,
            peers=Peers(settings.peers, settings.in_flight) if settings.peers else None,
            foresees=self.rule.foresees,
            reader=next((p for p in layers(self.policy) if isinstance(p, Reader)), None),
            segments=settings.segments,
            temperatures=settings.temperature_by_depth,
        )
        if settings.segments is not None:
            segmenting(self.policy)  # one that cannot go on within a response is told at once
        if resume and self.store is not None:
            work.tree, self.recorded = resumed(self.store, header, self.policy.version)
            self.earlier = sum(e.spent.seconds for e in self.recorded)
        else:
            work.tree = Tree.start(replace(header, root=await first_outcome(work)))
            if self.store is not None:
                self.store.create(work.tree.header)
        return work.tree, work
