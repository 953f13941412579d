"""Features of texts for the estimator `forest`: counts by hand, and states alike by what they show."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from walker import Walker

from treewright.envs import TreewrightError
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.types import Budget
from treewright.training.credit import estimate
from treewright.training.credit.texts import hashed_ngrams, text_features, with_texts
from treewright.training.credit.trees import tree_arrays


def test_counts_are_signed_hashed_and_of_length_one() -> None:
    want = np.zeros(8)
    for gram in ("red", "door", "!", "red door", "door !"):
        code = zlib.crc32(gram.encode())
        want[(code >> 1) % 8] += 1 if code & 1 else -1
    found = hashed_ngrams("Red door!", 8)
    np.testing.assert_allclose(found, want / np.linalg.norm(want))
    assert not hashed_ngrams("", 8).any()


async def trees(count: int) -> list[Any]:
    walker = Walker(
        [(f'move {{"to": "{way}"}}', 0.2) for way in ("north", "east", "south", "west")] + [("stop {}", 0.2)]
    )
    return [
        await search(task, SUITE, walker, budget=Budget(expansions=12), settings=Settings(close=True))
        for task in SUITE.tasks("train", count)
    ]


async def test_nodes_that_show_the_same_are_alike_and_credit_takes_them_in_node_order() -> None:
    grown = await trees(2)
    arrays, table = tree_arrays(grown), text_features(grown)
    assert table.shape == (len(arrays), 26)
    first = grown[0]
    same = [(i, j) for i in range(len(first)) for j in range(i) if first.observation[i] and first.observation[j]
            and first.observation[i].text == first.observation[j].text]  # fmt: skip
    assert same and all(np.array_equal(table[i][:24], table[j][:24]) for i, j in same)
    told = with_texts({"features": "text", "depth": 3}, grown)
    by_text = estimate("forest", arrays, **told)
    assert np.isfinite(by_text.coef).all()
    assert not np.allclose(by_text.ess, estimate("forest", arrays, depth=3).ess)
    assert with_texts({"depth": 3}, grown) == {"depth": 3}


async def test_arrays_alone_have_no_texts_and_say_so() -> None:
    with pytest.raises(TreewrightError, match="text_features"):
        estimate("forest", tree_arrays(await trees(1)), features="text")
