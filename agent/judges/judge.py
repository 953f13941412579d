"""Evaluators: estimates of success for the search. None of them sees the environment's reward.

search.evaluator = likelihood | entropy | tests | prm:FOLDER | scorer:FOLDER | checklist:POLICY | none
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.types import Candidate, Evaluator, Score

if TYPE_CHECKING:
    from treewright.training.scorer import Scorer

__all__ = ["Learned", "Likelihood", "open_evaluator"]

KINDS = ("likelihood", "entropy", "tests", "prm", "scorer", "checklist", "none")


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


def open_evaluator(spec: str, policy: Any = None) -> Evaluator | None:
    """The evaluator that `spec` names, opened once; None for 'none'. `policy` is what 'entropy' asks.

    likelihood         the policy's own confidence
    entropy            of the policy's next token, for the rule `entropy_gated`
    tests              public tests passed, in the suite `code`
    prm:FOLDER         made by `treewright train prm`
    scorer:FOLDER      made by `treewright train scorer`
    checklist:POLICY   a model asked item by item; a policy as `--policy` names it

    Raises TreewrightError for an unknown one, with the nearest known, and for one that cannot be opened.
    """
    if spec == "entropy":
        from treewright.agent.judges.uncertainty import Entropy

        return Entropy(policy)
    return _opened(spec)


@functools.lru_cache(maxsize=8)
def _opened(spec: str) -> Evaluator | None:
    kind, _, rest = spec.partition(":")
    if kind == "none":
        return None
    if kind == "prm" and rest:
        from treewright.agent.judges.prm import PrmEvaluator

        return PrmEvaluator.load(rest)
    if kind == "likelihood":
        return Likelihood()
    if kind == "tests":
        from treewright.agent.judges.code_judge import TestsPassed

        return TestsPassed()
    if kind == "scorer" and rest:
        return _opened_scorer(rest)
    if kind == "checklist" and rest:
        from treewright.agent.judges.checklist import Checklist, Model
        from treewright.agent.policies.opening import open_policy

        model: object = open_policy(rest)
        if not isinstance(model, Model):
            raise TreewrightError(f"policy {rest!r} gives no answer log-probs; judge with hf:, openai: or vllm:")
        return Checklist(model)
    near = difflib.get_close_matches(kind, KINDS, n=1)
    hint = f"did you mean {near[0]!r}? " if near and near[0] != kind else ""
    raise TreewrightError(
        f"no evaluator named {spec!r}; {hint}write likelihood, entropy, tests, prm:FOLDER, scorer:FOLDER, "
        "checklist:POLICY (checklist:hf:NAME) or none"
    )


def _opened_scorer(folder: str) -> Evaluator:
    try:
        from treewright.training.scorer import Scorer
    except ImportError as error:
        raise TreewrightError("a scorer needs torch; type: pip install 'treewright[train]'") from error
    return Learned(Scorer.load(folder))
