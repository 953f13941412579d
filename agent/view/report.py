"""Trees to look at: one HTML file that needs nothing else, and a drawing in text for the terminal.

Observations, actions and tokens come from worlds and models that may be hostile. They are escaped by the template,
stripped of control characters, and the page forbids scripts, network and foreign styles by its own policy, so that
even a hole in the escaping would run nothing. A node that is clicked shows its turn by CSS alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from treewright.agent.view.drawing import Drawing, draw, shape
from treewright.envs.redact import hide
from treewright.envs.whole import write_whole
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

__all__ = ["clean", "render_text", "write_report"]

Decode = Callable[[Sequence[int]], str]
Table = tuple[Sequence[str], Sequence[Sequence[object]]]

LONG, SHORT = 12_000, 2_000  # characters of an observation shown on the chosen path, and elsewhere
WORDS = 160  # characters of a label
PLAIN = Console(file=io.StringIO(), width=80, color_system=None, emoji=False)  # rich wraps by display width with one
SOLVED = 1.0 - 1e-6
CALM = (0.9, 0.5, 0.2, 0.05)  # token probabilities that bound the five tints

ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])(?:[^\x07\x1b\x9c]|\x1b(?!\\))*(?:\x07|\x1b\\|\x9c|$)"  # OSC, DCS, …
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]?"
)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def clean(text: str) -> str:
    """Untrusted text without terminal escapes, control, direction-changing and unpaired surrogate characters.

    Line ends and tabs stay; CR LF and a lone CR become line ends. Secrets of this process are masked.
    """
    return hide(CONTROLS.sub("", ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))))


# -- the page -------------------------------------------------------------------------------------------------------


def write_report(
    path: str | Path,
    trees: Sequence[Tree],
    title: str,
    table: Table | None = None,
    *,
    advantages: Mapping[str, Sequence[float]] | None = None,
    decode: Decode | Mapping[str, Decode] | None = None,
) -> Path:
    """Writes one self-contained HTML file about `trees` and returns its path.

    table       (header, rows) of an own table, shown first; cells may be text or numbers
    advantages  by tree_id, one number for each node; they then colour the nodes instead of the scores
    decode      token ids to text, one for all trees or by a tree's id, to show tokens as text; without it tokens show
                as characters where they are bytes, and as numbers else

    The file is replaced as a whole or not at all. Raises OSError where it cannot be written.
    """
    given = advantages or {}
    reads = decode if isinstance(decode, Mapping) else dict.fromkeys((tree.tree_id for tree in trees), decode)
    views = [_view(i, tree, given.get(tree.tree_id), reads.get(tree.tree_id)) for i, tree in enumerate(trees)]
    css = _template("report.css").render()
    page = _template("report.html.jinja").render(
        title=title,
        columns=table[0] if table else (),
        rows=table[1] if table else (),
        trees=views,
        css=Markup(css),  # our own file, the only text that is not escaped
        style_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
    )
    return write_whole(path, page)


@cache
def _templates() -> Environment:
    env = Environment(
        loader=PackageLoader("treewright.agent.view", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    env.filters["figure"] = figure
    return env


def _template(name: str) -> Template:
    return _templates().get_template(name)


def figure(value: object) -> str:
    """A value as a table shows it: three significant digits, thousands apart, a dash for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    note: str
    tint: int


@dataclass(frozen=True, slots=True)
class _Turn:
    """One node as its card shows it."""

    node: int
    anchor: str
    depth: int
    shape: str
    status: str
    action: str
    effect: str
    facts: Sequence[tuple[str, str]]
    solved: bool
    tokens: Sequence[_Token]
    said: str
    error: str
    fault: str
    observation: str
    provenance: str
    more: int
    pictures: int


@dataclass(frozen=True, slots=True)
class _View:
    """One tree as its section shows it."""

    name: str
    goal: str
    task: str
    summary: Mapping[str, str]
    reasons: Sequence[str]
    drawing: Drawing
    shown: str
    turns: Sequence[_Turn]
    others: Sequence[_Turn]


