"""Prefix-conditioned recipes: where trees start in stored ones, and what of them is trained.

    PrefixRL     start from a front of a successful old path; train what is drawn after it
    Prefix-RFT   the same, and the prefix's own tokens where the policy is least sure; fronts get shorter
    PPPO         start from fronts that the policy drew; train the fronts alone, by what several continuations earn;
                 fronts get longer

The unit is a turn, a share of a path being rounded to whole turns, or a token: then the given part ends anywhere in a
response, and a path of one turn has prefixes too. Trees come from `search.rooted.search_from`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.search.rooted import Start, prefix_length
from treewright.search.tree import Tree
from treewright.search.types import Origin
from treewright.training.credit import Credit, TreeArrays, estimate, options_taken
from treewright.training.credit.arrays import Origin as Code
from treewright.training.credit.trees import tree_arrays
from treewright.training.export.rows import SOLVED
from treewright.training.export.view import View
from treewright.training.loss import Mode
from treewright.training.recipes.fronts import UNITS, front, next_share, share_at
from treewright.training.settings import TrainSettings
from treewright.training.step import Trainer
from treewright.training.versions import require_fresh

__all__ = [
    "RECIPES",
    "UNITS",
    "Recipe",
    "drawn_starts",
    "front",
    "good_starts",
    "learn",
    "next_share",
    "pppo",
    "prefix_rft",
    "recipe",
    "share_at",
]


@dataclass(frozen=True, slots=True)
class Recipe:
    """name  prefixrl | prefix_rft | pppo;  first, last  the share of a path that is kept, at the beginning and the end
    from_draws  whether fronts are taken from what the policy drew, not from successful paths"""

    name: str
    first: float
    last: float
    from_draws: bool


RECIPES = {
    "prefixrl": Recipe("prefixrl", 0.5, 0.5, False),
    "prefix_rft": Recipe("prefix_rft", 0.95, 0.05, False),
    "pppo": Recipe("pppo", 0.25, 0.75, True),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises TreewrightError with the nearest known one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(RECIPES)}"
        raise TreewrightError(f"no prefix recipe named {name!r}; {hint}")
    return RECIPES[name]


def good_starts(trees: Sequence[Tree], share: float, min_outcome: float = SOLVED, unit: str = "turn") -> list[Start]:
    """A front of the best path of each tree that has one of at least `min_outcome`; equal fronts come once.

    PrefixRL and Prefix-RFT take traces of any weights, and imported ones.
    """
    out: dict[tuple[object, ...], Start] = {}
    for tree in trees:
        for leaf in View(tree, style="tokens").best("best", min_outcome):
            path = tree.path(leaf)
            own = tree.origin[path[1]] if len(path) > 1 else Origin.STORED
            start = front(tree, leaf, share, unit=unit, origin=Origin.DEMO if own is Origin.DEMO else Origin.STORED)
            if start is not None:
                out.setdefault((start.task.suite, start.task.id, start.ids), start)
    return list(out.values())


def drawn_starts(trees: Sequence[Tree], share: float, unit: str = "turn") -> list[Start]:
    """Fronts of all finished paths, good or bad, with their mass: what PPPO compares within a task.

    Paths of one front, by exact tokens, are pooled and add up their masses. Fronts without a turn, or a token, are left
    out: nothing of them can be trained.
    """
    out: dict[tuple[object, ...], Start] = {}
    for tree in trees:
        for leaf in tree.leaves():
            start = front(tree, leaf, share, unit=unit, least=1)
            if start is None or not all(start.ids):
                continue
            start = replace(start, mass=tree.mass[leaf])
            key = (start.task.suite, start.task.id, start.ids)
            have = out.get(key)
            out[key] = start if have is None else replace(have, mass=have.mass + start.mass)
    return list(out.values())


def learn(
    trainer: Trainer, name: str, trees: Sequence[Tree], masses: Sequence[float] | None = None
) -> dict[str, float]:
    """One update of the recipe on trees grown from its starts; `masses` are those of the starts, for PPPO.

    The trees must be exact (or train.allow_biased set) and as fresh as train.max_staleness says: their continuations
    were drawn by the weights that are trained.
    """
    if recipe(name).name == "prefixrl":
        return trainer.update(trees)
    fresh = trainer.unseen(trees)
    if trainer.versions is not None:
        require_fresh([t.header.policy_version for t in fresh], trainer.versions, trainer.settings.max_staleness)
    if name == "prefix_rft":
        return prefix_rft(trainer, fresh)
    mass = dict(zip((t.tree_id for t in trees), masses or [1.0] * len(trees), strict=True))
    return pppo(trainer, fresh, [mass[t.tree_id] for t in fresh])


def _given(trees: Sequence[Tree]) -> NDArray[np.bool_]:
    """[N] bool: the nodes of the trees' prefixes."""
    parts = []
    for tree in trees:
        mask = np.zeros(len(tree), np.bool_)
        mask[1 : prefix_length(tree) + 1] = True
        parts.append(mask)
    return np.concatenate(parts)


