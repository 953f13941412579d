"""SPLIT-LOO, the default estimator: unbiased policy gradients from trees, best-first ones included.

For a child c of p with K draws at p, of which m are token-identical to c (μ = m/K unless shares are given):

    T_c = reward_c + V_c                         what is earned from c's edge on
    U_c = h_c + κ_c (T_c − h_c) / q_c            roulette: kept with probability q, else the control h
    V_p = Σ μ_c U_c                              the recursive mean, not the mean of leaves
    w_c = w_p μ_c κ_c / q_c                      mass, 1 at the root
    b_c = λ(K−1)·(K V_p − U_c)/(K−1) + (1 − λ(K−1))·d_p        baseline of the edge: the other draws
    d_c = λ(K−m)·(K V_p − m U_c)/(K−m) + (1 − λ(K−m))·d_p − reward_c        what c's own children inherit
    coef_c = w_p μ_c (U_c − b_c)                 gradient = Σ coef_c ∇log π(a_c | s_p)
    λ(n) = n/(n+τ)

For shares other than m/K read (V_p − μ U_c)/(1 − μ) for the mean of the others and 1/μ for K: then nothing depends
on how many draws a reserve was split into later, which may depend on outcomes.

Where draws were made from another distribution than the policy's, at another temperature say, ρ = π(a)/π_drawn(a) is
their `importance`: read μρ for μ in V, w and coef, and Σ μρU / Σ μρ for the means of other draws. The sum V stays
unbiased, and so does the gradient, since a baseline is made of draws other than its own.

b leaves out one draw, so other copies of the same tokens stay in it; d leaves out all m copies, because they
share c's subtree. Σ w·V over the frontier is a martingale under any predictable choice of what to expand, so a
search guided by any score stays exact as long as shares are fixed before the draws, the draws come from the
policy, every open node is closed by a full rollout (or by a coin with recorded probability), and pruning is
roulette. Precedent for splitting with unbiased weights: Bréhier et al., Annals of Applied Probability 26(6), 2016.
"""

from __future__ import annotations

import numpy as np

from treewright.training.credit.arrays import Bools, Credit, Floats, TreeArrays
from treewright.training.credit.levels import Levels, levels
from treewright.training.credit.registry import estimator

__all__ = ["credited", "split_loo"]


@estimator("split_loo")
def split_loo(
    arrays: TreeArrays,
    *,
    tau: float = 3.0,
    weight_power: float = 1.0,
    root_baseline: float | None = None,
    allow_biased: bool = False,
) -> Credit:
    """The credit of every node by SPLIT-LOO; the formulas stand at the head of this module.

    tau            shrinkage of a sibling baseline towards the inherited one; 0 = siblings alone where there are any
    weight_power   β in (w_p μ_c)^β: 1 is exact, 0 the published practice of weighting every node alike
    root_baseline  d at the root of a tree that is alone in its group (a running mean of earlier batches);
                   None = the mean of the batch's other trees, 0 for a single tree
    allow_biased   accept inexact trees: nodes of unknown value are left out and their mass goes to their siblings

    Auxiliary nodes carry no mass and get value NaN. Raises InexactTree, and ValueError for tau < 0.
    """
    if tau < 0:
        raise ValueError(f"tau must be ≥ 0, it is {tau}")
    arrays.require_choices("split_loo")
    if not allow_biased:
        arrays.require_exact("split_loo")
    return credited(arrays, tau, weight_power, root_baseline)[0]


def credited(
    arrays: TreeArrays, tau: float | Floats, weight_power: float = 1.0, root_baseline: float | None = None,
    values: Floats | None = None,
) -> tuple[Credit, Floats]:  # fmt: skip
    """SPLIT-LOO, and d [N]: what each node's value is taken for where its own draws do not say.

    tau     one number, or one for each node: that of the draws below it
    values  [N] stands for d where it is finite: anything known of a node before its draws, fitted on other trees
    """
    plan = levels(arrays.parent)
    up, n_roots = plan.parent, arrays.trees
    reward, control, kept, mult = (plan.pick(c) for c in (arrays.reward, arrays.control, arrays.kept, arrays.mult))
    reward[:n_roots] = 0.0
    if np.isnan(reward.sum()):
        reward = np.nan_to_num(reward)
    scale = kept / plan.pick(arrays.keep_prob)
    usable = _usable(arrays, plan)
    share = _shares(arrays, plan, usable, mult)

    fixed = control + scale * (reward - control)
    rho = np.nan_to_num(plan.pick(arrays.importance), nan=1.0)
    plain = bool((rho == 1).all())
    worth = share if plain else share * rho
    total = 1.0 if plain else np.bincount(up[n_roots:], weights=worth[n_roots:], minlength=len(up)).take(up)
    value, mass, square = _upward(plan, fixed, scale, worth)
    drawn = fixed + scale * value

    above, single = value.take(up), share / mult
    believed: Floats | float = tau if isinstance(tau, float | int) else plan.pick(tau).take(up)
    lam_b = _shrink(1.0, single, believed)
    lam_d = _shrink(mult, share, believed)
    own_d = lam_d * _without(above, worth, drawn, total) - reward

    weight, stay = worth * scale, 1 - lam_d
    weight[:n_roots] = usable[:n_roots]
    tasks = arrays.group[arrays.parent < 0]
    own_d[:n_roots] = _root_baselines(value[:n_roots], usable[:n_roots], tasks, root_baseline)
    given = np.full(len(up), np.nan) if values is None else plan.pick(values)
    own_d[:n_roots] = np.where(np.isfinite(given[:n_roots]), given[:n_roots], own_d[:n_roots])
    for here in plan.down():
        weight[here] *= weight[up[here]]
        own_d[here] += stay[here] * own_d[up[here]]
        if values is not None:
            own_d[here] = np.where(np.isfinite(given[here]), given[here], own_d[here])

    baseline = lam_b * _without(above, single * rho, drawn, total) + (1 - lam_b) * own_d.take(up)
    edge = weight.take(up) * worth
    edge[:n_roots] = 0.0
    power = edge if weight_power == 1 else np.where(edge > 0, edge**weight_power, 0.0)
    coef = power * (drawn - baseline) * (usable & arrays.trainable.take(plan.order)) + 0.0
    ess = mass**2 / np.maximum(square, 1e-300)
    unknown = ~usable | (kept == 0)
    value[unknown], ess[unknown] = np.nan, 0.0
    credit = Credit(value=plan.back(value), coef=plan.back(coef), weight=plan.back(weight), ess=plan.back(ess))
    return credit, plan.back(own_d)