def _view(index: int, tree: Tree, advantage: Sequence[float] | None, decode: Decode | None) -> _View:
    name = f"t{index}"
    chosen = tree.chosen if tree.chosen is not None else _fallback(tree)
    path = tree.path(chosen)
    on_path = set(path)
    return _View(
        name,
        tree.task.goal,
        f"{tree.task.suite}/{tree.task.id}",
        _summary(tree),
        tree.reasons,
        draw(tree, name, path, advantage, [_label(tree, i) for i in range(len(tree))]),
        "chosen path" if tree.chosen is not None else "a path (nothing was chosen)",
        [_turn(tree, i, name, advantage, decode, LONG) for i in path],
        [_turn(tree, i, name, advantage, decode, SHORT) for i in range(len(tree)) if i not in on_path],
    )


def _fallback(tree: Tree) -> int:
    """What to show of a tree without a choice: the deepest executed node."""
    executed = [i for i in range(len(tree)) if tree.observation[i] is not None]
    return max(executed, key=lambda i: (tree.depth[i], -i), default=0)


def _summary(tree: Tree) -> dict[str, str]:
    spent, leaves = tree.spent, tree.leaves()
    outcomes = [end for i in leaves if not math.isnan(end := tree.outcome_of(i))] if tree.revealed else []
    picked = tree.outcome_of(tree.chosen) if tree.revealed and tree.chosen is not None else math.nan
    return {
        "reward": figure(picked),
        "oracle pick": figure(max(outcomes, default=math.nan)),
        "nodes": figure(len(tree)),
        "finished": figure(len(leaves)),
        "expansions": figure(spent.expansions),
        "tokens": figure(spent.policy_tokens + spent.closing_tokens),
        "env steps": figure(spent.env_steps + spent.closing_steps),
        "seconds": figure(float(spent.seconds)),
        "exact": figure(tree.exact),
    }


def _turn(
    tree: Tree, node: int, name: str, advantage: Sequence[float] | None, decode: Decode | None, limit: int
) -> _Turn:
    seen = tree.observation[node]
    text = clean(seen.text) if seen else ""
    facts = [
        ("score", tree.score[node]),
        ("advantage", float(advantage[node]) if advantage is not None else math.nan),
        ("reward", tree.reward(node) if node else math.nan),
        ("weight", tree.mass[node]),
        ("log-prob", math.fsum(tree.logprobs[node]) if tree.logprobs[node] else math.nan),
        ("times drawn", float(tree.mult[node]) if tree.mult[node] > 1 else math.nan),
    ]
    return _Turn(
        node,
        f"{name}-n{node}",
        tree.depth[node],
        shape(tree.status[node]),
        f"segment, {_words(tree.status[node])}" if tree.in_turn(node) else _words(tree.status[node]),
        _cut(str(tree.action[node] or tree.text[node]), limit) or ("start" if node == 0 else "(nothing)"),
        tree.effect[node].value if node and seen is not None and tree.action[node] else "",
        [(word, figure(value)) for word, value in facts if not math.isnan(value)],
        _solved(tree, node),
        _tokens(tree, node, decode),
        _cut(tree.text[node], limit),
        _cut(tree.error[node] or "", limit),
        _cut(tree.fault[node] or "", limit),
        text[:limit],
        _cut(seen.provenance, 40) if seen else "",
        max(0, len(text) - limit),
        len(seen.shown) if seen else 0,
    )


