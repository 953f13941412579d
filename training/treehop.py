"""Training the gate of TreeHop, on a corpus' own links or on stored trees.

gate = train_gate(dense, list(linked_jumps(corpus)))
gate.save(folder)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from treewright.envs.errors import TreewrightError
from treewright.envs.retrieval.corpus import Corpus
from treewright.envs.retrieval.dense import DenseIndex, Vectors, encode_queries, label
from treewright.envs.retrieval.treehop import WIDTH, Gate, Jump, TreeHopIndex
from treewright.search.tree import Tree

__all__ = ["jumps_of_trees", "train_gate"]

TEMPERATURE = 0.05
HELD, LEAST = 10, 20  # one jump in so many is held back, if there are so many
SURE = 0.1  # quantile of the likenesses of held-back hops
WEIGHTS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)  # of hops, tried in this order
DEPTHS = (2, 5, 10)


def train_gate(
    dense: DenseIndex,
    jumps: Sequence[Jump],
    *,
    hidden: int = 512,
    epochs: int = 30,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    note: Callable[[int, float], None] | None = None,
) -> Gate:
    """A gate whose next query points at the second passage of each jump.

    The loss is InfoNCE (van den Oord et al. 2018) of the second passage among all passages of the index, at
    temperature 0.05; the first passage is no candidate. One jump in ten is held back, if there are twenty: by these
    are chosen how much a hop counts and how alike its passages must be for it (`Gate.weight`, `Gate.sure`). `note` is
    told the epoch and its mean loss. Deterministic for a seed. Raises TreewrightError without jumps.
    """
    if not jumps:
        raise TreewrightError("no jump to learn from: the passages name no other passage's title")
    questions = torch.from_numpy(np.asarray(encode_queries(dense.encoder, [jump.question for jump in jumps])))
    passages = torch.from_numpy(np.ascontiguousarray(dense.vectors))
    first = torch.tensor([jump.first for jump in jumps])
    second = torch.tensor([jump.second for jump in jumps])
    generator = torch.Generator().manual_seed(seed)
    net = _Net(passages.shape[1], hidden, generator)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    order = torch.randperm(len(jumps), generator=generator)
    held = order[: len(jumps) // HELD if len(jumps) >= LEAST else 0]
    kept = order[len(held) :]
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.split(kept[torch.randperm(len(kept), generator=generator)], batch):
            following = net(questions[chosen], passages[first[chosen]])
            scores = following @ passages.T / TEMPERATURE
            scores = scores.scatter(1, first[chosen, None], float("-inf"))
            loss = torch.nn.functional.cross_entropy(scores, second[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(chosen)
        if note is not None:
            note(epoch, total / len(kept))
    w1, b1, w2, b2 = (p.detach().numpy().copy() for p in (net.w1, net.b1, net.w2, net.b2))
    gate = Gate(w1, b1, w2, b2, dense.encoder.name, label=label(dense.encoder))
    return _weighed(gate, dense, [(questions[i].numpy(), jumps[i]) for i in held.tolist()])


def _weighed(gate: Gate, dense: DenseIndex, held: Sequence[tuple[Vectors, Jump]]) -> Gate:
    """The gate with `sure` and `weight` by which most passages of both ends of held-back jumps are found."""
    if not held:
        return gate
    starts = np.stack([question for question, _ in held]), dense.vectors[[jump.first for _, jump in held]]
    likeness = [max(hit.score for hit in dense.near(query, WIDTH)) for query in gate.next(*starts)]
    gate = replace(gate, sure=float(np.quantile(likeness, SURE)))

    def found(weight: float) -> float:
        index = TreeHopIndex(dense, replace(gate, weight=weight))
        ranked = [([hit.position for hit in index.follow(question, max(DEPTHS))], jump) for question, jump in held]
        return sum(end in hits[:k] for hits, jump in ranked for end in (jump.first, jump.second) for k in DEPTHS)

    return replace(gate, weight=max(WEIGHTS, key=found))


class _Net(torch.nn.Module):
    """`Gate.next` with gradients."""

    def __init__(self, size: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.w1 = torch.nn.Parameter(torch.randn(3 * size, hidden, generator=generator) / (3 * size) ** 0.5)
        self.b1 = torch.nn.Parameter(torch.zeros(hidden))
        self.w2 = torch.nn.Parameter(torch.randn(hidden, size, generator=generator) * 0.01 / hidden**0.5)
        self.b2 = torch.nn.Parameter(torch.zeros(size))

    def forward(self, q: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(torch.cat([q, c, q * c], -1) @ self.w1 + self.b1)
        return torch.nn.functional.normalize(q - c + inner @ self.w2 + self.b2, dim=-1)


def jumps_of_trees(trees: Iterable[Tree], corpus: Corpus) -> Iterator[Jump]:
    """What solved paths did: the goal, a document that was read, and the next one read after it."""
    for tree in trees:
        for leaf in tree.leaves():
            if not tree.outcome_of(leaf) >= 1 - 1e-6:
                continue
            read = [position for node in tree.path(leaf) if (position := _read(tree, node, corpus)) is not None]
            for first, second in pairwise(read):
                if first != second:
                    yield Jump(tree.task.goal, first, second)


def _read(tree: Tree, node: int, corpus: Corpus) -> int | None:
    action = tree.action[node]
    if action is None or len(action.calls) != 1 or action.name != "read" or tree.error[node] is not None:
        return None
    return corpus.position.get(str(action.arguments.get("doc")))