def _usable(arrays: TreeArrays, plan: Levels) -> Bools:
    """[N] in level order: nodes with a known value, where an inner node needs one child that has one."""
    lost, aux = arrays.lost, arrays.aux
    if not lost.any():
        return np.asarray(~aux.take(plan.order))
    usable: Bools = (~lost & ~aux).take(plan.order)
    needs_child = ((arrays.n_children > 0) & arrays.kept).take(plan.order)
    for here, above in plan.up():
        alive = plan.add_to_parents(here, above, usable[here].astype(np.float64)) > 0
        usable[above] &= alive | ~needs_child[above]
    return usable


def _shares(arrays: TreeArrays, plan: Levels, usable: Bools, mult: Floats) -> Floats:
    """[N] μ in level order, summing to 1 among usable siblings; 0 for the others.

    A float32 share of mult/k is taken as exactly mult/k.
    """
    n, inner = len(usable), slice(arrays.trees, None)
    up = plan.parent[inner]
    given, m = plan.pick(arrays.share)[inner] * usable[inner], mult[inner] * usable[inner]
    total = np.maximum(np.bincount(up, weights=m, minlength=n).take(up), 1.0)
    mass = np.maximum(np.bincount(up, weights=given, minlength=n).take(up), 1e-300)
    even, normal = m / total, given / mass
    share = np.zeros(n)
    share[inner] = np.where(np.abs(normal - even) < 1e-6, even, normal)
    return share


def _upward(plan: Levels, fixed: Floats, scale: Floats, share: Floats) -> tuple[Floats, Floats, Floats]:
    """(V, Σ and Σ² of the relative weights of finished leaves) by node, in level order."""
    n = len(fixed)
    value, mass, square = np.zeros(n), np.ones(n), np.ones(n)
    mass[plan.parent[share > 0]] = 0.0
    square[plan.parent[share > 0]] = 0.0
    part = share * scale
    for here, above in plan.up():
        value[above] += plan.add_to_parents(here, above, share[here] * (fixed[here] + scale[here] * value[here]))
        mass[above] += plan.add_to_parents(here, above, part[here] * mass[here])
        square[above] += plan.add_to_parents(here, above, part[here] ** 2 * square[here])
    return value, mass, square


def _without(value: Floats, left_out: Floats, drawn: Floats, total: Floats | float) -> Floats:
    """The mean of the parent's draws, of weight `total`, without `left_out`; of no meaning where nothing is left."""
    return np.asarray((value - left_out * drawn) / np.maximum(total - left_out, 1e-9))


def _shrink(draws: Floats | float, left_out: Floats, tau: float | Floats) -> Floats:
    """λ(n) for the n = draws·(1 − μ)/μ other draws: K − 1 or K − m where μ = draws/K; 0 where there are none."""
    others = draws * (1 - left_out) / np.maximum(left_out, 1e-9)
    return np.asarray(others / np.maximum(others + tau, 1e-9) * (left_out < 1 - 1e-9))


def _root_baselines(value: Floats, usable: Bools, group: np.ndarray, alone: float | None) -> Floats:
    """[T] the mean root value of the other trees of the group; see `root_baseline` for a tree without company."""
    _, g = np.unique(group, return_inverse=True)
    have = usable.astype(np.float64)
    total = np.bincount(g, weights=have * value)[g] - have * value
    count = np.bincount(g, weights=have)[g] - have
    if alone is None:
        everyone, n = float(np.sum(have * value)), float(np.sum(have))
        rest = np.divide(everyone - have * value, n - have, out=np.zeros_like(value), where=n - have > 0.5)
    else:
        rest = np.full_like(value, alone)
    return np.asarray(np.divide(total, count, out=rest, where=count > 0.5))


split_loo.weighs = True  # type: ignore[attr-defined]  # it takes `importance`, see registry.weighs
