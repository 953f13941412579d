"""Credit on the trie of tokens: against values worked out by hand, and against the definition on random groups."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from growth import counted

from treewright.envs.errors import TreewrightError
from treewright.training.credit.prefixes import prefix_tree, row_credit
from treewright.training.credit.row_trie import flat_rows, row_trie
from treewright.training.packed import PackedBatch

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray


EPS = 1e-6


def tokens_of(
    name: str,
    rows: list[list[int]],
    returns: list[float],
    group: Any = None,
    starts: NDArray[Any] | None = None,
    **options: Any,
) -> list[Any]:
    """The coefficient of each token of each row, as the sum over all rows that share it."""
    symbols, offset = flat_rows(rows)
    tree = prefix_tree(symbols, offset, np.asarray(returns, float), group=group, starts=starts)
    _, coef = row_credit(name, tree, **options)
    return [coef[tree.trie.position[a:b]] for a, b in itertools.pairwise(offset)]


def tempo_by_definition(rows: list[Any], returns: Any, group: Any) -> list[list[float]]:
    """Σ over the rows through a token of [(R − μ) + V(s_{t+1}) − V(s_t)]/(σ + ε), over the rows of the group."""
    out = []
    for i, row in enumerate(rows):
        mates = [j for j in range(len(rows)) if group[j] == group[i]]
        mean = math.fsum(returns[j] for j in mates) / len(mates)
        std = math.sqrt(math.fsum((returns[j] - mean) ** 2 for j in mates) / len(mates))
        scale = 1 / (std + EPS) if std > 1e-9 else 0.0

        def value(n: int, mates: list[int] = mates, row: Any = row) -> list[Any]:
            return [returns[j] for j in mates if rows[j][:n] == row[:n]]

        here = []
        for t in range(len(row)):
            after, before = value(t + 1), value(t)
            step = math.fsum(after) / len(after) - math.fsum(before) / len(before)
            here.append(math.fsum((r - mean + step) * scale for r in after) / len(mates))
        out.append(here)
    return out


def test_the_four_answers_of_the_paper_by_hand() -> None:
    rows = [[0, 0, 1, 9], [0, 0, 2, 9], [0, 1, 3, 9], [7, 8, 6, 9]]
    first = tokens_of("tempo", rows, [1, 0, 0, 0])[0]
    sigma = math.sqrt(3) / 4
    a = (1 / 4 + 3 * (1 / 3 - 1 / 4)) / sigma / 4
    assert first == pytest.approx(
        [a, (0.5 + 2 * (0.5 - 1 / 3)) / sigma / 4, 1.25 / sigma / 4, 0.75 / sigma / 4], abs=1e-5
    )
    assert round(float(first[3]), 2) == 0.43, "what follows the last branch has the group's term alone"


def random_group(rng: Generator) -> tuple[list[Any], Any, Any]:
    count = int(rng.integers(1, 9))
    rows = [rng.integers(0, rng.integers(1, 4), rng.integers(1, 9)).tolist() for _ in range(count)]
    returns = rng.integers(0, 2, count).astype(float) if rng.random() < 0.5 else rng.normal(size=count)
    return rows, returns.tolist(), rng.integers(0, 2, count)


def test_tempo_on_a_thousand_random_groups_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(1000):
        rows, returns, group = random_group(rng)
        # The scale of float32 returns is exact for these: rounded first, so that both see the same numbers.
        returns = np.float32(returns).astype(float).tolist()
        found = tokens_of("tempo", rows, returns, group)
        wanted = tempo_by_definition(rows, returns, group)
        top = max(1.0, max(abs(x) for row in wanted for x in row))
        worst = max(worst, max(float(np.abs(f - w).max()) / top for f, w in zip(found, wanted, strict=True)))
    assert worst < 1e-12


def test_where_nothing_branches_tempo_is_the_groups_own_term() -> None:
    rows, returns = [[1, 2, 3], [4, 5], [6, 7, 8, 9]], [1.0, 0.0, 0.0]
    tempo, grpo = tokens_of("tempo", rows, returns), tokens_of("grpo", rows, returns)
    for a, b in zip(tempo, grpo, strict=True):
        assert a[1:] == pytest.approx(b[1:]), "behind the first token"
        assert a[0] != pytest.approx(b[0]), "answers part at the first token"


def treepo_by_definition(
    rows: list[Any], returns: Any, length: int
) -> tuple[list[list[tuple[Any, ...]]], list[Any | float]]:
    """R − mean over the prefixes of whole segments, the empty one included, of the mean of the rows that share it."""
    cut = [[tuple(row[i : i + length]) for i in range(0, len(row), length)] for row in rows]
    raw = []
    for i, own in enumerate(cut):
        means = []
        for n in range(len(own) + 1):
            same = [returns[j] for j in range(len(rows)) if cut[j][:n] == own[:n]]
            if len(same) > 1:
                means.append(math.fsum(same) / len(same))
        raw.append(returns[i] - math.fsum(means) / len(means) if means else 0.0)
    return cut, raw


def test_treepo_on_segments_is_the_definition() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        length = int(rng.integers(1, 4))
        rows, returns, _ = random_group(rng)
        returns = np.float32(returns).astype(float).tolist()
        cut, raw = treepo_by_definition(rows, returns, length)
        starts = np.concatenate([np.arange(len(row)) % length == 0 for row in rows])
        found = tokens_of("treepo", rows, returns, starts=starts, whiten=False)
        for i, row in enumerate(rows):
            for t in range(len(row)):
                n = t // length + 1
                sharers = [j for j in range(len(rows)) if cut[j][:n] == cut[i][:n]]
                assert found[i][t] == pytest.approx(math.fsum(raw[j] for j in sharers) / len(rows), abs=1e-9)


def test_treerl_on_segments_compares_with_the_prefix_and_the_root() -> None:
    rows, returns = [[1, 1, 2, 2], [1, 1, 3, 3], [4, 4, 5, 5]], [1.0, 0.0, 0.0]
    starts = np.tile([True, False, True, False], 3)
    found = tokens_of("treerl", rows, returns, starts=starts)[0]
    first, second = (1 / 2 - 1 / 3) * 2 / math.sqrt(2) * 2 / 3, ((1 - 1 / 3) + (1 - 1 / 2)) / 3
    assert found == pytest.approx([first, first, second, second])


def test_rows_of_different_groups_share_nothing() -> None:
    symbols, offset = flat_rows([[1, 2], [1, 2], [1, 3]])
    trie = row_trie(symbols, offset, np.asarray([0, 1, 1]))
    assert len(trie) == 5
    assert trie.position.tolist() == [0, 1, 2, 3, 2, 4]


def test_long_rows_are_joined_as_short_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.training.credit import row_trie as module

    rng = np.random.default_rng(5)
    rows = [rng.integers(0, 2, int(n)).tolist() for n in rng.integers(0, 9, 60)]
    symbols, offset = flat_rows(rows)
    short = row_trie(symbols, offset, np.arange(60) % 2)
    monkeypatch.setattr(module, "LONG", 0)
    long = row_trie(symbols, offset, np.arange(60) % 2)
    for name in ("position", "symbol", "parent", "order", "last"):
        assert np.array_equal(getattr(short, name), getattr(long, name))


@pytest.mark.parametrize("seed", range(20))
def test_the_trie_stores_each_prefix_once_and_every_row_can_be_read_off_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, _, group = random_group(rng)
    rows += [[], rows[0], [2**40, -3]]
    group = np.concatenate((group, [0, group[0], 1]))
    symbols, offset = flat_rows(rows)
    trie = row_trie(symbols, offset, group)
    for i, row in enumerate(rows):
        back, at = [], int(trie.last[i])
        while at >= 0:
            back.append(int(trie.symbol[at]))
            at = int(trie.parent[at])
        assert back[::-1] == row
    prefixes = {(int(g), tuple(r[:n])) for r, g in zip(rows, group, strict=True) for n in range(1, len(r) + 1)}
    assert len(trie) == len(prefixes)
    assert (trie.parent < np.arange(len(trie))).all()


def test_split_loo_on_the_trie_of_independent_answers_is_unbiased() -> None:
    """Two tokens of a softmax each, all groups of three answers enumerated with their probabilities."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=2), rng.normal(size=(2, 2))
    reward = np.float32(rng.normal(size=(2, 2))).astype(float)
    p, q = np.exp(first) / np.exp(first).sum(), np.exp(second) / np.exp(second).sum(1, keepdims=True)
    value = (q * reward).sum(1)
    true = np.concatenate((p * (value - p @ value), (p[:, None] * q * (reward - value[:, None])).ravel()))
    answers = [[a, b] for a in range(2) for b in range(2)]
    mean = np.zeros(6)
    for draw in np.ndindex(4, 4, 4):
        rows = [answers[i] for i in draw]
        chance = math.prod(p[a] * q[a, b] for a, b in rows)
        found = tokens_of("split_loo", rows, [reward[a, b] for a, b in rows], tau=2.0)
        coef = {tuple(row[: n + 1]): float(f[n]) for row, f in zip(rows, found, strict=True) for n in range(2)}
        for prefix, c in coef.items():
            grad = np.zeros(6)
            if len(prefix) == 1:
                grad[:2] = np.eye(2)[prefix[0]] - p
            else:
                grad[2 + 2 * prefix[0] : 4 + 2 * prefix[0]] = np.eye(2)[prefix[1]] - q[prefix[0]]
            mean += chance * c * grad
    assert np.abs(mean - true).max() < 1e-6 * np.abs(true).max()


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TreewrightError, match="2 rows of 3 symbols"):
        prefix_tree(np.arange(3), np.asarray([0, 1, 3]), np.zeros(1))


