"""What a store says in pictures: success against sampled tokens, depth, branching, calibration and effects.

charts, note = make_charts(store, Filters(suite="kg"))
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.agent.view.chart import Chart, Series, draw_svg
from treewright.agent.view.reading import EFFECTS, Columns, Filters, Reader
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Effect
from treewright.search.store import STATUSES, TreeRow, TreeStore
from treewright.search.types import NodeStatus

__all__ = ["NODES", "make_charts", "plots_json", "wilson"]

NODES = 200_000  # nodes read unless more are asked for
GROUPS = 6
BINS = 10
SOLVED = 1.0 - 1e-6
FINISHED = [STATUSES.index(s) for s in (NodeStatus.TERMINAL, NodeStatus.TRUNCATED, NodeStatus.COMMITTED)]
UNEXECUTED = [STATUSES.index(s) for s in (NodeStatus.DRAFT, NodeStatus.PRUNED)]


@dataclass(slots=True)
class _Facts:
    """One finished tree: [N] depth, children, mean return found below (NaN = unknown), finished leaves."""

    columns: Columns
    depth: NDArray[Any]
    children: NDArray[Any]
    value: NDArray[Any]
    ends: NDArray[Any]
    solved_at: float


def make_charts(
    store: TreeStore, filters: Filters | None = None, most_nodes: int = NODES
) -> tuple[list[Chart], str, list[TreeRow]]:
    """The charts over finished trees, newest first, until they have `most_nodes` nodes; what was counted; the trees.

    Raises TreewrightError if no finished tree matches.
    """
    with closing(Reader(store)) as reader:
        facts, left_out = _gather(reader, filters or Filters(), most_nodes)
    if not facts:
        raise TreewrightError(f"no finished tree of {store.name} matches; plots are made of finished trees")
    nodes = sum(len(f.depth) for f in facts)
    note = f"{len(facts):,} finished trees with {nodes:,} nodes"
    if left_out:
        note += f"; {left_out:,} older ones were left out"
    if unknown := sum(f.columns.row.success is None for f in facts):
        note += f"; success is that of {len(facts) - unknown:,}, of {unknown:,} it is not known"
    charts = [_success(facts), _depth(facts), _branching(facts), _calibration(facts), _effects(facts)]
    return [c for c in charts if any(len(s.x) for s in c.series)], note, [f.columns.row for f in facts]


def plots_json(store: TreeStore, filters: Filters | None = None) -> dict[str, Any]:
    """The charts as SVG in base64, light and dark, with titles and captions; none without finished trees."""
    try:
        charts, note, _ = make_charts(store, filters)
    except TreewrightError as error:
        return {"note": str(error), "plots": []}
    plots = [
        {"title": c.title, "caption": c.caption, "light": _coded(c, False), "dark": _coded(c, True)} for c in charts
    ]
    return {"note": note, "plots": plots}


def _coded(chart: Chart, dark: bool) -> str:
    return base64.b64encode(draw_svg(chart, dark).encode()).decode()


def wilson(rate: float, n: int, z: float = 1.96) -> float:
    """Half the width of Wilson's interval for a share (E. B. Wilson, 1927)."""
    return z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))


# -- reading ----------------------------------------------------------------------------------------------------------


def _gather(reader: Reader, filters: Filters, most: int) -> tuple[list[_Facts], int]:
    """The newest finished trees that together have no more than `most` nodes, at least one; how many others match."""
    found: list[_Facts] = []
    nodes = 0
    matching = 0
    weights = reader.weights()
    for row in _done(reader, filters):
        matching += 1
        if (not found or nodes + row.nodes <= most) and len(found) == matching - 1:
            nodes += row.nodes
            columns = reader.columns(row.tree_id, labels=False)
            called = replace(columns.row, policy_version=weights.name(row.policy_version))
            found.append(_facts(replace(columns, row=called)))
    return found, matching - len(found)


def _done(reader: Reader, filters: Filters) -> Iterator[TreeRow]:
    offset = 0
    while True:
        page = reader.listing(filters, 500, offset)
        yield from (row for row, _ in page.rows if row.status == "done")
        offset += len(page.rows)
        if not page.rows or offset >= page.total:
            return


def _facts(columns: Columns) -> _Facts:
    a = columns.arrays
    n, parent = len(a["node"]), a["parent"]
    depth, sofar = np.zeros(n, np.int64), np.zeros(n)
    gain = np.nan_to_num(a["reward"].astype(float))
    children = np.bincount(parent[1:], minlength=n)
    for i in range(1, n):
        depth[i], sofar[i] = depth[parent[i]] + 1, sofar[parent[i]] + gain[i]
    ends = np.isin(a["status"], FINISHED) & (children == 0) & ~np.isnan(a["reward"])
    return _Facts(columns, depth, children, _means(a, ends, sofar), ends, _first_solved(columns, ends, sofar))


def _means(a: Any, ends: NDArray[Any], sofar: NDArray[Any]) -> NDArray[Any]:
    """[N] mean return of the finished paths through each node, weighted by shares; NaN where none is."""
    n, parent, share = len(ends), a["parent"], a["share"]
    total, mass, value = np.zeros(n), np.zeros(n), np.full(n, np.nan)
    for i in range(n - 1, -1, -1):
        if ends[i]:
            value[i] = sofar[i]
        elif mass[i] > 0:
            value[i] = total[i] / mass[i]
        if i and not math.isnan(value[i]):
            total[parent[i]] += share[i] * value[i]
            mass[parent[i]] += share[i]
    return value


