"""Trees that begin within a response: at a segment, or behind any token of a turn."""

from __future__ import annotations

import math
from typing import Any

import pytest
from not_none import not_none

from treewright.agent.policies.scripted import scripted_choice
from treewright.benchmarks.segments import TASK, Letters, table
from treewright.envs.errors import TreewrightError
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rooted import Start, prefix_ids, prefix_length, search_from, start_at
from treewright.search.rules import best_first, rule
from treewright.search.segments import Segments
from treewright.search.tree import Tree
from treewright.search.types import Budget, Origin
from treewright.training.credit.trees import tree_arrays
from treewright.training.recipes.prefix import drawn_starts, front, good_starts, next_share

POLICY = scripted_choice(table)


async def opened() -> Letters:
    return Letters()


async def stored(segments: Segments | None = None) -> Tree:
    return await search(
        TASK, Pool(opened, 1), POLICY, rule=best_first(draws=2, root_draws=3), budget=Budget(expansions=5),
        settings=Settings(seed=2, close=True, segments=segments),
    )  # fmt: skip


async def grown(start: Start, **settings: Any) -> Tree:
    return await search_from(
        start,
        opened,
        POLICY,
        rule=rule("chains", draws=5),
        settings=Settings(seed=4, close=True, merge=False, **settings),
    )  # fmt: skip


@pytest.mark.parametrize("segments", [None, Segments(length=1, most=3)])
@pytest.mark.parametrize("turn", [0, 1])
async def test_a_tree_can_begin_behind_any_token_of_a_turn(segments: Segments | None, turn: int) -> None:
    tree = await stored(segments)
    leaf = tree.leaves()[0]
    end = [i for i in tree.path(leaf)[1:] if not tree.in_turn(i)][turn]
    start = start_at(tree, end, tokens=2)
    text = tree.text[end]
    below = await grown(start)
    assert below.exact and not below.lost
    length = prefix_length(below)
    assert length == turn + 1 and below.in_turn(length) and below.origin[length] is Origin.STORED
    assert bytes(below.ids[length]).decode() == text[:2]
    drawn = [i for i in range(1, len(below)) if below.parent[i] == length]
    assert len(drawn) == 5 and all(below.text[i].startswith(text[:2]) for i in drawn)
    for i in drawn:
        p = dict(table(TASK, ["x"] * turn, ()))
        mass = math.fsum(x for t, x in p.items() if t.startswith(text[:2]))
        assert math.fsum(below.logprobs[i]) == pytest.approx(math.log(p[below.text[i]] / mass))
    assert not tree_arrays([below]).trainable[1 : length + 1].any(), "what was given is not trained on"
    assert prefix_ids(below) == start.ids


async def test_a_segment_is_a_place_to_start_and_is_grown_on_by_segments() -> None:
    tree = await stored(Segments(length=1, most=3))
    node = next(i for i in range(1, len(tree)) if tree.in_turn(i) and tree.in_turn(tree.parent[i]) and tree.parent[i])
    below = await grown(start_at(tree, node), segments=Segments(length=1, most=3))
    assert below.exact
    given = bytes(below.ids[prefix_length(below)]).decode()
    assert len(given) == 2
    assert any(below.in_turn(i) for i in range(prefix_length(below) + 1, len(below)))


@pytest.mark.parametrize("tokens", [0, 7, 99])
async def test_a_turn_without_so_many_tokens_is_refused(tokens: int) -> None:
    tree = await stored()
    with pytest.raises(TreewrightError, match="tokens; a start lies behind"):
        start_at(tree, tree.leaves()[0], tokens=tokens)


async def test_fronts_by_tokens_end_anywhere_and_leave_something_to_draw() -> None:
    tree = await stored()
    leaf = tree.leaves()[0]
    path = [i for i in tree.path(leaf)[1:]]
    said = tuple(t for i in path for t in tree.ids[i])
    for share in (0.0, 0.1, 0.3, 0.5, 0.55, 0.8, 0.99):
        start = front(tree, leaf, share, unit="token")
        ids = tuple(t for turn in not_none(start).ids for t in turn)
        assert ids == said[: len(ids)]
        assert len(ids) == min(round(share * len(said)), len(said) - 1)
    assert not_none(front(tree, leaf, 0.5)).head is None, "the unit turn keeps whole turns"
    with pytest.raises(TreewrightError, match="turn or token"):
        front(tree, leaf, 0.5, unit="word")


async def test_a_path_of_one_turn_has_prefixes_by_tokens() -> None:
    from dataclasses import replace

    short = await search(
        replace(TASK, horizon=1), Pool(opened, 1), POLICY, rule=rule("chains", draws=6), settings=Settings(close=True)
    )
    assert not drawn_starts([short], 0.5)
    fronts = drawn_starts([short], 0.5, "token")
    assert fronts and all(f.head is not None for f in fronts)
    assert math.fsum(f.mass for f in fronts) == pytest.approx(1.0), "fronts that are equal add up their masses"
    assert len(good_starts([short], 0.5, -1.0, "token")) == 1


def test_a_curriculum_shortens_what_is_given_where_it_succeeds() -> None:
    assert next_share(0.9, 0.6) == pytest.approx(0.8)
    assert next_share(0.8, 0.4) == pytest.approx(0.9)
    assert next_share(0.05, 1.0) == 0.0 and next_share(0.94, 0.0) == 0.95
    assert next_share(0.5, 0.3, target=0.3, step=0.2) == pytest.approx(0.3)
