"""Evaluators: estimates of success for the search. None of them sees the environment's reward.

search.evaluator = likelihood | entropy | tests | prm:FOLDER | scorer:FOLDER | steps:FOLDER | checklist:POLICY |
                   critic:POLICY | imagined:POLICY | vstar[:FOLDER] | none | module:object
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treewright.envs.doors import Door, call, nearest
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.types import Candidate, Evaluator, Score

if TYPE_CHECKING:
    from treewright.training.scorer import Scorer

__all__ = ["Learned", "Likelihood", "open_evaluator"]

KINDS = ("likelihood", "entropy", "tests", "prm", "scorer", "steps", "checklist", "critic", "imagined", "vstar", "none")
TAKE_REST = {
    "prm": "FOLDER",
    "scorer": "FOLDER",
    "steps": "FOLDER",
    "checklist": "POLICY (checklist:hf:NAME)",
    "critic": "POLICY (critic:hf:NAME)",
    "imagined": "POLICY (imagined:hf:NAME)",
}
DOOR = Door(kind="evaluator", group="treewright.evaluators", built_in=lambda: dict.fromkeys(KINDS))


class Likelihood:
    """The policy's own confidence: the geometric mean over the path's actions of their probabilities.

    h = exp(Σ log π(a|s) / number of actions), in (0, 1]. Costs nothing. A draw without log-probs gets 0.5.
    """

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        return [Score(self._one(c)) for c in candidates]

    @staticmethod
    def _one(candidate: Candidate) -> float:
        if not candidate.completion.logprobs:
            return 0.5
        return math.exp(min(0.0, candidate.path_logprob / max(candidate.path_actions, 1)))


class Learned:
    """The dual encoder of `treewright train scorer`: how well the step fits where the episode stands."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        from treewright.training.scorer import place_text, step_text

        places = [place_text(task.goal, c.turns) for c in candidates]
        seen = [c.observation.text if c.observation is not None else None for c in candidates]
        steps = [step_text(c.completion.text, text) for c, text in zip(candidates, seen, strict=True)]
        return [Score(value) for value in await asyncio.to_thread(self.scorer, places, steps)]


def open_evaluator(spec: str, policy: Any = None, options: Mapping[str, Any] | None = None) -> Evaluator | None:
    """The evaluator that `spec` names, opened once; None for 'none'. `policy` is what 'entropy' asks.

    likelihood         the policy's own confidence
    entropy            of the policy's next token, for the rule `entropy_gated`
    tests              public tests passed, in the suite `code`
    prm:FOLDER         made by `treewright train prm`
    scorer:FOLDER      made by `treewright train scorer`
    steps:FOLDER       made by `treewright train steps`
    checklist:POLICY   a model asked item by item; a policy as `--policy` names it
    critic:POLICY      public tests passed, joined with a model's opinion of the program, in the suite `code`
    vstar[:FOLDER]     value plus entropy, for the rule `vstar`; the value is that of a PRM. `options` may give `weight`
    imagined:POLICY    a model asked for the steps still to come, for the rule `astar`
    module:object      one of your own, or an entry point: an object with `evaluate`, or a function or class that makes
                       one from `options`; it is given the policy where it has a parameter `policy`

    Raises TreewrightError for an unknown one, with the nearest known, and for one that cannot be opened.
    """
    kind, _, rest = spec.partition(":")
    told = dict(options or {})
    if kind == "vstar":
        from treewright.agent.judges.vstar import ValueGuided

        made = call(ValueGuided, told, "evaluator 'vstar'", policy=policy, value=_opened("prm", rest) if rest else None)
        return made  # type: ignore[no-any-return]
    if kind in KINDS and (kind in TAKE_REST) == bool(rest):
        if told:
            raise TreewrightError(f"evaluator {spec!r} has no option {next(iter(told))!r}; it has none")
        if kind == "entropy":
            from treewright.agent.judges.uncertainty import Entropy

            return Entropy(policy)
        return _opened(kind, rest)
    if kind in TAKE_REST:
        raise TreewrightError(f"evaluator {spec!r} names nothing to open; write {kind}:{TAKE_REST[kind]}")
    return _own(spec, policy, told)


def _own(spec: str, policy: Any, options: Mapping[str, Any]) -> Evaluator:
    try:
        found = DOOR.find(spec)
    except TreewrightError as error:
        kind = spec.partition(":")[0]
        raise TreewrightError(
            f"no evaluator named {spec!r}; {nearest(kind, DOOR.names())}"
            + (f" As your own: {error}" if ":" in spec else "")
        ) from error
    if isinstance(found, type) or not hasattr(found, "evaluate"):
        if not callable(found):
            raise TreewrightError(f"evaluator {spec!r} is a {type(found).__name__}; name an object with `evaluate`")
        found = call(found, options, f"evaluator {spec!r}", policy=policy)
    elif options:
        raise TreewrightError(f"evaluator {spec!r} is an object and takes no options; name the class that makes it")
    if not hasattr(found, "evaluate"):
        raise TreewrightError(
            f"evaluator {spec!r} gave a {type(found).__name__} without `async def evaluate(task, candidates)`"
        )
    return found  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=8)
def _opened(kind: str, rest: str) -> Evaluator | None:
    if kind == "none":
        return None
    if kind == "prm":
        from treewright.agent.judges.prm import PrmEvaluator

        return PrmEvaluator.load(rest)
    if kind == "likelihood":
        return Likelihood()
    if kind == "tests":
        from treewright.agent.judges.code_judge import TestsPassed

        return TestsPassed()
    if kind == "scorer":
        return _opened_scorer(rest)
    if kind == "steps":
        from treewright.agent.judges.steps import StepJudge
        from treewright.training.step_model import StepModel

        return StepJudge(StepModel.load(rest))
    from treewright.agent.judges.checklist import Checklist, Model
    from treewright.agent.judges.imagined import Imagined
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.policies.policy import Writer

    model: object = open_policy(rest)
    if kind == "imagined":
        if not isinstance(model, Writer):
            raise TreewrightError(f"policy {rest!r} writes no plans; imagine with hf:, openai: or vllm:")
        return Imagined(model)
    if not isinstance(model, Model):
        raise TreewrightError(f"policy {rest!r} gives no answer log-probs; judge with hf:, openai: or vllm:")
    if kind == "critic":
        from treewright.agent.judges.code_judge import ModelCritic, TestsPassed

        return TestsPassed(ModelCritic(model))
    return Checklist(model)


def _opened_scorer(folder: str) -> Evaluator:
    try:
        from treewright.training.scorer import Scorer
    except ImportError as error:
        raise TreewrightError("a scorer needs torch; type: pip install 'treewright[train]'") from error
    return Learned(Scorer.load(folder))
