"""Small stored trees, and the order in which a rule expands them.

A file holds a whole tree: for each node, by name, what was drawn there. A rule is shown only what it expanded, so the
order of names is the rule's alone. `width` pops are under way at once, applied in the order of the pops.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

from treewright.envs import Action, Effect, Observation, Task
from treewright.search.rules import frontier_of
from treewright.search.rules.base import Rule
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

FOLDER = Path(__file__).parents[1] / "golden"


def stored(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def order_of(rule: Rule, world: Any, width: int = 1, eager: bool = True) -> tuple[list[Any], list[str], Tree]:
    """Names of the expanded nodes in order, names given up, and the tree."""
    task = Task("golden", "1", world["goal"], horizon=6)
    tree = Tree.start(
        TreeHeader(
            run="golden",
            task=task,
            attempt=0,
            seed=1,
            policy_version="v",
            settings={},
            root=Outcome(Observation("ready"), NodeStatus.OPEN),
        )
    )
    frontier, names, order = frontier_of(rule, tree), ["root"], []
    flying: deque[Any] = deque()
    frontier.offer(0)
    while True:
        while len(flying) < width and frontier.peek() is not None:
            flying.append(frontier.take())
            order.append(names[flying[-1]])
        if not flying:
            return order, [names[i] for i in frontier.dropped], tree
        node = flying.popleft()
        below = world["nodes"].get(names[node], [])
        drawn = sum(row.get("mult", 1) for row in below)
        drafts = tuple(draft(row, i, drawn, eager) for i, row in enumerate(below))
        outcome = (
            None
            if eager or tree.status[node] is not NodeStatus.DRAFT
            else Outcome(Observation(""), ended(world, names[node]))
        )
        new = tree.apply(
            Expansion(
                seq=len(tree.pops),
                node=node,
                closing=False,
                drawn=drawn,
                outcome=outcome,
                drafts=drafts,
                spent=Spent(expansions=1),
            )
        )
        names += [row["name"] for row in below]
        frontier.applied(node, new)
        for child in new:
            if tree.status[child] in (NodeStatus.OPEN, NodeStatus.DRAFT):
                frontier.offer(child)


def ended(world: Any, name: str) -> NodeStatus:
    row = next(row for rows in world["nodes"].values() for row in rows if row["name"] == name)
    return NodeStatus.TERMINAL if row.get("end") else NodeStatus.OPEN


def draft(row: Any, slot: int, drawn: Any, eager: bool) -> Draft:
    text = f"{row['name']} {row['say']}"
    ids = tuple(range(row.get("tokens", 4)))
    error = row.get("error")
    action = None if error else Action.of(row["say"].split()[0], **dict(p.split("=") for p in row["say"].split()[1:]))
    effect = Effect(row.get("effect", "read"))
    status = NodeStatus.TERMINAL if row.get("end") else NodeStatus.OPEN
    outcome = (
        Outcome(Observation(row.get("seen", "")), status, reward=0.0, effect=effect, error=error) if eager else None
    )
    mult = row.get("mult", 1)
    done = Completion(text, ids, (-0.5,) * len(ids))
    return Draft(
        after=0,
        slot=slot,
        mult=mult,
        share=mult / drawn,
        seed=1000 + sum(map(ord, row["name"])),
        completion=done,
        action=action,
        error=error,
        effect=effect if eager else Effect.UNKNOWN,
        score=row["score"],
        outcome=outcome,
    )
