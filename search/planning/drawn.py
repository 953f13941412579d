"""Trees that a solver made: their expansions, and how they are stored whole."""

from __future__ import annotations

from collections.abc import Sequence

from treewright.envs.types import Observation, seed_of
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

__all__ = ["hang", "store_whole"]


def hang(
    tree: Tree, node: int, rows: Sequence[tuple[Observation, NodeStatus, float, float]], made: list[Expansion]
) -> range:
    """Puts one child below `node` for each (what is seen, status, reward, score); the new nodes. Notes it in `made`."""
    drafts = tuple(
        Draft(
            after=0, slot=slot, mult=1, share=1.0 / len(rows), seed=seed_of(tree.seed[node], slot),
            completion=Completion(seen.text, trainable=False), action=None, score=score,
            outcome=Outcome(seen, status, reward=reward),
        )
        for slot, (seen, status, reward, score) in enumerate(rows)
    )  # fmt: skip
    made.append(
        Expansion(
            seq=len(tree.pops), node=node, closing=False, drawn=len(rows), outcome=None, drafts=drafts,
            spent=Spent(expansions=1),
        )
    )  # fmt: skip
    return tree.apply(made[-1])


def store_whole(store: TreeStore, tree: Tree, made: Sequence[Expansion]) -> None:
    """Stores a finished tree with the expansions that it was made by. Acknowledged by the store's next flush."""
    store.create(tree.header)
    first = 1
    for expansion in made:
        store.append_nowait(tree.tree_id, expansion, first)
        first += len(expansion.drafts)
    store.finish(tree)