def _first_solved(columns: Columns, ends: NDArray[Any], sofar: NDArray[Any]) -> float:
    """Tokens sampled when the first solved leaf was executed; infinity if there is none."""
    late = {int(node): seq for seq, node in enumerate(columns.pops)}
    solved = np.flatnonzero(ends & (sofar >= SOLVED))
    pops = [max(int(columns.arrays["born"][i]), late.get(int(i), -1)) for i in solved]
    if not pops:
        return math.inf
    return float(columns.tokens[min(pops)]) if min(pops) >= 0 else 0.0


# -- the charts -------------------------------------------------------------------------------------------------------


def _success(facts: Sequence[_Facts]) -> Chart:
    versions = Counter(f.columns.row.policy_version for f in facts)
    top = [name for name, _ in versions.most_common(GROUPS)]
    series = []
    for name in top:
        mine = [f for f in facts if f.columns.row.policy_version == name and f.columns.row.success is not None]
        if not mine:
            continue
        end = max((float(f.columns.tokens[-1]) for f in mine if len(f.columns.tokens)), default=1.0)
        at = sorted(f.solved_at for f in mine if math.isfinite(f.solved_at))
        x = [0.0, *at, end]
        y = [0.0, *((i + 1) / len(mine) for i in range(len(at))), len(at) / len(mine)]
        series.append(Series(name, x, y, "step"))
    return Chart(
        "success_tokens",
        "Success against sampled tokens",
        "tokens sampled for the tree",
        "trees with a solved leaf",
        series,
        "Share of trees in which a solved leaf had been executed after so many tokens (an oracle pick), by weights.",
        share=True,
    )


def _depth(facts: Sequence[_Facts]) -> Chart:
    deep = max(int(f.depth.max()) for f in facts) + 1
    every, ended = np.zeros(deep), np.zeros(deep)
    for f in facts:
        every += np.bincount(f.depth, minlength=deep)
        ended += np.bincount(f.depth[f.ends], minlength=deep)
    x = list(range(deep))
    series = [Series("nodes", x, every.tolist(), "bars"), Series("finished leaves", x, ended.tolist(), "bars")]
    return Chart("depth", "Depth", "depth", "nodes", series, "How many nodes stand, and how many episodes end, where.")


def _branching(facts: Sequence[_Facts]) -> Chart:
    deep = max(int(f.depth.max()) for f in facts) + 1
    inner, below, draws = np.zeros(deep), np.zeros(deep), np.zeros(deep)
    for f in facts:
        grown = f.children > 0
        inner += np.bincount(f.depth[grown], minlength=deep)
        below += np.bincount(f.depth[grown], f.children[grown], minlength=deep)
        draws += np.bincount(f.depth[grown], f.columns.arrays["drawn"][grown], minlength=deep)
    x = np.flatnonzero(inner)
    mean, asked = below[x] / inner[x], draws[x] / inner[x]
    series = [Series("distinct children", x.tolist(), mean.tolist()), Series("draws K", x.tolist(), asked.tolist())]
    told = "Mean over expanded nodes; the gap between the two curves is draws that came out token by token the same."
    return Chart("branching", "Branching", "depth", "per expanded node", series, told)


def _calibration(facts: Sequence[_Facts]) -> Chart:
    score = np.concatenate([f.columns.arrays["score"].astype(float) for f in facts])
    value = np.concatenate([f.value for f in facts])
    known = ~np.isnan(score) & ~np.isnan(value)
    score, value = score[known], value[known]
    bins = np.clip((score * BINS).astype(int), 0, BINS - 1)
    x, y, spread = [], [], []
    for b in np.unique(bins):
        mine = bins == b
        x.append(float(score[mine].mean()))
        y.append(float(value[mine].mean()))
        spread.append(1.96 * float(value[mine].std()) / math.sqrt(int(mine.sum())))
    error = sum(abs(a - b) * int((bins == k).sum()) for a, b, k in zip(x, y, np.unique(bins), strict=True))
    told = f"{len(score):,} scored nodes in ten bins with 95 % intervals; mean gap {error / max(len(score), 1):.3f}."
    return Chart(
        "calibration",
        "Value calibration",
        "evaluator's score",
        "mean return found below",
        [Series("score", x, y, "line", spread)],
        told + " Nodes of one tree are not independent, so intervals are too narrow.",
        share=True,
        diagonal=True,
    )


def _effects(facts: Sequence[_Facts]) -> Chart:
    done, waiting = np.zeros(len(EFFECTS)), np.zeros(len(EFFECTS))
    for f in facts:
        effect, status = f.columns.arrays["effect"][1:], f.columns.arrays["status"][1:]
        ran = ~np.isin(status, UNEXECUTED)
        done += np.bincount(effect[ran], minlength=len(EFFECTS))
        waiting += np.bincount(effect[~ran], minlength=len(EFFECTS))
    x = list(range(len(EFFECTS)))
    series = [Series("executed", x, done.tolist(), "bars")]
    if waiting.any():
        series.append(Series("not executed", x, waiting.tolist(), "bars"))
    risky = int(sum(done[i] for i, e in enumerate(EFFECTS) if e is Effect.IRREVERSIBLE))
    told = f"Actions by their effect class; {risky:,} irreversible ones were executed."
    return Chart("effects", "Effects of actions", "effect", "actions", series, told, ticks=[e.value for e in EFFECTS])
