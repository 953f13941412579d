"""Where the nodes of a tree stand on paper. Geometry only: the template turns it into SVG.

Few leaves: the root stands left, turns go to the right, every node is labelled. Many leaves: the root stands on top
and the rows get narrow; labels are then in the tooltips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from treewright.envs.types import Effect
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

__all__ = ["SHAPES", "Drawing", "Edge", "Mark", "draw", "shape"]

FEW = 44  # leaves that still get a labelled row each
ROW, MARGIN = 23.0, 18.0
PAPER = 1120.0
LETTER = 6.95
BUCKETS = 10

SHAPES: dict[NodeStatus, str] = {
    NodeStatus.DRAFT: "dot",
    NodeStatus.OPEN: "ring",
    NodeStatus.EXPANDED: "circle",
    NodeStatus.TERMINAL: "square",
    NodeStatus.TRUNCATED: "frame",
    NodeStatus.PRUNED: "bar",
    NodeStatus.UNREACHABLE: "triangle",
    NodeStatus.FAULT: "cross",
    NodeStatus.COMMITTED: "diamond",
    NodeStatus.IN_DOUBT: "lozenge",
}
SOLVED = 1.0 - 1e-6


def shape(status: NodeStatus) -> str:
    """The shape that stands for a status."""
    return SHAPES[status]


@dataclass(frozen=True, slots=True)
class Mark:
    """A node: centre in px, radius, shape, class of its colour, what it links to, tooltip, label, has children."""

    x: float
    y: float
    r: float
    shape: str
    colour: str
    chosen: bool
    solved: bool
    irreversible: bool
    anchor: str
    tip: str
    label: str
    leading: bool


@dataclass(frozen=True, slots=True)
class Edge:
    """A line from parent to child as an SVG path, as wide as the child's weight."""

    path: str
    width: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Drawing:
    """Everything the template needs: size in px, lines and nodes (chosen ones last, on top), and the legend."""

    width: float
    height: float
    edges: Sequence[Edge]
    marks: Sequence[Mark]
    legend: Sequence[tuple[str, str]]
    scale: str
    low: str
    high: str
    valued: bool


def draw(
    tree: Tree, name: str, path: Sequence[int], advantage: Sequence[float] | None, labels: Sequence[str]
) -> Drawing:
    """Lays `tree` out. `name` prefixes the anchors; `path` is the marked one; `labels` has one text per node."""
    across, leaves = _places(tree)
    deep = max(tree.depth) or 1
    few = leaves <= FEW
    column = max(88.0, min(160.0, (PAPER - 2 * MARGIN) / (deep + 1)))
    if few:
        at = [(MARGIN + tree.depth[i] * column, MARGIN + across[i] * ROW) for i in range(len(tree))]
        width, height, r = MARGIN * 2 + (deep + 1) * column, MARGIN * 2 + (leaves - 1) * ROW, 6.0
    else:
        gap = max(8.0, min(22.0, (PAPER - 2 * MARGIN) / (leaves - 1)))
        row = max(34.0, min(72.0, 560.0 / deep))
        at = [(MARGIN + across[i] * gap, MARGIN + tree.depth[i] * row) for i in range(len(tree))]
        width, height, r = MARGIN * 2 + (leaves - 1) * gap, MARGIN * 2 + deep * row, min(5.5, gap * 0.44)
    on_path = set(path)
    value = _Scale(tree, advantage)
    marks = [
        Mark(
            round(at[i][0], 1), round(at[i][1], 1), round(r, 1), shape(tree.status[i]), value.colour(i), i in on_path,
            tree.reward(i) >= SOLVED, i > 0 and tree.effect[i] is Effect.IRREVERSIBLE, f"{name}-n{i}",
            _tip(tree, i, labels[i], value), _short(labels[i], int((column - 18) / LETTER)) if few else "",
            bool(tree.children[i]),
        )
        for i in range(len(tree))
    ]  # fmt: skip
    edges = [
        Edge(_curve(at[tree.parent[i]], at[i], few), round(1.0 + 6.0 * math.sqrt(tree.mass[i]), 2), i in on_path)
        for i in range(1, len(tree))
    ]
    present = set(tree.status)
    legend = [(SHAPES[s], s.value.replace("_", " ")) for s in SHAPES if s in present]
    return Drawing(
        round(width), round(height),
        sorted(edges, key=lambda e: e.chosen), sorted(marks, key=lambda m: m.chosen),
        legend, value.word, value.low, value.high, any(map(math.isfinite, value.values)),
    )  # fmt: skip


def _places(tree: Tree) -> tuple[list[float], int]:
    """Position across the paper: leaves in depth-first order one apart, a parent amid its children."""
    across, leaves = [0.0] * len(tree), 0
    stack = [0]
    while stack:
        node = stack.pop()
        if not tree.children[node]:
            across[node] = float(leaves)
            leaves += 1
        stack.extend(reversed(tree.children[node]))
    for node in range(len(tree) - 1, -1, -1):
        if kids := tree.children[node]:
            across[node] = (across[kids[0]] + across[kids[-1]]) / 2
    return across, leaves


class _Scale:
    """From a number to one of eleven colour classes: scores from 0 to 1, advantages around 0."""

    def __init__(self, tree: Tree, advantage: Sequence[float] | None) -> None:
        self.signed = advantage is not None
        self.values = [float(v) for v in advantage] if advantage is not None else tree.score
        top = max((abs(v) for v in self.values if math.isfinite(v)), default=0.0) or 1.0
        self.top = top if self.signed else 1.0
        self.word = "advantage" if self.signed else "score"
        self.low, self.high = (f"−{top:.2g}", f"+{top:.2g}") if self.signed else ("0", "1")

    def colour(self, node: int) -> str:
        value = self.values[node]
        if not math.isfinite(value):
            return "none"
        share = (value / self.top + 1) / 2 if self.signed else value
        return f"{'a' if self.signed else 'v'}{round(min(1.0, max(0.0, share)) * BUCKETS)}"


def _tip(tree: Tree, node: int, label: str, value: _Scale) -> str:
    facts = [f"node {node}", tree.status[node].value.replace("_", " "), f"weight {tree.mass[node]:.3g}"]
    if math.isfinite(value.values[node]):
        facts.append(f"{value.word} {value.values[node]:.3g}")
    if node and not math.isnan(tree.reward(node)):
        facts.append(f"reward {tree.reward(node):.3g}")
    return f"{label}\n{', '.join(facts)}"


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _curve(start: tuple[float, float], end: tuple[float, float], across: bool) -> str:
    (x0, y0), (x1, y1) = start, end
    if across:
        bend = x1 - 40  # straight under the parent's label first, then to the child
        return f"M{x0:.1f} {y0:.1f}H{bend:.1f}C{bend + 20:.1f} {y0:.1f} {bend + 12:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    middle = (y0 + y1) / 2
    return f"M{x0:.1f} {y0:.1f}C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
