"""The published estimators on the common arrays; rows.py states the convention that all of them share.

R_l is the return of row l, V(c) the mean return of the rows through node c, μ and σ mean and standard deviation
over the rows of the task. Formulas of papers of which only the abstract was at hand say "after".
"""

from __future__ import annotations

import numpy as np

from treewright.training.credit.rows import Advantage, Rows, inverse_std, ratio, row_estimator

__all__ = [
    "dr_grpo",
    "gigpo",
    "grpo",
    "portool",
    "rloo",
    "sibling",
    "tempo",
    "tree_grpo",
    "treepo",
    "treeps",
    "treerl",
    "vine",
]


@row_estimator("grpo")
def grpo(rows: Rows, *, eps: float = 1e-6) -> Advantage:
    """A_l = (R_l − μ)/(σ + ε). GRPO, as in DeepSeekMath, 2402.03300.

    Assumes independent trajectories of one task; scale depends on σ, and μ contains the row itself.
    """
    mean, inverse = rows.standard(rows.total, rows.group, eps=eps)
    return Advantage(row=(rows.total - mean) * inverse)


@row_estimator("dr_grpo")
def dr_grpo(rows: Rows) -> Advantage:
    """A_l = R_l − μ. Dr. GRPO, 2503.20783: no division by σ; summed over tokens, not averaged.

    Assumes independent trajectories; μ contains the row itself, which scales the gradient by 1 − 1/n.
    """
    mean, _ = rows.standard(rows.total, rows.group, eps=1.0)
    return Advantage(row=rows.total - mean)


@row_estimator("rloo")
def rloo(rows: Rows) -> Advantage:
    """A_l = R_l − mean of the other rows. REINFORCE leave-one-out, 2402.14740 (after Kool et al. 2019).

    Unbiased for independent trajectories. Leaves of one tree are not independent.
    """
    n = np.bincount(rows.group, weights=rows.own)[rows.group]
    mean, _ = rows.standard(rows.total, rows.group, eps=1.0)
    return Advantage(row=(rows.total - mean) * ratio(n, n - 1))


@row_estimator("tree_grpo")
def tree_grpo(rows: Rows, *, eps: float = 1e-6) -> Advantage:
    """A_l = (R_l − μ_task)/(σ_task + ε) + (R_l − μ_tree)/(σ_tree + ε). Tree-GRPO, 2509.21240.

    Assumes trees grown by random re-expansion, several trees per task; leaves count alike at any depth.
    """
    task, by_task = rows.standard(rows.total, rows.group, eps=eps)
    tree, by_tree = rows.standard(rows.total, rows.tree, eps=eps)
    return Advantage(row=(rows.total - task) * by_task + (rows.total - tree) * by_tree)


@row_estimator("treepo")
def treepo(rows: Rows, *, whiten: bool = True, eps: float = 1e-6) -> Advantage:
    """A_l = mean over prefixes of [R_l − mean of the rows sharing the prefix], whitened over the batch.

    TreePO, 2508.17445. The empty prefix is shared by the whole task; a prefix held by one row alone is skipped.
    Assumes segments of fixed length, so that equal depth means equal progress.
    """
    count = np.bincount(rows.group, weights=rows.own)[rows.group]
    task, _ = rows.standard(rows.total, rows.group, eps=1.0)
    shared = np.where(rows.inner, rows.n > 1, count > 1).astype(np.float64)
    means = shared * np.where(rows.inner, rows.mean, task)
    prefixes, sums = np.zeros(len(count)), np.zeros(len(count))
    for here in rows.plan.down():
        p = rows.up[here]
        prefixes[here] = prefixes[p] + shared[p]
        sums[here] = sums[p] + means[p]
    advantage = np.where(rows.finished & (prefixes > 0), rows.total - ratio(sums, prefixes), 0.0)
    if whiten:
        mean, inverse = rows.standard(advantage, np.zeros_like(rows.group), eps=eps)
        advantage = (advantage - mean) * inverse
    return Advantage(row=advantage)


