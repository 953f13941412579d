"""`treewright bench estimators`: when does it matter that an estimator is unbiased? Tables of logits, trained.

Worlds that are enumerated, so that success is known exactly after every update. Each estimator gets trees of the same
schedule, SGD and Adam, and of the rates the one of the largest area on a seed of its own; then six paired seeds.

short   four steps, three actions;  long  eight steps
trap    one action is worth .6 for sure. The other leads to a coin of the world's, half of the time to a state worth 1
        that the judge likes and is branched in, else to one worth 0 that is not: its leaves are good more often than
        half of the time, which is what leaf rows see
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from treewright.agent.runs.figures import write_result
from treewright.training.check.mdp import Array, Mdp, measure, small_mdp
from treewright.training.check.mdp_growth import grow
from treewright.training.credit import Credit, TreeArrays, estimate

__all__ = ["CASES", "ESTIMATORS", "OPTIMIZERS", "Case", "interval", "main", "trained", "trap"]

ESTIMATORS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "split_loo": ("split_loo", {}),
    "split_fitted": ("split_fitted", {}),
    "rows": ("dr_grpo", {}),
    "rows, standardised": ("grpo", {}),
}
OPTIMIZERS = {"sgd": (10.0, 30.0, 100.0), "adam": (0.1, 0.3, 1.0)}
"""Their rates. In a grid from a tenth of these the best was the largest, for every estimator but in the trap."""
TREES = 16


@dataclass(frozen=True, slots=True)
class Case:
    """A world and how trees grow in it. given  states whose draws are the world's and are not trained."""

    world: Mdp
    schedule: str
    given: tuple[int, ...] = ()


