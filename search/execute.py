"""One action in the world: get back to where it starts, take it, and say what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from treewright.envs.errors import Divergence, EnvFault, InvalidAction, RestoreUnsupported, shown_by
from treewright.envs.types import Action, Effect, Observation, Restore, StepResult, ToolSpec
from treewright.search.asking import context_of
from treewright.search.places import Places, Spot, step_key
from treewright.search.restore import Begun, Session, Waypoint, refuse_repeat
from treewright.search.types import (
    Draft,
    Exchange,
    NodeStatus,
    Origin,
    Outcome,
)

__all__ = ["Executor", "executed"]

NO_IDS: tuple[int, ...] = ()
SNAPSHOTS = frozenset({Restore.FORK, Restore.STATE})


@dataclass(slots=True, kw_only=True)
class Executor(Places):
    """Executes drafts; faults and divergences are outcomes, not exceptions."""

    retries: int
    sandboxed: bool
    ways: frozenset[Restore]

    async def _execute(
        self,
        spot: Spot,
        draft: Draft,
        remember: bool = True,
        held: Session | None = None,
        before: Effect | None = None,
    ) -> Outcome:
        """Steps the draft's action from `spot`. A fault is retried in a new session, then recorded.

        before  the effect it had when it was executed before; None for its first time. A retry is no first time.
        """
        if draft.action is None:
            return self._invalid(spot, draft, draft.error or "not an action", 0)
        fault = ""
        origin = draft.completion.origin
        if before is None and origin is not Origin.POLICY and origin in (Origin.STORED, Origin.DEMO):
            before = Effect.READ  # a stored turn, taken again
        for _ in range(self.retries + 1):
            try:
                if held is not None:
                    done = await self._tried(held, spot, draft, draft.action, remember, before)
                else:
                    async with self.pool.lease(self.tree.tree_id, (spot.place,)) as session:
                        done = await self._tried(session, spot, draft, draft.action, remember, before)
                if isinstance(done, Outcome):
                    return done
                fault = done
            except EnvFault as error:  # not even a new session could be had
                fault = f"{type(error).__name__}: {error}"
        return _lost(NodeStatus.FAULT, fault)

    async def _tried(
        self, session: Session, spot: Spot, draft: Draft, action: Action, remember: bool, before: Effect | None
    ) -> Outcome | str:
        """What came of one attempt; what broke, with another session in the place of the broken one."""
        try:
            replayed, tree_id = 0, self.tree.header.tree_id
            if session.at != spot.place or session.tree != tree_id:
                replayed = await self.pool.reach(session, tree_id, self.task, spot.path, self.snapshots)
            if before is not None or not self.sandboxed:
                waits = await self._refused(session, action, before, replayed)
                if waits is not None:
                    return waits
            session.at = None
            pool, seed = self.pool, draft.seed
            try:
                given = pool.begin(session.env.step(action, step_key(seed)), "step")
                if isinstance(given, Begun):
                    given = await pool.waited(given, "step")
                result = shown_by(given, StepResult, "step")
            except InvalidAction as error:
                place = session.at = spot.place
                if place not in self.tools:
                    self.tools[place] = await self.pool.tools(session)
                return self._invalid(spot, draft, str(error), replayed)
            session.at = seed
            if session.distance:
                result = replace(result, observation=result.observation.arrived(session.distance))
                session.distance = 0.0
            status = self._status(spot, result)
            tools: tuple[ToolSpec, ...] = ()
            if status is NodeStatus.OPEN:
                tools = self.tools[seed] = pool.plain_tools(session) or await pool.tools(session)
                if remember and not self.ways.isdisjoint(SNAPSHOTS):
                    kept = pool.begin(session.env.snapshot(), "snapshot")
                    self.snapshots.put(seed, await pool.waited(kept, "snapshot") if isinstance(kept, Begun) else kept)
            return self._outcome(spot, draft, action, tools, result, status, 1 + replayed)
        except EnvFault as error:
            await self.pool.replace(session)
            return f"{type(error).__name__}: {error}"
        except (Divergence, RestoreUnsupported) as error:
            session.lost()
            return _lost(NodeStatus.UNREACHABLE, f"{type(error).__name__}: {error}")

    async def _refused(self, session: Session, action: Action, before: Effect | None, replayed: int) -> Outcome | None:
        """An action that waits for commit. Raises RestoreUnsupported for one that must not be repeated."""
        if before is not None:
            await self.pool.timed(refuse_repeat(session.env, action, before), "effect")
        if not self.sandboxed:
            effect = await self.pool.timed(session.env.effect(action), "effect")
            if effect.needs_commit:
                return Outcome(
                    observation=Observation(text=""),
                    status=NodeStatus.DRAFT,
                    reward=math.nan,
                    effect=Effect.IRREVERSIBLE,
                    steps=replayed,
                )
        return None

    def _status(self, spot: Spot, result: StepResult) -> NodeStatus:
        if result.terminated:
            return NodeStatus.TERMINAL
        over = result.truncated or len(spot.path) >= self.task.horizon
        return NodeStatus.TRUNCATED if over else NodeStatus.OPEN

    async def _above(self, node: int) -> Spot:
        """The place that a draft is executed from. Output that is no action is told what there is: its tools are known
        before, unless the world does not say."""
        parent = self.tree.parent[node]
        if self.tree.draft(node).action is None:
            with suppress(EnvFault, Divergence, RestoreUnsupported):
                return await self._drawn_at(parent)
        return self.spot(parent)

    def _outcome(
        self,
        spot: Spot,
        draft: Draft,
        action: Action | None,
        tools: Sequence[ToolSpec],
        result: StepResult,
        status: NodeStatus,
        steps: int,
        error: str | None = None,
    ) -> Outcome:
        keep, delta = 0, NO_IDS
        if status is NodeStatus.OPEN:
            done, seen = draft.completion, result.observation
            turns = (*spot.turns, Exchange(done.text, action, seen))
            base = spot.context.ids + done.token_ids
            context = context_of(self.policy, self.task, tools, self._first(), turns, base)
            point = Waypoint(draft.seed, step_key(draft.seed), action, seen.fingerprint, result.effect)
            logprob = spot.logprob + (math.fsum(done.logprobs) if done.logprobs else 0.0)
            self._hold(Spot((*spot.path, point), turns, context, logprob))
            keep, delta = context.keep, context.delta
        return Outcome(
            observation=result.observation,
            status=status,
            reward=result.reward,
            effect=result.effect,
            keep=keep,
            delta=delta,
            error=error,
            fault=None,
            steps=steps,
        )

    def _within(self, spot: Spot, draft: Draft) -> Draft:
        """A segment: nothing is executed, and what follows goes on from its tokens."""
        inside = self._hold(spot.within(draft.seed, draft.completion))
        seen = Observation(text="", provenance="segment")
        outcome = Outcome(seen, NodeStatus.OPEN, effect=Effect.READ, keep=inside.context.keep, delta=())
        return replace(draft, action=None, error=None, effect=Effect.READ, outcome=outcome)

    def _invalid(self, spot: Spot, draft: Draft, error: str, steps: int) -> Outcome:
        """Invalid output: nothing happened in the world, the policy is told, the turn counts."""
        last = spot.path[-1]
        result = StepResult(Observation(f"error: {error}", last.fingerprint, provenance="error"))
        status = self._status(spot, result)
        tools = self.tools.get(last.seed)
        if tools is None:  # a resumed search may not know them yet
            tools = ()
        elif status is NodeStatus.OPEN:
            self.tools[draft.seed] = tools
        return self._outcome(spot, draft, None, tools, result, status, steps, error)


def executed(draft: Draft, outcome: Outcome) -> Draft:
    """The draft with what became of it; one that waits for commit stays unexecuted but keeps its effect.

    It is the same object: a draft that was made in this pop is nobody else's until the pop hands it over, and making
    another one would cost as much as the step of a small world.
    """
    set_effect(draft, outcome.effect)
    if outcome.status is not NodeStatus.DRAFT:
        set_outcome(draft, outcome)
        if outcome.error is not None:
            set_error(draft, outcome.error)
    return draft


set_effect: Callable[[Draft, Effect], None] = vars(Draft)["effect"].__set__
set_outcome: Callable[[Draft, Outcome], None] = vars(Draft)["outcome"].__set__
set_error: Callable[[Draft, str], None] = vars(Draft)["error"].__set__


def _lost(status: NodeStatus, why: str) -> Outcome:
    return Outcome(
        observation=Observation(text=why, fingerprint="", provenance="error"), status=status, reward=math.nan, fault=why
    )