def test_costs_do_not_grow_with_the_square_of_the_tokens() -> None:
    def costs(count: int) -> tuple[int, int]:
        rng = np.random.default_rng(0)
        rows = [rng.integers(0, 50_000, 1000) for _ in range(count)]
        for i in range(1, count):
            shared = int(rng.integers(0, 1000))
            rows[i][:shared] = rows[i - i % 10][:shared]
        symbols, offset = flat_rows(rows)
        returns, group = rng.random(count), np.arange(count) // 10
        return counted(lambda: row_credit("tempo", prefix_tree(symbols, offset, returns, group=group)))

    (steps, held), (more_steps, more_held) = costs(100), costs(1000)
    assert more_steps < 12 * steps and more_held < 12 * held


# -- trees, packs and updates ---------------------------------------------------------------------------------------


def groups_of_trees(count: int = 4, **options: Any) -> list[Any]:
    from search_trees import random_tree

    return [random_tree(s, task=f"t{s % 2}", **options) for s in range(count)]


@pytest.mark.parametrize("window", [False, True])
def test_one_step_per_turn_gives_the_credit_of_the_turns(window: bool) -> None:
    """Segments longer than any response, in trees whose siblings all differ: the trie is the tree."""
    from search_trees import random_tree

    from treewright.training.credit import estimate, tree_arrays
    from treewright.training.credit.prefixes import token_credit

    trees = [random_tree(s, task=f"t{s}", window=window) for s in range(40)]
    trees = [t for t in trees if all(len({t.ids[c] for c in below}) == len(below) for below in t.children)]
    assert len(trees) > 10
    arrays = tree_arrays(trees)
    for name in ("tempo", "treeps", "grpo"):
        found, wanted = token_credit(name, trees, arrays, segment=10_000), estimate(name, arrays)
        for coef, tokens in zip(wanted.coef, found.tokens, strict=True):
            assert tokens == pytest.approx(np.full(len(tokens), coef), abs=1e-9)


