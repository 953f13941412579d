"""SPaR where no reward exists (arXiv 2412.11605): a model judges what the policy answers, a model refines what fails,
and a search from the failed attempt goes on until an answer is judged to do what is asked.

The tree of refinements is a tree like any other, of a world in which every turn is a whole answer: below the root is
the policy's own attempt, below each answer its refinements, and what the world shows is the judgement. Rule, budget,
store and viewer are those of every search. Pairs of refined ≻ own attempt are preferred by DPO.

After the paper: the judge votes as it does there; what the judge said is not used to train the refiner.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from treewright.agent.config import Config
from treewright.agent.policies.once import Once
from treewright.agent.policies.opening import serve_weights
from treewright.agent.policies.policy import Templated, Writer
from treewright.agent.runs.collect import World, collect
from treewright.agent.runs.loop import Learner, budget_of, settings_of
from treewright.envs.errors import EnvFault, InvalidAction
from treewright.envs.reasoning.answering import ANSWER, answer
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
    digest,
    seed_of,
)
from treewright.envs.waiting import together
from treewright.search.engine import Keeper
from treewright.search.restore import Pool
from treewright.search.rules import rule_with
from treewright.search.tree import Tree
from treewright.search.types import (
    Candidate,
    Completion,
    Context,
    Exchange,
    Origin,
    PolicyFault,
    Proposer,
    Score,
    layers,
)

__all__ = ["Judge", "Refined", "Refining", "judged_rounds", "said_by", "verdict_of"]

SUITE = "spar"
VERDICT = re.compile(r"\bverdict\W*(yes|no)\b", re.IGNORECASE)
FIRST = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
LETTERS = 2000  # of a judgement that is shown to the refiner
GOOD = "judged to do what is asked"


def verdict_of(text: str) -> bool | None:
    """What a judgement says: its last 'Verdict: yes' or 'Verdict: no', else the word that it begins with, else None."""
    found = VERDICT.findall(text)
    begins = FIRST.match(text)
    word = found[-1] if found else begins[1] if begins else None
    return None if word is None else word.lower() == "yes"


async def said_by(policy: Any, prompt: str, seed: int, max_tokens: int) -> str:
    """What a policy answers to a text: as a model where it writes, else as one draw for a task with that goal."""
    if isinstance(policy, Writer):
        return await policy.write(prompt, seed, max_tokens)
    context = policy.context(Task(SUITE, digest(prompt), goal=prompt), (), Observation(""), (), ())
    (done,) = await policy.draw(context, [seed], max_tokens)
    return str(done.text)


class Judge:
    """Judges an answer by `votes` judgements of a policy, each drawn anew; equal answers once.

    asked  how many judgements were drawn
    """

    def __init__(self, policy: Any, *, votes: int = 3, max_tokens: int = 400) -> None:
        self.policy, self.votes, self.max_tokens, self.asked = policy, votes, max_tokens, 0
        self.tasks: dict[str, Task] = {}
        self._known: Once[tuple[str, str], tuple[float, str]] = Once()

    async def judge(self, task: Task, said: str) -> tuple[float, str]:
        """(share of yes among the votes that say either, a remark of one that says no, or ""). Raises EnvFault where
        no vote says either."""
        return await self._known.get((task.goal, said), lambda: self._voted(task, said))

    def share(self, task: Task, said: str) -> float | None:
        """The share of yes, where it was judged already."""
        known = self._known.found((task.goal, said))
        return None if known is None else known[0]

    async def _voted(self, task: Task, said: str) -> tuple[float, str]:
        prompt = (
            f"Instruction:\n{task.goal}\n\nAnswer:\n{said}\n\nDoes the answer do all that the instruction asks? "
            "Say what is wrong, if anything is, and end with a line 'Verdict: yes' or 'Verdict: no'."
        )
        seeds = [seed_of(task.seed, "judge", prompt, i) & 0x7FFFFFFF for i in range(self.votes)]
        texts = await together(said_by(self.policy, prompt, seed, self.max_tokens) for seed in seeds)
        self.asked += len(texts)
        votes = [(verdict, text) for text in texts if (verdict := verdict_of(text)) is not None]
        if not votes:
            raise EnvFault(f"the judge gave no verdict on an answer to {task.suite}/{task.id}: {texts[0][:200]!r}")
        remark = next((VERDICT.sub("", text).strip()[:LETTERS] for yes, text in votes if not yes), "")
        return sum(yes for yes, _ in votes) / len(votes), remark

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        """The share of yes as what a search goes by; 0 for what is no answer."""
        return [Score(self.share(task, _text_of(c.action)) or 0.0) for c in candidates]


class Refined(BaseEnvironment):
    """Every turn is a whole answer; the episode ends with one that most votes say yes to, which earns 1. What it shows
    is the judgement."""

    name = SUITE
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    tools = (replace(ANSWER, terminal=False, description="give the whole answer"),)
    sandboxed = True

    def __init__(self, judge: Judge) -> None:
        self._judge, self._said = judge, ""

    async def reset(self, task: Task, key: int) -> Observation:
        self._task, self._said = task, ""
        self._judge.tasks[task.id] = task
        return self._seen("write the answer")

    async def step(self, action: Action, key: int) -> StepResult:
        said = _text_of(action)
        if not said:
            raise InvalidAction('write one line: answer {"text": "..."}')
        share, remark = await self._judge.judge(self._task, said)
        self._said = said
        if share > 0.5:
            return StepResult(self._seen(GOOD), 1.0, terminated=True)
        return StepResult(self._seen(f"judged not to do what is asked: {remark or 'no reason given'}"), 0.0)

    async def snapshot(self) -> Snapshot:
        data = f"{self._task.id}\0{self._said}".encode("utf-8", "surrogatepass")
        return Snapshot(Restore.STATE, data, self._mark(), size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        name, _, self._said = snapshot.data.decode("utf-8", "surrogatepass").partition("\0")
        self._task = self._judge.tasks[name]  # a session goes from tree to tree
        return self._seen("")

    def _mark(self) -> str:
        return digest(SUITE, self._task.id, self._said)

    def _seen(self, text: str) -> Observation:
        return Observation(text, self._mark())


def _text_of(action: Action | None) -> str:
    text = action.calls[0].arguments.get("text") if action is not None and len(action.calls) == 1 else None
    return text if isinstance(text, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place(Context):
    """A prompt with what the refiner is told of it."""

    own: Context
    task: Task
    turns: tuple[Exchange, ...]


class Refining:
    """The policy at the root, the refiner below: what it writes is an answer in the words and tokens of the policy."""

    def __init__(self, policy: Any, refiner: Any) -> None:
        self.policy, self.refiner = policy, refiner
        templated = next((p for p in layers(policy) if isinstance(p, Templated)), None)
        self.template = templated.template if templated is not None else None

    @property
    def inner(self) -> Any:
        return self.policy

    @property
    def version(self) -> str:
        return str(self.policy.version)

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        own = self.policy.context(task, tools, first, turns, base)
        return _Place(keep=own.keep, delta=own.delta, ids=own.ids, own=own, task=task, turns=tuple(turns))

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        assert isinstance(context, _Place)
        if not context.turns:
            drawn: Sequence[Completion] = await self.policy.draw(context.own, seeds, max_tokens)
            return drawn
        return [await self._better(context, seed, max_tokens) for seed in seeds]

    async def _better(self, place: _Place, seed: int, max_tokens: int) -> Completion:
        before = place.turns[-1]
        failed = _text_of(before.action) or before.response
        prompt = (
            f"Instruction:\n{place.task.goal}\n\nAn answer that fails:\n{failed}\n\nWhat is wrong with it:\n"
            f"{before.observation.text}\n\nWrite a better answer that differs only where it must. Write it alone."
        )
        said = (await said_by(self.refiner, prompt, seed & 0x7FFFFFFF, max_tokens)).strip()
        if not said:
            raise PolicyFault("the refiner wrote nothing")
        text = str(answer(said)) if self.template is None else self.template.says("", answer(said))
        ids = tuple(self.template.response(text)) if self.template is not None else ()
        version = str(getattr(self.refiner, "version", ""))
        return Completion(text, ids, (), policy_version=version, origin=Origin.INJECTED)


async def judged_rounds(
    config: Config,
    tasks: Sequence[Task],
    policy: Any,
    judge: Judge,
    refiner: Any,
    learner: Learner,
    *,
    rounds: int,
    beta: float = 0.1,
    store: Keeper | None = None,
    on_round: Callable[[int, Mapping[str, float], Sequence[Tree]], None] | None = None,
) -> list[dict[str, float]]:
    """SPaR's rounds on tasks without a reward: attempt, judge, refine by search, DPO, serve the new weights, again.

    tasks    of any suite; their goals are the instructions. A round takes loop.tasks of them, and begins again after
             the last
    refiner  a policy; None: the policy that is trained, as it is in each round
    store    keeps the trees of refinements, as suite `spar`
    The rule is search.rule with one draw at the root and search.draws refinements of an answer; a tree ends with the
    first answer that is judged to be right. Stats: `right_at_once`, the share of attempts that were judged right,
    `mended`, the share of the others for which a right answer was found, `faults`, trees without a verdict on the
    attempt, `judged`, judgements that were drawn, and those of DPO.
    """
    from treewright.training.recipes.prefer import dpo, refinement_pairs

    section = config.search
    name = "best_first" if section.rule == "auto" else section.rule
    rule = rule_with(name, section.options, draws=section.draws, root_draws=1)
    every = [replace(task, suite=SUITE, truth={}) for task in tasks]

    async def opened() -> Refined:
        return Refined(judge)

    suite = Suite(SUITE, lambda split, count: every[:count], opened)
    world = World(suite, Pool(opened, config.worlds.sessions or suite.sessions))
    out = []
    try:
        for index in range(rounds):
            first = index * config.loop.tasks
            mine = [every[(first + i) % len(every)] for i in range(min(config.loop.tasks, len(every)))]
            run = f"{config.name}/spar/{learner.trainer.steps}"
            settings = settings_of(section, run=run, seed=config.seed + index)
            before, proposer = judge.asked, _proposer(policy, refiner)
            trees = await collect(
                mine, {SUITE: world}, proposer, rule=rule, budget=budget_of(section), evaluator=judge, store=store,
                settings=replace(settings, close=False, stop="first"), concurrency=section.trees,
            )  # fmt: skip
            stats = await _learnt(learner, policy, refinement_pairs(trees), beta, dpo)
            stats |= _shares(trees) | {"judged": float(judge.asked - before)}
            out.append(stats)
            if on_round is not None:
                on_round(index, stats, trees)
    finally:
        await world.pool.close()
    return out


def _proposer(policy: Any, refiner: Any) -> Proposer:
    return Refining(policy, policy if refiner is None else refiner)


async def _learnt(
    learner: Learner, policy: Any, pairs: Sequence[Any], beta: float, dpo: Callable[..., dict[str, float]]
) -> dict[str, float]:
    if not pairs:
        return {"pairs": 0.0}
    stats = await asyncio.to_thread(dpo, learner.trainer, pairs, beta=beta)
    saved = await asyncio.to_thread(learner.save, {"recipe": "spar"})
    await serve_weights(policy, saved.path)
    return stats


def _shares(trees: Sequence[Tree]) -> dict[str, float]:
    """How many attempts were right, and how many of the others were mended; trees that never got a verdict apart."""
    known = [t for t in trees if t.children[0] and t.fault[t.children[0][0]] is None]
    failed = [t for t in known if t.outcome_of(t.children[0][0]) <= 0]
    mended = sum(any(t.outcome_of(leaf) > 0 for leaf in t.leaves()) for t in failed)
    return {
        "trees": float(len(known)),
        "faults": float(len(trees) - len(known)),
        "right_at_once": 1 - len(failed) / len(known) if known else 0.0,
        "mended": mended / len(failed) if failed else 0.0,
    }
