from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from treewright.kernels.decode import BranchCache, PromptCache, Stretch, path_length

HQ, HKV, D, LAYERS = 4, 2, 8, 2
SCALE = D**-0.5


def stretch(start: int, length: int) -> Stretch:
    return Stretch(start, *(torch.randn(LAYERS, HKV, length, D).double() for _ in range(2)))


def tree() -> list[Any]:
    """Paths of a tree with forks at depths 0, 7 and 12, one of them ending inside another."""
    top, other = stretch(0, 7), stretch(0, 4)
    left = stretch(7, 5)
    return [
        [top],
        [top, left],
        [top, left, stretch(12, 2)],
        [top, left, stretch(12, 20)],
        [top, stretch(7, 1)],
        [other],
    ]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """One query [Hq, D] over keys [Hkv, L, D] of its whole path."""
    if window is not None:
        k, v = k[:, -window:], v[:, -window:]
    k, v = k.repeat_interleave(HQ // HKV, 0), v.repeat_interleave(HQ // HKV, 0)
    weights = torch.softmax(torch.einsum("hd,hld->hl", q, k) * SCALE, -1)
    return torch.einsum("hl,hld->hd", weights, v)


class Whole:
    """The same branches, each with its path in full."""

    def __init__(self, paths: list[Any], repeats: list[int]) -> None:
        self.rows = []
        for path, n in zip(paths, repeats, strict=True):
            kv = [torch.cat([getattr(s, name) for s in path], 2) for name in ("keys", "values")]
            self.rows += [[*kv] for _ in range(n)]

    def step(self, q: torch.Tensor, k: Any, v: torch.Tensor, window: int | None) -> torch.Tensor:
        """q [layers, B, Hq, 1, D] and k, v alike."""
        for i, row in enumerate(self.rows):
            row[0], row[1] = torch.cat([row[0], k[:, i]], 2), torch.cat([row[1], v[:, i]], 2)
        return torch.stack([self._seen(q[layer], layer, window) for layer in range(LAYERS)])

    def _seen(self, q: torch.Tensor, layer: int, window: int | None) -> torch.Tensor:
        return torch.stack([dense(q[i, :, 0], k[layer], v[layer], window) for i, (k, v) in enumerate(self.rows)])


def tokens(n: int) -> list[Any]:
    return [torch.randn(LAYERS, n, heads, 1, D).double() for heads in (HQ, HKV, HKV)]


@pytest.mark.parametrize("window", [None, 5, 13])
@pytest.mark.parametrize("pays", [1, 20 * HKV * D, 1 << 40])
def test_branches_give_what_their_whole_paths_give(window: int | None, pays: int) -> None:
    torch.manual_seed(0)
    paths, repeats = tree(), [1, 3, 1, 2, 1, 2]
    cache, whole = BranchCache(paths, repeats, 12, pays), Whole(paths, repeats)
    keeps = {2: [0, 1, 3, 4, 5, 6, 8, 9], 5: [1, 2, 4, 6], 9: [3]}
    for step in range(12):
        if step in keeps:
            cache.keep(torch.tensor(keeps[step]))
            whole.rows = [whole.rows[i] for i in keeps[step]]
        new = tokens(cache.n_branches)
        expected = whole.step(new[0], new[1], new[2], window)
        found = torch.stack([cache.attend(i, new[0][i], new[1][i], new[2][i], SCALE, window) for i in range(LAYERS)])
        cache.advance()
        assert torch.allclose(found[..., 0, :], expected, atol=1e-13)


@pytest.mark.parametrize("room", [0, 4, 40], ids=["too little room", "some", "enough"])
@pytest.mark.parametrize("pays", [1, 1 << 40])
def test_branches_that_fork_and_end_in_any_way_give_what_their_whole_paths_give(pays: int, room: int) -> None:
    torch.manual_seed(0)
    lots = random.Random(1)
    for _ in range(8):
        paths, repeats = tree(), [1, 2, 1, 1, 1, 2]
        cache = BranchCache(paths, repeats, 12, pays, [n + room for n in repeats])
        whole = Whole(paths, repeats)
        for _ in range(12):
            keep = [i for i in range(cache.n_branches) for _ in range(lots.choice((0, 1, 1, 1, 2, 3)))][:40] or [0]
            cache.keep(torch.tensor(keep))
            whole.rows = [list(whole.rows[i]) for i in keep]
            new = tokens(cache.n_branches)
            expected = whole.step(new[0], new[1], new[2], None)
            found = torch.stack([cache.attend(i, new[0][i], new[1][i], new[2][i], SCALE) for i in range(LAYERS)])
            cache.advance()
            assert torch.allclose(found[..., 0, :], expected, atol=1e-13)


def test_a_prefix_is_shared_for_the_branches_that_will_be() -> None:
    """Also while few are there, so that no fork copies it."""
    paths = tree()[:1]
    assert BranchCache(paths, [1], 1, 7 * HKV * D).shared_tokens == 0
    assert BranchCache(paths, [1], 1, 7 * HKV * D, [2]).shared_tokens == 7


def test_only_what_is_read_often_enough_is_shared() -> None:
    paths, repeats = tree(), [1, 3, 1, 2, 1, 2]
    numbers = HKV * D
    assert BranchCache(paths, repeats, 1, 1 << 40).shared_tokens == 0
    assert BranchCache(paths, repeats, 1, 1).shared_tokens == 7 + 5 + 20 + 4
    # The trunk is read by 8 branches, 7 · 7 tokens again; the next most read stretch has 5 · 5.
    assert BranchCache(paths, repeats, 1, 49 * numbers).shared_tokens == 7
    assert BranchCache(paths, repeats, 1, 50 * numbers).shared_tokens == 0


@pytest.mark.parametrize("window", [None, 5])
def test_a_prompt_in_parts_sees_what_it_sees_in_one(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(LAYERS, 1, heads, 30, D).double() for heads in (HQ, HKV, HKV))
    path: list[Any]
    path, outs = [], []
    for start, stop in ((0, 11), (11, 12), (12, 30)):
        cache, part = PromptCache(path, stop - start), slice(start, stop)
        assert cache.positions.tolist() == [list(range(start, stop))]
        outs.append(
            [
                cache.attend(i, q[i][:, :, part], k[i][:, :, part], v[i][:, :, part], SCALE, window)
                for i in range(LAYERS)
            ]
        )
        path = [*path, cache.stretch()]
    assert path_length(path) == 30
    for layer in range(LAYERS):
        out = torch.cat([part[layer] for part in outs], 2)[0]
        expected = [
            dense(q[layer, 0, :, t], k[layer, 0, :, : t + 1], v[layer, 0, :, : t + 1], window) for t in range(30)
        ]
        assert torch.allclose(out, torch.stack(expected, 1), atol=1e-13)


def test_branches_that_end_free_their_part_and_stay_in_order() -> None:
    cache = BranchCache(tree(), [1, 3, 1, 2, 1, 2], 4, 1)
    before = cache.nbytes
    with pytest.raises(ValueError, match="must not fall"):
        cache.keep(torch.tensor([3, 1]))
    cache.keep(torch.tensor([8, 9]))
    assert cache.n_branches == 2 and cache.shared_tokens == 4 and cache.nbytes * 5 == before


def test_a_split_stretch_keeps_nothing_of_the_other_part_alive() -> None:
    whole = stretch(3, 9)
    first, rest = whole.split(4)
    assert (first.start, first.length, rest.start, rest.length) == (3, 4, 7, 5)
    assert torch.equal(torch.cat([first.keys, rest.keys], 2), whole.keys)
    assert rest.values.untyped_storage().nbytes() == rest.values.numel() * 8