def test_packs_of_token_credit_equal_packs_of_nodes_for_equal_coefficients() -> None:
    from treewright.training.credit import estimate, tree_arrays
    from treewright.training.pack import pack_trees

    trees = groups_of_trees(window=True)
    arrays = tree_arrays(trees)
    credit = estimate("split_loo", arrays)
    each = [np.full(len(ids), c) for ids, c in zip((i for t in trees for i in t.ids), credit.coef, strict=True)]
    for terms in ("token", "draw"):
        slow = pack_trees(trees, arrays, credit, 10_000, terms=terms)[0]
        fast = pack_trees(trees, arrays, credit, 10_000, terms=terms, tokens=each)[0]
        assert len(slow) == len(fast) and slow.trees == fast.trees
        assert spelled(slow) == pytest.approx(spelled(fast))
        assert (len(slow.term), float(slow.term_coef.sum())) == pytest.approx((len(fast.term), fast.term_coef.sum()))


def spelled(pack: PackedBatch) -> dict[str, Any]:
    """By the whole path of each trained token, once for each tree of the pack: its coefficient, log-prob and mass."""
    out, tree = {}, np.cumsum(pack.parent < 0)
    for target, coef, logp, mass in zip(pack.target, pack.coef, pack.behaviour, pack.weight, strict=True):
        path, at = [], int(target)
        while at >= 0:
            path.append(int(pack.ids[at]))
            at = int(pack.parent[at])
        out[f"{tree[target]} {path}"] = (float(coef), float(logp), float(mass))
    return {f"{key} {i}": v for key, value in out.items() for i, v in enumerate(value)}


@pytest.mark.parametrize("unit", ["token", "segment:2"])
@pytest.mark.parametrize("estimator", ["tempo", "treepo", "split_loo"])
def test_an_update_by_tokens_changes_the_weights_and_differs_from_turns(unit: str, estimator: str) -> None:
    import torch
    from search_trees import tiny_model

    from treewright.training.step import Trainer, TrainSettings

    moved = {}
    for name in ("turn", unit):
        trainer = Trainer(tiny_model(0, dtype=torch.float32), TrainSettings(unit=name, estimator=estimator))
        before = torch.cat([p.detach().reshape(-1).clone() for p in trainer.model.parameters()])
        stats = trainer.update(groups_of_trees())
        moved[name] = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()]) - before
        assert stats["trained_tokens"] > 0 and float(moved[name].norm()) > 0
    assert float((moved["turn"] - moved[unit]).norm()) > 1e-4 * float(moved["turn"].norm())


@pytest.mark.parametrize("unit", ["segment", "segment:0", "segment:x", "word"])
def test_a_unit_that_is_none_is_refused(unit: str) -> None:
    from treewright.training.step import TrainSettings

    with pytest.raises(TreewrightError, match="turn, token or segment:N"):
        TrainSettings(unit=unit)
