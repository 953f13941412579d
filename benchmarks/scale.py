"""`treewright bench scale`: how cost grows, as exponents with intervals.

The cost of a search, or of laying trees out for training, against one thing at a time: cost ≈ a · size^b, fitted by
least squares over logarithms. An exponent of 1 means that twice as much costs twice as much, 0 that it costs the same.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.benchmarks.engine import MOVES, walk
from treewright.benchmarks.pair import keep
from treewright.envs.errors import TreewrightError
from treewright.envs.maze import make_suite
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Environment,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
)
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import Rule, best_first
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, Exchange
from treewright.training.credit.registry import estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.pack import pack_trees

__all__ = ["AXES", "Axis", "exponent", "main", "table"]

PER_POP, SIDE, RESAMPLES = 2.9, 8, 2000
FLAT: Final = 1.05
"""The largest exponent that anything but attention itself may have."""


class Corridor(BaseEnvironment):
    """A walk that never ends; what it shows is `length` characters. Every action leads on."""

    name = "corridor"
    restore_ways = frozenset({Restore.STATE})
    sandboxed = True
    tools = (ToolSpec("go", "goes on", {"type": "object"}, Effect.READ),)

    async def reset(self, task: Task, key: int) -> Observation:
        self.at, self.page = 0, "x" * (int(task.data["length"]) - 8)
        return self._seen()

    async def step(self, action: Action, key: int) -> StepResult:
        self.at += 1
        return StepResult(self._seen())

    async def snapshot(self) -> Snapshot:
        return Snapshot(Restore.STATE, (self.at, self.page), self._seen().fingerprint, size=64)

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.at, self.page = snapshot.data
        return self._seen()

    def _seen(self) -> Observation:
        return Observation(f"{self.at:08d}{self.page}", f"{self.at}")


async def _corridor() -> Environment:
    return Corridor()


def _on(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: Random) -> str:
    return f'go {{"to": {int(rng.random() * 1e9)}}}'


def _deep_first(draws: int) -> Rule:
    return Rule(name="deep first", priority=lambda node: float(node.depth), draws=lambda node: draws)


def _searched(suite: Suite, task: Task, policy: ScriptedPolicy, rule: Rule, pops: int, sessions: int = 1) -> float:
    """Seconds of processor time of one search with its store. Raises TreewrightError where it grew fewer pops."""

    async def run() -> Tree:
        pool = Pool(suite.open, sessions)
        try:
            return await search(
                task, pool, policy, rule=rule, store=store, budget=Budget(expansions=pops),
                settings=Settings(max_tokens=32, in_flight=sessions, close=False),
            )  # fmt: skip
        finally:
            await pool.close()

    with tempfile.TemporaryDirectory() as folder, TreeStore.open(Path(folder) / "trees.sqlite") as store:
        began = time.process_time()
        tree = asyncio.run(run())
        took = time.process_time() - began
    if len(tree.pops) < pops:
        raise TreewrightError(f"{len(tree.pops)} of {pops} pops were made; there is nothing to fit")
    return took


def _maze(pops: int, sessions: int = 1) -> float:
    suite = make_suite(SIDE)
    policy = ScriptedPolicy(walk, trainable=False, newest_only=True)
    return _searched(suite, suite.tasks("train", 1)[0], policy, best_first(draws=4), pops, sessions)


def _walked(pops: int, draws: int, length: int) -> float:
    task = Task("corridor", "0", "go", horizon=1 << 20, data={"length": length})
    suite = Suite("corridor", lambda split, count: [task], _corridor)
    return _searched(suite, task, ScriptedPolicy(_on, trainable=False, newest_only=True), _deep_first(draws), pops)


def _packed(trees: int) -> float:
    """Seconds of processor time to lay out so many trees for a step, their credit included."""
    suite = make_suite(2)
    task, policy = suite.tasks("train", 1)[0], scripted_choice([(move, 0.2) for move in MOVES])

    async def grow() -> list[Tree]:
        return [
            await search(task, suite, policy, budget=Budget(expansions=4), settings=Settings(attempt=i))
            for i in range(trees)
        ]

    grown = asyncio.run(grow())
    began = time.process_time()
    arrays = tree_arrays(grown)
    credit = estimate("split_loo", arrays, root_baseline=0.0, allow_biased=True)
    packs = pack_trees(grown, arrays, credit, every=True)  # also where a tree earned nothing
    took = time.process_time() - began
    if not packs:
        raise TreewrightError("nothing was packed; there is nothing to fit")
    return took


@dataclass(frozen=True, slots=True)
class Axis:
    """name   of its figure: NAME_exponent;  says  what cost against what
    cost   seconds of processor time at a size;  sizes: of a full run, the quick one takes `small`
    """

    name: str
    says: str
    cost: Callable[[int], float]
    sizes: tuple[int, ...]
    small: tuple[int, ...]


AXES: Final = (
    Axis("engine", "a search, against its nodes", lambda n: _maze(round(n / PER_POP)),
         (1_000, 3_000, 10_000, 30_000, 100_000), (200, 400, 800)),
    Axis("depth", "a chain, against its depth", lambda n: _walked(n, 1, 64), (100, 300, 1_000, 3_000), (50, 100, 200)),
    Axis("branching", "100 pops, against the draws of each", lambda n: _walked(100, n, 64),
         (2, 4, 8, 16, 32, 64), (2, 4, 8)),
    Axis("prompt", "300 pops, against the length of their prompts", lambda n: _walked(300, 2, n),
         (100, 300, 1_000, 3_000, 10_000), (100, 300, 1_000)),
    Axis("sessions", "a search of 3,000 nodes, against sessions side by side", lambda n: _maze(1_000, n),
         (1, 2, 4, 8, 16, 32, 64), (1, 2, 4)),
    Axis("packs", "credit and packing, against trees", _packed, (8, 16, 32, 64, 128, 256), (4, 8, 16)),
)  # fmt: skip


def exponent(sizes: Sequence[float], costs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """b of cost ≈ a · size^b, and its 95 % interval by the bootstrap over the repetitions of each size.

    costs  [sizes][repetitions] seconds; the least of a size counts, since whatever disturbs a run only adds to it
    """
    x = np.log(np.asarray(sizes, dtype=np.float64))

    def slope(least: Any) -> float:
        return float(np.polyfit(x, np.log(least), 1)[0])

    rng, held = np.random.default_rng(0), [np.asarray(c, dtype=np.float64) for c in costs]
    drawn = [slope([c[rng.integers(0, len(c), len(c))].min() for c in held]) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return slope([c.min() for c in held]), float(low), float(high)


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    *,
    only: Sequence[str] | None = None,
    rounds: int | None = None,
) -> dict[str, Any]:
    """{"figures": {NAME_exponent: b}, "axes": {NAME: sizes, costs, exponent, interval}, "quick"}.

    Raises TreewrightError for a part that names no axis.
    """
    console = Console(emoji=False)
    axes = [axis for axis in AXES if not only or any(part in axis.name for part in only)]
    if not axes:
        raise TreewrightError(f"no axis is called {(only or [''])[0]!r}; there are {', '.join(a.name for a in AXES)}")
    if quick:
        console.print("quick run: small sizes; its exponents are not the published ones")
    if plot_path is not None:
        console.print("bench scale draws no plot; --plot is ignored")
    _maze(50)  # imports, and what is compiled once
    found: dict[str, dict[str, Any]] = {}
    for axis in axes:
        sizes, times = (axis.small, 2) if quick else (axis.sizes, 3)
        costs: list[list[float]] = [[] for _ in sizes]
        for _ in range(rounds or times):
            for size, taken in zip(sizes, costs, strict=True):
                taken.append(axis.cost(size))
        b, low, high = exponent(sizes, costs)
        found[axis.name] = {
            "says": axis.says, "sizes": list(sizes), "seconds": [min(c) for c in costs], "exponent": b, "low": low,
            "high": high,
        }  # fmt: skip
    result: dict[str, Any] = {
        "figures": {f"{name}_exponent": {"value": axis["exponent"], "unit": ""} for name, axis in found.items()},
        "axes": found,
        "quick": quick,
    }
    console.print(_shown(found))
    if json_path is not None:
        if quick:
            raise TreewrightError("exponents of small sizes are not kept; leave out --quick or --json")
        keep(Path(json_path), {"axes": found, "figures": result["figures"]})
    return result


def _shown(found: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="cost ≈ a · size^b", title_justify="left")
    for column in ("cost of", "sizes", "b", "95 %"):
        table.add_column(column)
    for axis in found.values():
        table.add_row(*_cells(axis))
    return table


def _cells(axis: dict[str, Any]) -> tuple[str, str, str, str]:
    low, high = axis["low"], axis["high"]
    above = " (above 1.05)" if axis["exponent"] > FLAT and not math.isnan(low) else ""
    between = f"{axis['sizes'][0]:,} to {axis['sizes'][-1]:,}"
    return axis["says"], between, f"{axis['exponent']:.2f}{above}", f"{low:.2f} – {high:.2f}"


def table(axes: dict[str, dict[str, Any]]) -> str:
    """What the page shows of the exponents."""
    lines = ["| cost of | sizes | exponent | 95 % |", "|---|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(axis))} |" for axis in axes.values())])