def _options(s: TrainSettings) -> dict[str, Any]:
    """What these recipes, whose credit is SPLIT-LOO, take of the settings."""
    return {"allow_biased": s.allow_biased, **options_taken("split_loo", s.estimator_options)}


def prefix_rft(trainer: Trainer, trees: Sequence[Tree]) -> dict[str, float]:
    """Policy gradient on the continuations, and on the most uncertain tokens of the prefixes (after Prefix-RFT,
    2507.01679, which takes the top 20 % by entropy: train.top_entropy).

    A prefix is credited like a draw of mass 1: what came of it against the other trees of the task and earlier batches.
    """
    s = trainer.settings
    arrays = tree_arrays(trees, by="task")
    given = _given(trees)
    as_drawn = arrays.with_(origin=np.where(given, Code.POLICY, arrays.origin))
    alone = _running(trainer, trees)
    credit = estimate("split_loo", as_drawn, **{**_options(s), "root_baseline": alone})
    _remember(trainer, trees, arrays, credit)
    mode = np.where(given, Mode.TOP_ENTROPY, np.where(arrays.trainable, Mode.PG, Mode.NONE))
    return trainer.learn(trees, as_drawn, credit, mode=mode.astype(np.int64))


def pppo(trainer: Trainer, trees: Sequence[Tree], masses: Sequence[float]) -> dict[str, float]:
    """Policy gradient on the prefixes alone, by the summed return of their continuations (after PPPO, 2512.15274).

    The prefixes of a task are compared with each other: advantage = C·(V − mean V of the others, by mass), where V is
    the mean return of a prefix's C continuations and C the most any of them had. Prefixes that are alone get none.
    """
    s = trainer.settings
    arrays = tree_arrays(trees, by="task")
    values = estimate("split_loo", arrays, **{**_options(s), "weight_power": 1.0})
    coef = np.zeros(len(arrays))
    start = np.cumsum([0] + [len(t) for t in trees])
    ends = [prefix_length(t) for t in trees]
    if not all(ends):
        raise TreewrightError("a tree has no prefix; PPPO trains on trees grown from stored nodes alone")
    value = np.asarray([values.value[start[i] + end] for i, end in enumerate(ends)])
    draws = max(tree.drawn[end] for tree, end in zip(trees, ends, strict=True))
    mass = np.asarray(masses, np.float64)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, tree in enumerate(trees):
        groups.setdefault((tree.task.suite, tree.task.id), []).append(i)
    for mine in groups.values():
        total, whole = float(mass[mine].sum()), float((mass[mine] * value[mine]).sum())
        for i in mine:
            rest = total - mass[i]
            if len(mine) > 1 and rest > 0:
                others = (whole - mass[i] * value[i]) / rest
                coef[start[i] + 1 : start[i] + ends[i] + 1] = draws * (value[i] - others) * mass[i] * len(mine) / total
    given = _given(trees)
    as_drawn = arrays.with_(origin=np.where(given, Code.POLICY, Code.STORED))
    credit = Credit(value=values.value, coef=coef, weight=values.weight, ess=values.ess)
    mode = np.where(given, Mode.PG, Mode.NONE).astype(np.int64)
    return trainer.learn(trees, as_drawn, credit, mode=mode) | {"prefixes": float(len(trees))}


def _running(trainer: Trainer, trees: Sequence[Tree]) -> float | None:
    known = [trainer.baselines[t.task.suite] for t in trees if t.task.suite in trainer.baselines]
    return float(np.mean(known)) if known else None


def _remember(trainer: Trainer, trees: Sequence[Tree], arrays: TreeArrays, credit: Credit) -> None:
    roots = credit.value[arrays.roots]
    for suite in {t.task.suite for t in trees}:
        own = [float(v) for t, v in zip(trees, roots, strict=True) if t.task.suite == suite and np.isfinite(v)]
        if own:
            trainer.baselines[suite] = float(np.mean(own))
