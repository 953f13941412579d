"""Any credit function, yours or a library's, over the enumerable worlds: is its mean gradient the true one?

    from treewright.training.check import check_estimator

    def grpo(returns, group):                     # numpy: one number for each trajectory
        ...
    print(check_estimator(grpo, form="returns").table())

The world is small enough to know its gradient exactly. Trees are grown on it by several schedules, the function gives
its advantages, and Σ A ∇log π is compared with the gradient: bias, its size in standard errors, angle and length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.training.check.mdp import Array, BiasReport, Grown, Mdp, measure, small_mdp
from treewright.training.check.mdp_growth import SCHEDULES, grow
from treewright.training.credit.arrays import Credit, TreeArrays
from treewright.training.credit.rows import Rows

__all__ = ["FORMS", "EstimatorCheck", "check_estimator"]

FORMS = ("arrays", "returns", "tokens")
USUAL = ("chains", "fixed_2", "late", "random", "best_first")
COLUMNS = ("relative_bias", "over_noise", "cosine", "scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorCheck:
    """What was measured, by schedule of growth.

    reports  bias and variance of Σ A ∇log π against the true gradient
    silent   share of the trained actions whose advantage is 0 (within 1e-12 of the largest)
    idle     share of the groups in which every advantage is 0: samples that were paid for and teach nothing
    """

    reports: Mapping[str, BiasReport]
    silent: Mapping[str, float]
    idle: Mapping[str, float]

    def unbiased(self, within: float = 3.0) -> list[str]:
        """The schedules on which the bias is within so many standard errors."""
        return [name for name, report in self.reports.items() if report.over_noise <= within]

    def table(self) -> str:
        """As a Markdown table."""
        head = ("schedule", "relative bias", "bias / noise", "cosine", "scale", "zero advantages", "idle groups")
        rows = [
            [name, *(f"{getattr(r, c):.3g}" for c in COLUMNS), f"{self.silent[name]:.1%}", f"{self.idle[name]:.1%}"]
            for name, r in self.reports.items()
        ]
        lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def check_estimator(
    function: Callable[..., Any],
    *,
    form: str = "arrays",
    schedules: Sequence[str] = USUAL,
    trees: int = 16_000,
    seed: int = 0,
    world: Mdp | None = None,
) -> EstimatorCheck:
    """Runs a credit function over trees of an enumerable world and compares its mean gradient with the true one.

    form "arrays"   f(TreeArrays) -> Credit, or f64 [N] the factor of ∇log π at each node
    form "returns"  f(returns f64 [R], group i64 [R]) -> advantages [R], as GRPO and RLOO have them: a row is a finished
                    trajectory, all rows of a group start from the same task
    form "tokens"   f(rewards f64 [R, T], mask bool [R, T], group i64 [R]) -> advantages [R, T], or a tuple that begins
                    with them, as verl passes them; an action is one token, rewards stand where they were received
    schedules       of growth, names of `treewright.training.check.mdp_growth.SCHEDULES`; "chains" are independent
                    trajectories, on the others trajectories share beginnings
    trees           a multiple of 8; the noise falls with its root

    Rows of a group count alike, and a draw that several tokens-identical drafts stand for is as many rows. Raises
    TreewrightError for an unknown form or schedule, and for answers of another shape or that are not finite.
    """
    if form not in FORMS:
        raise TreewrightError(f"no form {form!r}; {nearest(form, FORMS)}")
    for name in schedules:
        if name not in SCHEDULES:
            raise TreewrightError(f"no schedule {name!r}; {nearest(name, list(SCHEDULES))}")
    known = world or small_mdp()
    reports, silent, idle = {}, {}, {}
    for name in schedules:
        grown = grow(name, trees, seed, known)
        credit = _credited(function, form, grown)
        reports[name] = measure(known, grown, credit)
        silent[name], idle[name] = _zeros(grown.arrays, credit.coef)
    return EstimatorCheck(reports=reports, silent=silent, idle=idle)


def _credited(function: Callable[..., Any], form: str, grown: Grown) -> Credit:
    a = grown.arrays
    if form == "arrays":
        found = function(a)
        return found if isinstance(found, Credit) else _of(a, _checked(found, (len(a),), "one for each node"))
    table = _Table(a)
    if form == "returns":
        given = _checked(function(table.returns, table.group), table.returns.shape, "one for each row")
        each = np.where(table.mask, given[:, None], 0.0)
    else:
        answer = function(table.rewards, table.mask, table.group)
        first = answer[0] if isinstance(answer, tuple) else answer
        each = np.where(table.mask, _checked(first, table.mask.shape, "one for each token of each row"), 0.0)
    return _of(a, table.back(each))


def _checked(found: Any, shape: tuple[int, ...], what: str) -> Array:
    made = np.asarray(found, dtype=np.float64)
    if made.shape != shape:
        raise TreewrightError(f"the function gave advantages of shape {made.shape}, not {shape}: {what}")
    if not np.isfinite(made).all():
        bad = int((~np.isfinite(made)).sum())
        raise TreewrightError(f"the function gave {bad} of {made.size} advantages that are not finite")
    return made


def _of(arrays: TreeArrays, coef: Array) -> Credit:
    nothing = np.full(len(arrays), np.nan)
    return Credit(value=nothing, coef=coef, weight=nothing, ess=nothing)


class _Table:
    """The finished trajectories as rows, as libraries without trees hold them."""

    def __init__(self, arrays: TreeArrays) -> None:
        rows = Rows(arrays)
        order = rows.plan.order
        leaves = np.flatnonzero(rows.finished)
        many = np.rint(rows.own[leaves]).astype(np.int64)
        leaves = np.repeat(leaves, many)
        leaves = leaves[np.argsort(rows.group[leaves], kind="stable")]
        depth = np.zeros(len(order), np.int64)
        for here in rows.plan.down():
            depth[here] = depth[rows.up[here]] + 1
        shape = (len(leaves), int(depth[leaves].max(initial=0)))
        self.nodes, self.rewards, at = np.full(shape, -1), np.zeros(shape), leaves.copy()
        while (inner := rows.up[at] >= 0).any():
            row = np.flatnonzero(inner)
            column = depth[at[row]] - 1
            self.nodes[row, column] = order[at[row]]
            self.rewards[row, column] = rows.reward[at[row]]
            at[row] = rows.up[at[row]]
        self.mask = self.nodes >= 0
        self.returns, self.group = self.rewards.sum(1), rows.group[leaves]
        self.factor = rows.scale[leaves]
        self.size = len(order)

    def back(self, advantage: Array) -> Array:
        """Σ over rows, by node of the arrays, so that one tree of one chain has its advantage as coefficient."""
        weighed = (advantage * self.factor[:, None])[self.mask]
        return np.bincount(self.nodes[self.mask], weights=weighed, minlength=self.size)


def _zeros(arrays: TreeArrays, coef: Array) -> tuple[float, float]:
    edge = (arrays.parent >= 0) & arrays.trainable & arrays.kept & ~arrays.aux
    largest = float(np.abs(coef).max(initial=0.0))
    spoken = np.abs(coef) > 1e-12 * largest if largest else np.zeros(len(coef), np.bool_)
    _, group = np.unique(arrays.group, return_inverse=True)
    said = np.bincount(group, weights=spoken & edge) > 0
    trained = int(edge.sum())
    return (1.0 - float((spoken & edge).sum()) / trained if trained else math.nan), 1.0 - float(said.mean())
