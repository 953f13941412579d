"""The work of one pop: draw, screen, get back, step, judge. Pure hand-offs; the order of pops is the engine's."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from treewright.envs.errors import (
    Divergence,
    EnvFault,
    InvalidAction,
    RestoreUnsupported,
    TreewrightError,
    shown_by,
)
from treewright.envs.naming import own_place
from treewright.envs.types import Action, Effect, Observation, Restore, StepResult, ToolSpec, seed_of
from treewright.envs.waiting import together
from treewright.search.asking import scores_of
from treewright.search.evidence import Evidence
from treewright.search.execute import Executor, executed
from treewright.search.foresee import foreseen, twin
from treewright.search.meter import clock
from treewright.search.peers import Peers, told_context
from treewright.search.places import Spot, draw_seed
from treewright.search.restore import Session
from treewright.search.screen import merge_identical, parse_action, read_by, validate_action
from treewright.search.segments import Segments, drawn_on, usable
from treewright.search.temper import Temperatures, require_warm, warmed
from treewright.search.types import (
    SEGMENT,
    Candidate,
    Completion,
    Context,
    Draft,
    Evaluator,
    Exchange,
    Expansion,
    NodeStatus,
    Outcome,
    PolicyFault,
    Reader,
    Spent,
)

__all__ = ["Expander", "Pop", "Spot"]

HELD_TEXTS = 4096
NOT_ASYNC = "; write it as async def draw(self, context, seeds, max_tokens)"


@dataclass(slots=True)
class Pop:
    """One pop under way, from phase to phase: propose, screen, explore, judge.

    again    a child of `node` whose step is taken again after a divergence; then nothing is drawn
    reused   K of drafts that were drawn here before a divergence and are kept
    first    index of its first draw: how many the node has had before
    """

    seq: int
    node: int
    draws: int
    again: int | None = None
    reused: int = 0
    first: int = 0
    began: float = field(default_factory=time.monotonic)
    outcome: Outcome | None = None
    spot: Spot | None = None
    tools: tuple[ToolSpec, ...] = ()
    completions: tuple[Completion, ...] = ()
    drafts: list[Draft] = field(default_factory=list)
    steps: int = 0
    judged: int = 0
    fault: str | None = None

    def expansion(self) -> Expansion:
        """The immutable result."""
        tokens = sum([done.tokens for done in self.completions])
        money = math.fsum([done.money for done in self.completions])
        cost = Spent(
            expansions=1,
            policy_tokens=tokens,
            judge_tokens=self.judged,
            env_steps=self.steps,
            seconds=time.monotonic() - self.began,
            money=money,
        )
        drawn = self.draws if self.completions else self.reused
        return Expansion(
            seq=self.seq, node=self.node, closing=False, drawn=drawn, outcome=self.outcome, drafts=tuple(self.drafts),
            spent=cost, fault=self.fault,
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Expander(Executor):
    """Everything one pop needs; keeps nothing that a resumed search could not rebuild."""

    evaluator: Evaluator | None
    max_tokens: int
    eager: bool
    evidence: Evidence | None = None
    share_results: bool = False
    merge: bool = True
    read: dict[str, tuple[Sequence[ToolSpec], Action | None, str | None]] = field(default_factory=dict)
    peers: Peers | None = None
    foresees: bool = False
    reader: Reader | None = None
    segments: Segments | None = None
    temperatures: Temperatures | None = None

    # -- pops ---------------------------------------------------------------------------------------------------

    async def expand(self, seq: int, node: int, draws: int, again: int | None = None) -> Expansion:
        """Executes the popped draft if it still is one, then draws its children; or repairs the step into `again`."""
        pop = Pop(seq, node, draws, again, first=self.tree.drawn[node])
        await self.propose(pop)
        self.screen(pop)
        if self.evidence is not None and pop.spot is not None and not pop.reused and pop.again is None:
            pop.drafts, pop.judged = await self.evidence.judged(pop.drafts, self.task, self._first(), pop.spot.turns)
        await self.explore(pop)
        await self.judge(pop)
        return pop.expansion()

    async def propose(self, pop: Pop) -> None:
        """Executes the popped draft if it still is one, then draws; nothing is drawn where that ended the episode.

        Where the same was drawn from the same prompt before a divergence, those drafts are taken up again.
        """
        if pop.again is not None:
            return await self._take_again(pop, pop.again)
        if self.tree.status[pop.node] is NodeStatus.DRAFT:
            pop.outcome = await self._popped(pop.node)
            pop.steps = pop.outcome.steps
            if pop.outcome.status is not NodeStatus.OPEN:
                return
        spot = pop.spot = self.spot(pop.node)
        if self.tree.repaired and self._take_up(pop, spot):
            return
        try:
            if spot.place not in self.tools:
                spot = pop.spot = await self._drawn_at(pop.node)
            told = await self._told(pop, spot) if self.peers is not None else None
            drawn = await self._draw(told or spot, pop.draws, pop.first)
            pop.tools = self.tools[spot.place]
            pop.completions = tuple(drawn if told is None else [replace(done, trainable=False) for done in drawn])
        except (PolicyFault, EnvFault, Divergence, RestoreUnsupported) as error:
            pop.fault = f"{type(error).__name__}: {error}"

    async def _popped(self, node: int) -> Outcome:
        """Executes the draft of a popped node, or gives it what an equal one has shown."""
        above, draft = await self._above(node), self.tree.draft(node)
        other = twin(self.tree, node) if self.share_results else None
        if other is not None and self.tree.seed[other] in self.tools:
            shared = self._shared(above, draft, self.tree.draft(other), self.tree.shown_by(other))
            if shared is not None:
                return shared
        return await self._execute(above, draft)

    def screen(self, pop: Pop) -> None:
        """Turns each draw, or all that are token-identical together, into a draft with an action or an error."""
        if pop.spot is not None and not pop.reused:
            drawn = [(i, 1, done) for i, done in enumerate(pop.completions)]
            if self.merge:
                drawn = merge_identical(pop.completions)
            spot, tools, drafts = pop.spot, pop.tools, pop.drafts
            for slot, mult, done in drawn:
                share = done.share or mult / pop.draws
                plain = done if done.share is None else replace(done, share=None)
                drafts.append(self._screen(spot, tools, pop.first + slot, mult, share, plain))

    async def explore(self, pop: Pop) -> None:
        """Executes the drafts, if the rule is eager."""
        if self.eager and pop.spot is not None:
            whole = [draft for draft in pop.drafts if draft.outcome is None]  # segments have no action
            results = await self._explored(pop.spot, whole) if whole else []
            pop.steps += sum([r.steps for r in results])
            took = iter(results)
            pop.drafts = [d if d.outcome is not None else executed(d, next(took)) for d in pop.drafts]
        elif self.foresees and not self.sandboxed and pop.spot is not None and pop.again is None:
            where = (self.tree.tree_id, self.task, pop.spot.path, self.snapshots)
            pop.drafts, steps = await foreseen(self.pool, where, pop.drafts)
            pop.steps += steps

    async def _explored(self, spot: Spot, drafts: Sequence[Draft]) -> list[Outcome]:
        """One outcome for each draft, side by side; drafts with equal actions may share a step."""
        if not self.share_results:
            return await self._spread(spot, drafts)
        firsts = self._firsts(drafts)
        alone = [i for i, first in enumerate(firsts) if first is None]
        taken = await together(self._execute(spot, drafts[i]) for i in alone)
        found = dict(zip(alone, taken, strict=True))
        for i, first in enumerate(firsts):
            if first is not None:
                shared = self._shared(spot, drafts[i], drafts[first], found[first])
                found[i] = shared or await self._execute(spot, drafts[i])
        return [found[i] for i in range(len(drafts))]

    async def _spread(self, spot: Spot, drafts: Sequence[Draft]) -> list[Outcome]:
        """Over the sessions that are free, each for its share of the drafts: a session that does several of one node
        has a shorter way back to it than sessions that take turns with other nodes."""
        count = max(min(self.pool.spare, len(drafts)), 1)
        if count == 1:
            return await self._share(spot, drafts)
        shares = await together(self._share(spot, drafts[i::count]) for i in range(count))
        return [shares[i % count][i // count] for i in range(len(drafts))]

    async def _share(self, spot: Spot, drafts: Sequence[Draft]) -> list[Outcome]:
        """One after the other, in one session."""
        try:
            async with self.pool.lease(self.tree.header.tree_id, (spot.place,)) as session:
                return [await self._execute(spot, draft, held=session) for draft in drafts]
        except EnvFault:  # no session could be had: each draft asks for one itself, and records the fault that lasts
            return [await self._execute(spot, draft) for draft in drafts]

    def _firsts(self, drafts: Sequence[Draft]) -> list[int | None]:
        """For each draft the index of the first one with the same action, None for that one itself."""
        seen: dict[str, int] = {}
        out: list[int | None] = []
        for i, draft in enumerate(drafts):
            key = draft.action.key if draft.action is not None else ""
            out.append(seen.get(key))
            if key:
                seen.setdefault(key, i)
        return out

    def _shared(self, spot: Spot, draft: Draft, first: Draft, outcome: Outcome) -> Outcome | None:
        """What the same action gave, in the context of another draft; None where it has to be executed itself."""
        if outcome.status not in (NodeStatus.OPEN, NodeStatus.TERMINAL, NodeStatus.TRUNCATED):
            return None
        if outcome.error is not None:
            return self._invalid(spot, draft, outcome.error, 0)
        tools = self.tools.get(first.seed, ())
        if outcome.status is NodeStatus.OPEN:
            self.tools[draft.seed] = tools
            if (held := self.snapshots.get(first.seed)) is not None:
                self.snapshots.put(draft.seed, held)
        result = StepResult(outcome.observation, outcome.reward, effect=outcome.effect)
        return self._outcome(spot, draft, draft.action, tools, result, outcome.status, 0)

    async def judge(self, pop: Pop) -> None:
        """Scores the drafts, all siblings at once."""
        if pop.spot is not None and self.evaluator is not None:
            pop.drafts, tokens = await self._judge(pop.spot, pop.drafts)
            pop.judged += tokens

    async def close(self, seq: int, node: int) -> Expansion:
        """One rollout from an open node to the end of its episode: single draws, all of them new nodes."""
        began = time.monotonic()
        outcome, steps, fault = None, 0, None
        chain: list[Draft] = []
        if self.tree.status[node] is NodeStatus.DRAFT:
            outcome = await self._execute(await self._above(node), self.tree.draft(node))
            steps += outcome.steps
        above = self.spot(node) if outcome is None or outcome.status is NodeStatus.OPEN else None
        if above is not None:
            chain, above, fault = await self._roll(node, above)
        judged, tokens = 0, sum(d.completion.tokens for d in chain)
        money = math.fsum(d.completion.money for d in chain)
        steps += sum(d.outcome.steps for d in chain if d.outcome)
        if chain and above is not None:
            chain[-1:], judged = await self._judge(above, chain[-1:])
        took = time.monotonic() - began
        cost = Spent(closing_tokens=tokens, closing_steps=steps, judge_tokens=judged, seconds=took, money=money)
        return Expansion(
            seq=seq,
            node=node,
            closing=True,
            drawn=1 if chain else 0,
            outcome=outcome,
            drafts=tuple(chain),
            spent=cost,
            fault=fault,
        )

    async def _roll(self, node: int, spot: Spot) -> tuple[list[Draft], Spot, str | None]:
        """Acts from `spot`, the place of a node, to the end of the episode: drafts, last place, a lasting fault.

        The session is held throughout, so that nobody else moves it between two turns.
        """
        chain, remember = list[Draft](), Restore.REPLAY not in self.ways
        try:
            spot = await self._drawn_at(node)
            async with self.pool.lease(self.tree.tree_id, (spot.place,)) as session:
                while True:
                    (done,) = await self._draw(spot, 1, whole=True)
                    draft = self._screen(spot, self.tools[spot.place], 0, 1, 1.0, done)
                    if self.evidence is not None:
                        (draft,), _ = await self.evidence.judged([draft], self.task, self._first(), spot.turns)
                    result = await self._execute(spot, draft, remember, session)
                    chain.append(executed(replace(draft, after=len(chain)), result))
                    if result.status is not NodeStatus.OPEN:
                        return chain, spot, None
                    spot = self.spots[draft.seed]
        except (PolicyFault, EnvFault, Divergence, RestoreUnsupported) as error:
            return chain, spot, f"{type(error).__name__}: {error}"

    async def reset(self, session: Session) -> Outcome:
        """Starts the task and remembers the root."""
        root, key = self.tree.seed[0], self.tree.key(0)
        session.at = None
        seen = shown_by(await self.pool.timed(session.env.reset(self.task, key), "reset"), Observation, "reset")
        session.tree, session.at = self.tree.tree_id, root
        tools = self.tools[root] = await self.pool.tools(session)
        if self.ways & {Restore.FORK, Restore.STATE}:
            self.snapshots.put(root, await self.pool.timed(session.env.snapshot(), "snapshot"))
        context = self._hold(self._begun(seen, tools)).context
        return Outcome(
            seen,
            NodeStatus.OPEN,
            reward=0.0,
            effect=Effect.READ,
            keep=context.keep,
            delta=context.delta,
        )

    # -- repair -------------------------------------------------------------------------------------------------

    async def _take_again(self, pop: Pop, child: int) -> None:
        """The step into `child`, where a replay diverged, from its parent: a new node in the same slot."""
        draft = replace(self.tree.draft(child), seed=seed_of(self.tree.seed[child], "again"))
        outcome = await self._execute(self.spot(pop.node), draft, before=self.tree.effect[child])
        pop.steps = outcome.steps
        pop.drafts = [executed(draft, outcome)]

    def _take_up(self, pop: Pop, spot: Spot) -> bool:
        """The drafts of the node that this one supersedes, if they were drawn from the prompt that stands here now."""
        tree, old = self.tree, self.tree.supersedes(pop.node)
        if old is None or not tree.drawn[old] or _shown(spot.turns) != _shown(tree.exchanges(old)):
            return False
        last = {tree.slot[child]: child for child in tree.children[old]}
        again = [replace(self.tree.draft(c), seed=seed_of(spot.seed, slot)) for slot, c in sorted(last.items())]
        pop.drafts = [self._within(spot, d) if d.completion.finish_reason == SEGMENT else d for d in again]
        pop.reused = tree.drawn[old]
        return True

    # -- draws --------------------------------------------------------------------------------------------------

    async def _told(self, pop: Pop, spot: Spot) -> Spot | None:
        """The place with a message about other branches in its prompt; None where there is nothing to tell."""
        told = self.peers.tell(self.tree, pop.node, pop.seq) if self.peers is not None else None
        if told is None or not told.sources:
            return None
        tree, tools = self.tree, await self._tools_at(spot)
        base = tree.context_ids(tree.parent[pop.node]) + tree.ids[pop.node]
        context = told_context(self.policy, self.task, tools, self._first(), spot.turns, base, told.text)
        return replace(spot, context=context)

    async def _draw(self, spot: Spot, draws: int, first: int = 0, whole: bool = False) -> Sequence[Completion]:
        """The draws at a place; within a response they go on from it, and `whole` ones to its end."""
        seed = spot.seed
        seeds = [draw_seed(seed, slot) for slot in range(first, first + draws)]
        cuts = None if whole else self.segments
        context = spot.context
        if self.temperatures is not None and not whole:
            context = warmed(context, self.temperatures, spot.depth + (spot.part.count if spot.part else 0))
        try:
            with clock("policy"):
                if cuts is None and spot.part is None:
                    drawn = list(await self.policy.draw(context, seeds, self.max_tokens))
                else:
                    drawn = await drawn_on(self.policy, context, seeds, self.max_tokens, spot.part, cuts)
        except TreewrightError:
            raise
        except (Exception, SystemExit) as error:
            place = own_place(error) or (NOT_ASYNC if "'await' expression" in str(error) else "")
            if not place:
                raise
            raise PolicyFault(f"the policy raised {type(error).__name__}: {error}{place}") from error
        if len(drawn) != draws:
            raise PolicyFault(f"the policy returned {len(drawn)} completions for {draws} seeds")
        if context.temperature is not None:
            require_warm(drawn, context.temperature)
        return [usable(done) for done in drawn]

    def _screen(
        self, spot: Spot, tools: Sequence[ToolSpec], slot: int, mult: int, share: float, done: Completion
    ) -> Draft:
        """Text to action. What cannot be parsed or validated stays a draft, with the reason as its error."""
        if done.finish_reason == SEGMENT:
            seed = draw_seed(spot.seed, slot)
            part = Draft(after=0, slot=slot, mult=mult, share=share, seed=seed, completion=done, action=None)
            return self._within(spot, part)
        spans, text = self.evidence.split(done.text) if self.evidence is not None else ([], done.text)
        action, error = read_by(self.reader, done, tools) if self.reader else self._read(text, tools)
        if self.evidence is not None and action is not None:
            error = self.evidence.complaint(spans, action, self.task, self._first(), spot.turns)
            action = action if error is None else None
        return Draft(
            after=0,
            slot=slot,
            mult=mult,
            share=share,
            seed=draw_seed(spot.seed, slot),
            completion=done,
            action=action,
            error=error,
        )

    def _read(self, text: str, tools: Sequence[ToolSpec]) -> tuple[Action | None, str | None]:
        """The action of a text, or what is wrong with it. The same text is said at many nodes of a tree."""
        held = self.read.get(text)
        if held is not None and held[0] is tools:
            return held[1], held[2]
        action, error = None, None
        try:
            action = parse_action(text, tools)
            validate_action(action, tools)
        except InvalidAction as invalid:
            action, error = None, str(invalid)
        if len(self.read) >= HELD_TEXTS:
            self.read.clear()
        self.read[text] = (tools, action, error)
        return action, error

    async def _judge(self, spot: Spot, drafts: list[Draft]) -> tuple[list[Draft], int]:
        if self.evaluator is None or not drafts:
            return drafts, 0
        scores = await scores_of(self.evaluator, self.task, [_candidate(spot, d, self._after(d)) for d in drafts])
        judged = [replace(d, score=float(s.value)) for d, s in zip(drafts, scores, strict=True)]
        return judged, sum(s.tokens for s in scores)

    def _after(self, draft: Draft) -> Context | None:
        """The prompt that the draft's own children would be drawn from, where it was executed and goes on."""
        held = self.spots.get(draft.seed)
        return held.context if held is not None and draft.outcome is not None else None


def _shown(turns: Sequence[Exchange]) -> list[tuple[str, str, str]]:
    return [(turn.response, turn.observation.text, turn.observation.fingerprint) for turn in turns]


def _candidate(spot: Spot, draft: Draft, after: Context | None) -> Candidate:
    done, outcome = draft.completion, draft.outcome
    return Candidate(
        spot.turns,
        done,
        draft.action,
        draft.error,
        outcome.observation if outcome else None,
        outcome.status if outcome else NodeStatus.DRAFT,
        spot.logprob + (math.fsum(done.logprobs) if done.logprobs else 0.0),
        spot.depth + 1,
        spot.context,
        after,
    )
