"""A small store of finished random trees."""

from __future__ import annotations

from not_none import not_none
from search_trees import random_tree

from treewright.envs.types import Action, Observation, Task
from treewright.search.store.tree_store import TreeStore
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent


def expansions_of(tree: Tree, text: str | None = None) -> list[Expansion]:
    """What a random tree grew from, read back off its columns; `text` stands for what was said."""
    out = []
    for seq, node in enumerate(tree.pops):
        mine = [i for i in range(1, len(tree)) if tree.born[i] == seq]
        first = mine[0]
        drafts = tuple(
            Draft(
                after=0 if tree.parent[i] == node else tree.parent[i] - first + 1,
                slot=tree.slot[i],
                mult=tree.mult[i],
                share=tree.share[i],
                seed=tree.seed[i],
                completion=Completion(
                    text or tree.text[i], tree.ids[i], tree.logprobs[i], finish_reason="stop", policy_version="v1"
                ),
                action=tree.action[i] if text is None else Action.of("a", n=1),
                outcome=Outcome(
                    not_none(tree.observation[i]),
                    NodeStatus.OPEN if tree.children[i] else tree.status[i],
                    reward=tree.reward(i),
                    keep=tree.keep[i],
                    delta=tree.delta[i],
                ),
            )
            for i in mine
        )
        closing = tree.closing[first]
        drawn = 1 if closing else sum(tree.mult[i] for i in mine if tree.parent[i] == node)
        out.append(
            Expansion(seq=seq, node=node, closing=closing, drawn=drawn, outcome=None, drafts=drafts, spent=Spent())
        )
    return out


async def fill(store: TreeStore, seeds: range = range(6), text: str | None = None) -> None:
    """Six finished trees of two splits, in the store."""
    for seed in seeds:
        grown = expansions_of(random_tree(seed, window=seed % 2 == 1), text)
        root = Outcome(Observation("start", "f0"), NodeStatus.OPEN, delta=random_tree(seed, seed % 2 == 1).delta[0])
        task = Task("s", f"t{seed}", "g", split="test" if seed % 3 == 2 else "train")
        tree = Tree.start(
            TreeHeader(run="run", task=task, attempt=seed, seed=seed, policy_version="v1", settings={}, root=root)
        )
        await store.create(tree.header)
        for expansion in grown:
            store.append_nowait(tree.tree_id, expansion, len(tree))
            tree.apply(expansion)
        leaves = [i for i in range(len(tree)) if not tree.children[i]]
        tree.chosen = leaves[0]
        await store.finish(tree)