def _cut(text: str, limit: int) -> str:
    text = clean(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _words(status: NodeStatus) -> str:
    return status.value.replace("_", " ")


def _solved(tree: Tree, node: int) -> bool:
    return tree.reward(node) >= SOLVED


def _tokens(tree: Tree, node: int, decode: Decode | None) -> list[_Token]:
    """The tokens of a turn with their log-probs; log-probs may be missing."""
    ids, logprobs = tree.ids[node], tree.logprobs[node]
    spelt = len(logprobs) == len(ids)
    out = []
    for i, (token, text) in enumerate(zip(ids, _pieces(tree, node, decode), strict=True)):
        note, tint = f"token {token}", 0
        if spelt:
            p = math.exp(logprobs[i])
            note, tint = f"{note}, log-prob {logprobs[i]:.3f}, probability {p:.3f}", sum(p < bound for bound in CALM)
        out.append(_Token(text, note, tint))
    return out


def _pieces(tree: Tree, node: int, decode: Decode | None) -> list[str]:
    ids = tree.ids[node]
    if decode is not None:
        return [_mark(decode([i])) for i in ids]
    said = bytes(i for i in ids if i < 256)
    if said and tree.text[node].encode("utf-8", "replace").endswith(said) and all(b < 0x80 for b in said):
        return [_mark(chr(i)) if i < 256 else "∎" for i in ids]
    return [f"{i} " for i in ids]


def _mark(piece: str) -> str:
    """A token so that it can be seen: white space and emptiness get a sign."""
    shown = clean(piece).replace("\n", "⏎\n").replace("\t", "⇥")
    return shown if shown.strip() else shown.replace(" ", "␣") or "∅"


def _label(tree: Tree, node: int) -> str:
    """What a node did, in few words: argument values without their names."""
    action = tree.action[node]
    if node == 0:
        return "start"
    if action is None:
        said = " ".join(tree.text[node].split())
        return _cut(f"{said} …" if tree.in_turn(node) else said, WORDS) or "(nothing)"
    calls = []
    for call in action.calls:
        values = (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in call.arguments.values())
        calls.append(" ".join((call.name, *values)))
    return _cut(" ".join(" + ".join(calls).split()), WORDS)


# -- the terminal ---------------------------------------------------------------------------------------------------

SIGNS = {
    NodeStatus.DRAFT: "·",
    NodeStatus.OPEN: "○",
    NodeStatus.EXPANDED: "●",
    NodeStatus.TERMINAL: "■",
    NodeStatus.TRUNCATED: "□",
    NodeStatus.PRUNED: "✂",
    NodeStatus.UNREACHABLE: "△",
    NodeStatus.FAULT: "✗",
    NodeStatus.COMMITTED: "◆",
    NodeStatus.IN_DOUBT: "◇",
}


def render_text(tree: Tree, width: int = 100) -> str:
    """The tree as plain text, one node a line, no line wider than `width` columns; no escape sequences at all.

    `*` marks the chosen path, w the weight, s the evaluator's score, r the reward once it is revealed.
    """
    chosen = set(tree.path(tree.chosen)) if tree.chosen is not None else set()
    facts = ", ".join(f"{k} {v}" for k, v in _summary(tree).items())
    head = [f"{tree.task.suite}/{tree.task.id}: {' '.join(tree.task.goal.split())}", facts]
    lines = []
    stack: list[tuple[int, str, str]] = [(0, "", "")]
    while stack:
        node, lead, branch = stack.pop()
        mark = "*" if node in chosen else " "
        lines.append(f"{mark} {lead}{branch}{SIGNS[tree.status[node]]} {_label(tree, node)}{_numbers(tree, node)}")
        below = lead + ("" if node == 0 else "   " if branch == "└─ " else "│  ")
        kids = tree.children[node]
        for i in range(len(kids) - 1, -1, -1):
            stack.append((kids[i], below, "└─ " if i == len(kids) - 1 else "├─ "))
    used = dict.fromkeys(tree.status)
    lines.append("  ".join(f"{SIGNS[status]} {_words(status)}" for status in SIGNS if status in used))
    return "\n".join(
        [*(part for line in head for part in _wrapped(line, width)), *(_fit(line, width) for line in lines)]
    )


def _numbers(tree: Tree, node: int) -> str:
    if node == 0:
        return f"  ! {' '.join(tree.fault[0].split())}" if tree.fault[0] else ""
    pairs = [("w", tree.mass[node]), ("s", tree.score[node]), ("r", tree.reward(node))]
    said = "".join(f"  {name} {figure(value)}" for name, value in pairs if not math.isnan(value))
    trouble = tree.fault[node] or tree.error[node]
    return said + (f"  ! {' '.join(trouble.split())}" if trouble else "")


def _wrapped(line: str, width: int) -> list[str]:
    """Lines of at most `width` columns, the second and later ones indented; at most four, then cut."""
    parts = Text(clean(line)).wrap(PLAIN, max(width - 2, 1))[:5]
    shown = [part.plain.rstrip() for part in parts]
    cut = [*shown[:3], f"{shown[3]} …"] if len(shown) > 4 else shown
    return [_fit(part if i == 0 else f"  {part}", width) for i, part in enumerate(cut)]


def _fit(line: str, width: int) -> str:
    text = Text(clean(line))
    text.truncate(width, overflow="ellipsis")
    return text.plain
