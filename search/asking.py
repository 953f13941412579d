"""Asking an evaluator or a policy for a prompt: both may be anybody's, and what they raise or give wrongly is one
sentence with its place."""

from __future__ import annotations

from collections.abc import Sequence

from treewright.envs.errors import TreewrightError
from treewright.envs.naming import own_place
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.meter import clock
from treewright.search.types import Candidate, Context, Evaluator, Exchange, Proposer, Score

__all__ = ["context_of", "scores_of"]


def context_of(
    policy: Proposer,
    task: Task,
    tools: Sequence[ToolSpec],
    first: Observation,
    turns: Sequence[Exchange],
    base: Sequence[int],
) -> Context:
    """The policy's prompt. Raises TreewrightError for a policy of one's own that raises, or gives something else."""
    try:
        made = policy.context(task, tools, first, turns, base)
    except TreewrightError:
        raise
    except (Exception, SystemExit) as error:
        if not (place := own_place(error)):
            raise
        raise TreewrightError(f"{_who(policy)} raised {type(error).__name__} in context(): {error}{place}") from error
    if not isinstance(made, Context):
        raise TreewrightError(
            f"{_who(policy)} gave a {type(made).__name__} as context, not a treewright.search.Context"
            "(keep=0, delta=…, ids=…)"
        )
    return made


def _who(policy: Proposer) -> str:
    return f"the policy {getattr(policy, 'name', type(policy).__name__)}"


async def scores_of(evaluator: Evaluator, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
    """One score for each candidate. Raises TreewrightError for an evaluator of one's own that raises, and for whatever
    is not one score each."""
    who = f"the evaluator {type(evaluator).__name__}"
    try:
        with clock("judge"):
            given = await evaluator.evaluate(task, candidates)
    except TreewrightError:
        raise
    except (Exception, SystemExit) as error:
        if not (place := own_place(error)) and "await" not in str(error):
            raise
        hint = "; write it as async def evaluate(self, task, candidates)" if "await" in str(error) else ""
        raise TreewrightError(f"{who} raised {type(error).__name__}: {error}{place}{hint}") from error
    try:
        scores = list(given)
    except TypeError:
        raise TreewrightError(f"{who} gave a {type(given).__name__}, not a list of treewright.search.Score") from None
    if len(scores) != len(candidates):
        raise TreewrightError(
            f"{who} gave {len(scores)} scores for {len(candidates)} candidates; give one each, in their order"
        )
    wrong = next((score for score in scores if not isinstance(score, Score)), None)
    if wrong is not None:
        raise TreewrightError(f"{who} gave {wrong!r:.80}, not a treewright.search.Score: Score(value=0.5)")
    return scores