@row_estimator("tempo")
def tempo(rows: Rows, *, std: bool = True, eps: float = 1e-6) -> Advantage:
    """A(l, t) = [(R_l − μ) + V(s_{t+1}) − V(s_t)] / (σ + ε). TEMPO, 2509.18314.

    V is the mean over the rows through a prefix, so the correction is zero where nothing branches; the task's trees
    share the empty prefix. Adds the difference to a return that already contains it. `std=False` leaves σ out.
    """
    task, inverse = rows.standard(rows.total, rows.group, eps=eps)
    before = np.where(rows.up >= 0, rows.mean[rows.up], 0.0)
    at_root = rows.inner & (rows.up < rows.arrays.trees)
    step = np.where(rows.inner, rows.mean - np.where(at_root, task, before), 0.0)
    factor = inverse if std else np.ones_like(inverse)
    return Advantage(row=(rows.total - task) * factor, node=step * factor)


@row_estimator("treerl")
def treerl(rows: Rows) -> Advantage:
    """A(c) = [(V(c) − V(root)) + (V(c) − V(parent))] / √(leaves below one copy of c). TreeRL, ACL 2025 (2506.11902).

    V is the leaf mean. The root weighs the frequent prefix down; gradients of unequal nodes no longer add up to one.
    """
    return Advantage(row=np.zeros_like(rows.n), node=_global_local(rows) * np.sqrt(ratio(rows.copies, rows.n)))


@row_estimator("treeps")
def treeps(rows: Rows, *, parent: float = 0.5, root: float = 0.5) -> Advantage:
    """A(c) = parent·(V(c) − V(parent)) + root·(V(c) − V(root)). After TreePS-RAG, 2601.06922.

    V is the Monte Carlo mean of the outcomes below a node; the two factors are ours. Assumes that branches end at
    equal depth or grow independently of outcomes, since V is the mean of leaves.
    """
    return Advantage(row=np.zeros_like(rows.n), node=_global_local(rows, parent, root))


def _global_local(rows: Rows, parent: float = 1.0, root: float = 1.0) -> np.ndarray:
    top = np.zeros(int(rows.tree.max(initial=-1)) + 1)
    top[rows.tree[~rows.inner]] = rows.mean[~rows.inner]
    before = rows.mean[np.maximum(rows.up, 0)]
    here = rows.n > 0
    return np.asarray(np.where(here, parent * (rows.mean - before) + root * (rows.mean - top[rows.tree]), 0.0))


@row_estimator("sibling")
def sibling(rows: Rows, *, by: str = "draws", eps: float = 1e-6) -> Advantage:
    """A(l, c) = GRPO's A_l + (V(c) − μ_siblings)/(σ_siblings + ε) at branching points. V-STAR, 2602.10699.

    by  draws: a sibling counts as often as it was drawn, so that merging equal draws changes nothing; nodes: once, as
        published. Raises ValueError for another.
    With two children σ makes every gap ±1, whatever its size.
    """
    if by not in ("nodes", "draws"):
        raise ValueError(f"by = {by!r}; siblings count by nodes or by draws")
    value = rows.mean
    mean, variance = rows.among_siblings(value, np.where(rows.n > 0, rows.mult if by == "draws" else 1.0, 0.0))
    step = np.where(rows.inner & (rows.n > 0), (value - mean) * inverse_std(variance, eps), 0.0)
    task, inverse = rows.standard(rows.total, rows.group, eps=eps)
    return Advantage(row=(rows.total - task) * inverse, node=step)


