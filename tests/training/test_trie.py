"""The trie of token ids against one that follows every token by itself."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from treewright.training.loss import Mode
from treewright.training.pack import TokenRow, pack_rows, rows_of
from treewright.training.trie import TokenTrie


class Plain:
    """One dictionary entry for each token."""

    def __init__(self) -> None:
        self.next: dict[tuple[int, int], int]
        self.parent: list[Any]
        self.ids: list[Any]
        self.ids, self.parent, self.next = [], [], {}

    def extend(self, at: Any, tokens: list[int]) -> list[Any]:
        out = []
        for token in tokens:
            if (at, token) not in self.next:
                self.next[at, token] = len(self.ids)
                self.ids.append(token)
                self.parent.append(at)
            at = self.next[at, token]
            out.append(at)
        return out

    def preorder(self) -> list[Any]:
        children: dict[Any, Any] = {}
        for i, above in enumerate(self.parent):
            children.setdefault(above, []).append(i)
        order, stack = [], children.get(-1, [])[::-1]
        while stack:
            order.append(stack.pop())
            stack.extend(children.get(order[-1], [])[::-1])
        return order


def test_it_grows_and_is_laid_out_like_a_trie_of_single_tokens() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        trie, plain = TokenTrie(), Plain()
        paths: list[list[int]] = [[]]
        for _ in range(rng.randrange(1, 25)):
            path = rng.choice(paths)
            path = path[: rng.randrange(len(path) + 1)]
            tokens = [rng.randrange(3) for _ in range(rng.randrange(6))]
            found = trie.extend(path, tokens)
            assert found.tolist() == plain.extend(path[-1] if path else -1, tokens)
            paths.append([*path, *found.tolist()])
        assert trie.ids.tolist() == plain.ids and trie.parent.tolist() == plain.parent and len(trie) == len(plain.ids)
        assert trie.preorder().tolist() == plain.preorder()


def test_packed_rows_hold_every_row_and_the_sums_of_what_they_share() -> None:
    rng = random.Random(7)
    for _ in range(20):
        rows = [
            TokenRow(
                context=tuple(rng.randrange(2) for _ in range(4)), response=tuple(rng.randrange(2) for _ in range(5)),
                coef=rng.random(), mass=rng.random(), mode=Mode.PG,
            )
            for _ in range(6)
        ]  # fmt: skip
        (pack,) = pack_rows([rows])
        laid = {tuple(pack.ids[path].tolist()): path for path, _, _ in rows_of(pack)}
        place = {int(t): i for i, t in enumerate(pack.target)}
        coef, mass = np.zeros(len(pack.target)), np.zeros(len(pack.target))
        for i, row in enumerate(rows):
            whole = (*row.context, *row.response)
            path = next(p for ids, p in laid.items() if ids[: len(whole)] == whole)
            for token in path[len(row.context) : len(whole)]:
                coef[place[int(token)]] += row.coef
                mass[place[int(token)]] += row.mass
            terms = pack.sequence == i
            assert pack.target[pack.term[terms]].tolist() == path[len(row.context) : len(whole)].tolist()
            assert (pack.term_coef[terms] == row.coef).all()
        np.testing.assert_allclose(pack.coef, coef, rtol=1e-12)
        np.testing.assert_allclose(pack.weight, mass, rtol=1e-12)
    assert pack_rows([]) == []
