"""Files of recipes for plans, and plans as stored trees: what `treewright routes` and the suite `recipes:FILE` read.

A file holds one JSON object per line:

    {"goal": "soup", "needs": ["mix", "water"], "cost": 1, "name": "cook"}      one way to reach a goal
    {"target": "soup"}                                                          what is asked for; "target": ["a", "b"]
"""

from __future__ import annotations

from collections.abc import Sequence

from treewright.envs.recipes import Recipes
from treewright.envs.types import Observation, Task, seed_of
from treewright.search.planning.and_or import Found, Solver, Step
from treewright.search.planning.drawn import hang
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Expansion, NodeKind, NodeStatus, Outcome

__all__ = ["as_tree", "solver_of"]


def solver_of(recipes: Recipes) -> Solver:
    """A solver that reads the steps of a goal from recipes; no step reaches a goal that none is of."""

    def steps(goal: str) -> Sequence[Step]:
        return [Step(way.needs, way.cost, way.name) for way in recipes.ways.get(goal, ())]

    return steps


def as_tree(found: Found, targets: Sequence[str], task: Task, run: str) -> tuple[Tree, list[Expansion]]:
    """A search for plans as a tree, with the expansions to store it by: goals are CHOICE nodes, steps ALL nodes.

    Every goal is drawn once, where the routes need it first; elsewhere it stands as a leaf. The score of a goal or
    step is 1 / rank of the cheapest route that has it, 0 if none has. The chosen node is the first step of
    the cheapest route, and earns 1 if that is proved to be the least. Steps are no
    policy's draws, so the tree is inexact.
    """
    root = Outcome(Observation(", ".join(targets)), NodeStatus.OPEN)
    tree = Tree.start(
        TreeHeader(
            run=run,
            task=task,
            attempt=0,
            seed=seed_of(task.seed, run),
            policy_version="solver",
            settings={"rule": "and_or", "max_tokens": 0},
            root=root,
        )
    )
    made = list[Expansion]()
    rank = {(goal, step): 1 / i for i, r in reversed([*enumerate(found.routes, 1)]) for goal, step in r.steps.items()}
    goal_rank = {goal: 1 / i for i, r in reversed([*enumerate(found.routes, 1)]) for goal in r.steps}

    def below(node: int, rows: Sequence[tuple[str, NodeStatus, float]], earned: int | None = None) -> range:
        seen = [(Observation(t), status, float(i == earned), score) for i, (t, status, score) in enumerate(rows)]
        return hang(tree, node, seen, made)

    drawn = set[str]()
    waiting: list[tuple[int, str]] = []

    def parts_of(node: int, goals: Sequence[str]) -> None:
        new = below(node, [(g, NodeStatus.OPEN, goal_rank.get(g, 0.0)) for g in goals])
        tree.kind[node] = NodeKind.ALL
        for child, goal in zip(new, goals, strict=True):
            waiting.append((child, goal))

    if len(targets) > 1:
        parts_of(0, targets)
    else:
        waiting.append((0, targets[0]))
    for node, goal in waiting:
        steps = found.known.get(goal, ())
        if not steps or goal in drawn:
            continue
        drawn.add(goal)
        rows = []
        for step in steps:
            said = f"{step.name or 'from'} {' + '.join(step.parts)}".strip() if step.parts else step.name or "there"
            status = NodeStatus.OPEN if step.parts else NodeStatus.TERMINAL
            rows.append((f"{said} ({step.cost:g})", status, rank.get((goal, step), 0.0)))
        first = [slot for slot, step in enumerate(steps) if rank.get((goal, step)) == 1.0 and tree.chosen is None]
        new = below(node, rows, first[0] if first and found.proved else None)
        for slot, (child, step) in enumerate(zip(new, steps, strict=True)):
            if slot in first[:1]:
                tree.chosen = child
            if step.parts:
                parts_of(child, step.parts)
    tree.inexact("steps of a solver, not draws of a policy")
    tree.reveal()
    return tree, made