@row_estimator("gigpo")
def gigpo(rows: Rows, *, omega: float = 1.0, gamma: float = 0.95, std: bool = True, eps: float = 1e-6) -> Advantage:
    """A(l, c) = A_l + ω·(D_c − μ)/(σ + ε) over the steps taken from equal states. GiGPO, 2505.10978.

    D_c is the discounted return from the step on; where rows share a step, their mean stands for them. Steps whose
    parent's `state_key` is −1, and states met once, get no step advantage. `std=False` divides by nothing.
    Assumes that equal keys mean equal states; it mixes steps of different remaining length.
    """
    back = rows.reward.copy()
    for here, above in rows.plan.up():
        total = rows.plan.add_to_parents(here, above, rows.n[here] * back[here])
        back[above] += gamma * ratio(total, rows.n[above])
    key = rows.arrays.state_key[rows.plan.order][np.maximum(rows.up, 0)]
    used = np.flatnonzero(rows.inner & (rows.n > 0) & (key >= 0))
    step = np.zeros_like(back)
    if len(used):
        _, state = np.unique(key[used], return_inverse=True)
        anchor = np.unique(state * (int(rows.group.max()) + 1) + rows.group[used], return_inverse=True)[1]
        n = np.bincount(anchor, weights=rows.n[used])
        mean = ratio(np.bincount(anchor, weights=(rows.n * back)[used]), n)[anchor]
        off = back[used] - mean
        variance = ratio(np.bincount(anchor, weights=rows.n[used] * off**2), n)
        step[used] = off * (inverse_std(variance, eps)[anchor] if std else 1.0)
    task, inverse = rows.standard(rows.total, rows.group, eps=eps)
    return Advantage(row=(rows.total - task) * (inverse if std else 1.0), node=omega * step)


@row_estimator("portool")
def portool(rows: Rows, *, blend: float = 0.5, call: float = 0.1, decay: float = 0.95, eps: float = 1e-6) -> Advantage:
    """A(l, c) = blend·(ρ_c − μ_fork)/(σ_fork + ε) + (1 − blend)·GRPO's A_l. After PORTool, 2510.26020.

    ρ_c, the reward of a step, is the mean of decay^(steps to the leaf)·R_l over the rows below, plus `call` where the
    call was valid. Correctness dominates as long as `call` stays well below the task's reward; all three factors
    are ours. A step shared by rows has one reward; siblings count by their draws.
    """
    reach = np.where(rows.finished, rows.total, 0.0)
    for here, above in rows.plan.up():
        total = rows.plan.add_to_parents(here, above, rows.n[here] * reach[here])
        reach[above] += decay * ratio(total, rows.n[above])
    step = reach + call * rows.arrays.call_ok[rows.plan.order]
    mean, variance = rows.among_siblings(step, np.where(rows.n > 0, rows.mult, 0.0))
    fork = np.where(rows.inner & (rows.n > 0), (step - mean) * inverse_std(variance, eps), 0.0)
    task, inverse = rows.standard(rows.total, rows.group, eps=eps)
    return Advantage(row=(1 - blend) * (rows.total - task) * inverse, node=blend * fork)


@row_estimator("vine")
def vine(rows: Rows) -> Advantage:
    """A(c) = reward_c + V̂(c) − V̂(parent), V̂ from auxiliary rollouts. VinePPO, 2410.01679.

    V̂ of a state is the mean return of its auxiliary rollouts, 0 where the episode ended. Unbiased for chains whose
    every state has some; a state without any falls back to the rows through it, which makes its step's
    advantage correlated with its own baseline (zero for a lone chain).
    """
    a, order = rows.arrays, rows.plan.order
    aux = a.aux[order]
    known = aux & ~a.fault[order] & ~np.isnan(a.reward[order]) & a.executed[order]
    back, n = np.where(known, rows.reward, 0.0), np.zeros(len(aux))
    ended = (a.terminal | a.truncated)[order]
    value = np.where(ended | (rows.n == 0), 0.0, rows.mean - rows.path)
    for here, above in rows.plan.up():
        done = known[here] & (ended[here] | (n[here] > 0))
        amount = rows.plan.add_to_parents(here, above, done * rows.mult[here])
        total = rows.plan.add_to_parents(here, above, done * rows.mult[here] * back[here])
        n[above] = amount
        value[above] = np.where(amount > 0, ratio(total, amount), value[above])
        back[above] += np.where(aux[above], ratio(total, amount), 0.0)
    step = np.where(rows.inner, rows.reward + value - value[np.maximum(rows.up, 0)], 0.0)
    return Advantage(row=np.zeros_like(rows.n), node=step, value=value)
