"""Plans that worked: memories from demonstrations and from stored trees, and an evaluator that goes by them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from treewright.envs.errors import EnvFault, InvalidAction, TreewrightError
from treewright.envs.types import Environment, Oracle, Task, Turn, require_sandbox
from treewright.search.rules.astar import lcs
from treewright.search.rules.plan_memory import Plan, PlanMemory, goal_likeness, plan_of, step_of
from treewright.search.types import Candidate, Exchange, Score

__all__ = ["PlanLikeness", "demonstrated_plans"]

SOLVED = 1.0 - 1e-6


class PlanLikeness:
    """How much a path is like a remembered plan: m / (path + plan − m), m the weight of their longest common
    subsequence, times how much the goals are alike, relative to the most similar goal; the best plan counts. 1 for a
    path that is the plan of the most similar goal. Costs no tokens.

    memory   plans of training tasks;  nearest  how many of those with the most similar goals count, 0 for all
    """

    def __init__(self, memory: PlanMemory, nearest: int = 8) -> None:
        self.memory, self.nearest = memory, nearest
        self._known: tuple[str, list[tuple[Plan, float]]] | None = None

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        if self._known is None or self._known[0] != task.goal:
            self._known = (task.goal, _weighted(task, self.memory.near(task, self.nearest)))
        plans = self._known[1]
        before = self._steps(task, candidates[0].turns) if candidates else []
        out = []
        for candidate in candidates:
            step = step_of(task, candidate.turns, candidate.action) if candidate.action is not None else ""
            out.append(Score(max((w * _likeness([*before, step], plan.steps) for plan, w in plans), default=0.0)))
        return out

    @staticmethod
    def _steps(task: Task, turns: Sequence[Exchange]) -> list[str]:
        """The steps of a path; invalid output is one that no plan has."""
        done = [(turns[:i], turn.action) for i, turn in enumerate(turns)]
        return [step_of(task, before, action) if action is not None else "" for before, action in done]


def _weighted(task: Task, plans: Sequence[Plan]) -> list[tuple[Plan, float]]:
    alike = [goal_likeness(task.goal, plan.goal) for plan in plans]
    most = max(alike, default=0.0)
    return [(plan, share / most if most else 1.0) for plan, share in zip(plans, alike, strict=True)]


def _likeness(path: Sequence[str], plan: Sequence[str]) -> float:
    common = lcs(path, plan)
    return common / (len(path) + len(plan) - common)


async def demonstrated_plans(
    tasks: Sequence[Task], open_env: Callable[[], Awaitable[Environment]], oracle: Oracle
) -> PlanMemory:
    """The plans by which the oracle solves these tasks; those it does not solve are left out.

    Raises TreewrightError for a task that is not of the training split: a memory of test tasks would be cheating; and
    in a live world, where nobody has approved what an oracle would do.
    """
    if wrong := [task.id for task in tasks if task.split != "train"]:
        raise TreewrightError(f"task {wrong[0]} is not a training task; a plan memory learns from those alone")
    env = await open_env()
    try:
        require_sandbox(env, "a demonstration")
        found = [plan for task in tasks if (plan := await _demonstrated(task, env, oracle)) is not None]
    finally:
        await env.close()
    return PlanMemory().with_plans(found)


async def _demonstrated(task: Task, env: Environment, oracle: Oracle) -> Plan | None:
    turns = [Turn(None, await env.reset(task, 0))]
    earned = 0.0
    for step in range(task.horizon):
        action = oracle(task, turns, await env.actions())
        try:
            result = await env.step(action, step)
        except (InvalidAction, EnvFault):
            return None
        turns.append(Turn(action, result.observation))
        earned += result.reward
        if result.terminated:
            break
    if earned < SOLVED:
        return None
    return plan_of(task, [Exchange("", turn.action, turn.observation) for turn in turns[1:]])
