"""What is known of a draft before it is popped: its effect as the world judges it, and what an equal one has shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from treewright.envs.errors import Divergence, EnvFault, RestoreUnsupported
from treewright.envs.types import Effect, Task
from treewright.search.restore import Pool, Snapshots, Waypoint
from treewright.search.tree import Tree
from treewright.search.types import Draft, NodeStatus

__all__ = ["foreseen", "twin"]

_SHOWN = frozenset({NodeStatus.OPEN, NodeStatus.EXPANDED, NodeStatus.TERMINAL, NodeStatus.TRUNCATED})


async def foreseen(
    pool: Pool, where: tuple[str, Task, Sequence[Waypoint], Snapshots], drafts: Sequence[Draft]
) -> tuple[list[Draft], int]:
    """The drafts with the effects that the world judges them to have, and the steps that were replayed to ask it.

    where  the tree, its task, the way to the node that the drafts were drawn at, and the snapshots of the tree

    What waits for commit is known as IRREVERSIBLE then. Where the world cannot be asked, effects stay UNKNOWN: the
    draft is judged when it is popped, as it is then in any case.
    """
    if not any(draft.action is not None and draft.effect is Effect.UNKNOWN for draft in drafts):
        return list(drafts), 0
    found: dict[str, Effect] = {}
    steps = 0
    try:
        tree_id, _, path, _ = where
        async with pool.lease(tree_id, (path[-1].seed,)) as session:
            steps = await pool.reach(session, *where)
            for draft in drafts:
                if draft.action is not None and draft.action.key not in found:
                    effect = await pool.timed(session.env.effect(draft.action), "effect")
                    found[draft.action.key] = Effect.IRREVERSIBLE if effect.needs_commit else effect
    except (EnvFault, Divergence, RestoreUnsupported):
        pass
    known = ((d, found.get(d.action.key) if d.action is not None else None) for d in drafts)
    return [replace(d, effect=effect) if effect is not None else d for d, effect in known], steps


def twin(tree: Tree, node: int) -> int | None:
    """A sibling with the same action, executed before and a mere read, whose result this draft may share."""
    action = tree.action[node]
    if action is None or tree.error[node] is not None:
        return None
    for other in tree.children[tree.parent[node]]:
        shown = tree.status[other] in _SHOWN and tree.observation[other] is not None and tree.error[other] is None
        if other != node and shown and tree.effect[other] is Effect.READ and tree.action[other] == action:
            return other
    return None