def trap() -> Mdp:
    """States: the start, the coin, what heads leads to, what tails leads to."""
    to = np.array([[-1, 1], [2, 3], [-1, -1], [-1, -1]])
    reward = np.array([[0.6, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    return Mdp(to, reward, np.zeros((4, 2)), np.array([0.5, 0.3, 0.9, 0.05]), np.array([0, 1, 2, 2]))


CASES: Mapping[str, Case] = {
    "short, alike": Case(small_mdp(), "fixed_2"),
    "short, best first": Case(small_mdp(), "best_first"),
    "long, best first": Case(small_mdp(8, (1, 3, 4, 4, 4, 4, 4, 4)), "best_first"),
    "trap": Case(trap(), "split_liked", (1,)),
}


def credited(name: str, arrays: TreeArrays, seen: Array) -> Credit:
    """seen [N]: the judge's score of each node, which fitted baselines may use."""
    estimator, options = ESTIMATORS[name]
    return estimate(estimator, replace(arrays, more={"score": seen}), **dict(options))


def trained(case: Case, name: str, optimizer: str, rate: float, seed: int, updates: int) -> list[float]:
    """[updates + 1] the true value of the policy before the first update and after each."""
    world, values = case.world, [float(case.world.values()[0][0])]
    first, second = np.zeros(world.logits.shape), np.zeros(world.logits.shape)
    for step in range(1, updates + 1):
        grown = grow(case.schedule, TREES, 1000 * seed + step, world)
        seen = np.where(grown.state >= 0, world.judge[grown.state], np.nan)
        credit = credited(name, grown.arrays, seen)
        edge = np.flatnonzero(grown.arrays.parent >= 0)
        state, coef = grown.state[grown.arrays.parent[edge]], credit.coef[edge]
        gradient = np.zeros(world.logits.shape)
        np.add.at(gradient, (state, grown.action[edge]), coef)
        np.add.at(gradient, state, -coef[:, None] * world.policy[state])
        gradient[list(case.given)] = 0.0
        gradient /= TREES
        if optimizer == "adam":
            first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
            gradient = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
        world = replace(world, logits=world.logits + rate * gradient)
        values.append(float(world.values()[0][0]))
    return values


def interval(mine: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """(mean difference, low, high): the paired bootstrap's 95 % interval over seeds."""
    apart = np.asarray(mine) - np.asarray(base)
    draws = np.random.default_rng(0).integers(0, len(apart), (10_000, len(apart)))
    low, high = np.percentile(apart[draws].mean(1), [2.5, 97.5])
    return float(apart.mean()), float(low), float(high)


def main(
    quick: bool = False, json_path: str | None = None, plot_path: str | None = None, *,
    updates: int | None = None, seeds: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains every case with every estimator and optimizer; returns what the JSON holds.

    area  the mean of the policy's true value over a run;  gap  of areas, against split_loo with the same optimizer
    cosine  of the mean gradient at the start with the true one
    """
    steps, many = updates or (12 if quick else 30), seeds or (2 if quick else 6)
    found: dict[str, Any] = {}
    for label, case in CASES.items():
        grown = grow(case.schedule, 320 if quick else 3200, 5, case.world)
        seen = np.where(grown.state >= 0, case.world.judge[grown.state], np.nan)
        best = _best(case)
        told: dict[str, Any] = {"start": float(case.world.values()[0][0]), "best": best, "estimators": {}}
        areas: dict[tuple[str, str], list[float]] = {}
        for name, (optimizer, rates) in itertools.product(ESTIMATORS, OPTIMIZERS.items()):
            tuning = {
                rate: float(np.mean(trained(case, name, optimizer, rate, 101, steps)))
                for rate in (rates[:1] if quick else rates)
            }
            rate = max(tuning, key=lambda r: tuning[r])
            runs = [trained(case, name, optimizer, rate, s, steps) for s in range(1, many + 1)]
            areas[name, optimizer] = [float(np.mean(run)) for run in runs]
            gap = interval(areas[name, optimizer], areas["split_loo", optimizer])
            told["estimators"].setdefault(name, {"cosine": measure(case.world, grown, credited(
                name, grown.arrays, seen)).cosine})[optimizer] = {
                "rate": rate, "area": float(np.mean(areas[name, optimizer])),
                "final": float(np.mean([run[-1] for run in runs])), "gap": gap[0], "low": gap[1], "high": gap[2],
            }  # fmt: skip
        found[label] = told
    _print(found, quick)
    names = {"trap_final_split_loo": ("trap", "split_loo"), "trap_final_rows": ("trap", "rows, standardised")}
    result = {
        "quick": quick, "updates": steps, "seeds": many, "cases": found,
        "figures": {key: {"value": found[case]["estimators"][name]["adam"]["final"], "unit": "reward"}
                    for key, (case, name) in names.items()},
    }  # fmt: skip
    if json_path is not None:
        write_result(Path(json_path), result)
    return result


def _best(case: Case) -> float:
    """The value of the best policy, where the world's own draws stay what they are."""
    world, value = case.world, np.zeros(len(case.world.to))
    for s in reversed(range(len(value))):
        q = world.reward[s] + np.where(world.to[s] >= 0, value[world.to[s]], 0.0)
        value[s] = world.policy[s] @ q if s in case.given else q.max()
    return float(value[0])


def markdown(found: Mapping[str, Any]) -> str:
    """The table of docs/credit.md out of the JSON's `cases`."""
    lines = ["| case | estimator | cosine at the start | SGD: final | gap of areas | Adam: final | gap of areas |",
             "|---|---|---:|---:|---|---:|---|"]  # fmt: skip
    for label, told in found.items():
        for name, x in told["estimators"].items():
            lines.append("| " + " | ".join(_row(label, name, x)) + " |")
    return "\n".join(lines)


def _row(label: str, name: str, x: Mapping[str, Any]) -> list[str]:
    cells = [label, f"`{name}`" if name.startswith("split") else name, f"{x['cosine']:.2f}"]
    for optimizer in OPTIMIZERS:
        one = x[optimizer]
        gap = "" if name == "split_loo" else f"{one['gap']:+.3f} ({one['low']:+.3f} … {one['high']:+.3f})"
        cells += [f"{one['final']:.3f}", gap]
    return cells


def _print(found: Mapping[str, Any], quick: bool) -> None:
    table = Table("case", "estimator", "cosine", "sgd final", "gap", "adam final", "gap",
                  title="value of the policy" + (" (quick: measures nothing)" if quick else ""))  # fmt: skip
    for label, told in found.items():
        for name, x in told["estimators"].items():
            table.add_row(*_row(label, name, x))
    Console(emoji=False).print(table)
