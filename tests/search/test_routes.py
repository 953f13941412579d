"""Routes as text: there and back, errors that say what is wrong, and their way through stores and files."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from walker import Walker

from treewright.envs.errors import TreewrightError
from treewright.envs.maze import SUITE
from treewright.search import Budget, Settings, search
from treewright.search.routes import MOST_EXPERTS, decode_routes, encode_routes, fresh_routes, routes_before
from treewright.search.store import TreeStore
from treewright.search.types import Completion, Context
from treewright.training.export import ExportOptions, export_dataset, import_trees
from treewright.training.export.written import problems


def some(tokens: int, layers: int = 3, each: int = 2, experts: int = 8, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(experts), (tokens, layers, 1)), axis=-1)[..., :each]


@pytest.mark.parametrize("experts", [2, 256, 257, MOST_EXPERTS])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16])
def test_routes_come_back_as_they_were(experts: int, kind: Any) -> None:
    routes = np.array([[[0, experts - 1]], [[experts - 1, 1]]], kind)
    text = encode_routes(routes)
    assert text.startswith("1x2u1:" if experts <= 256 else "1x2u2:")
    found = decode_routes(text)
    assert found.dtype == np.int16 and (found == routes.astype(np.int64)).all()


def test_no_tokens_are_no_text() -> None:
    assert encode_routes(np.zeros((0, 2, 2), np.int8)) == "" == fresh_routes(None, 3, 4)


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        (np.zeros((2, 2), int), "whole numbers"),
        (np.zeros((2, 2, 2)), "float64"),
        (np.zeros((2, 0, 2), int), "whole numbers"),
        (np.full((1, 1, 1), -1), "expert -1"),
        (np.full((1, 1, 1), MOST_EXPERTS), "expert 32768"),
    ],
)
def test_what_is_no_route_is_refused(routes: NDArray[Any], words: str) -> None:
    with pytest.raises(TreewrightError, match=words):
        encode_routes(routes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "routes begin with LAYERS"),
        ("0x2u1:", "routes begin with"),
        ("2x2u4:AAAA", "routes begin with"),
        ("2x2u1:AA*A", "not base64"),
        ("2x2u1:AAA", "not base64"),
        ("2x2u1:AAAAAAA=", "5 bytes are no whole tokens"),
        ("1x1u2://8=", "expert 65535"),
    ],
)
def test_a_damaged_text_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(TreewrightError, match=words):
        decode_routes(text)


def test_a_draw_keeps_what_it_added_and_a_cut_one_what_is_left() -> None:
    routes = some(10)
    kept = decode_routes(fresh_routes(routes, delta=2, drawn=3))
    assert (kept == routes[-5:]).all(), "the token before, 2 of the prompt, 2 of the answer"
    assert (decode_routes(fresh_routes(routes[-1:], 2, 3)) == routes[-1:]).all()
    text = encode_routes(routes)
    assert (decode_routes(routes_before(text, 4)) == routes[:6]).all()
    assert routes_before(text, 10) == routes_before("", 3) == "" and routes_before(text, 0) == text


class Routed(Walker):
    """A policy that tells experts, of what it added alone."""

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        out = []
        for done, seed in zip(await super().draw(context, seeds, max_tokens), seeds, strict=True):
            read = some(len(context.ids) + len(done.token_ids) - 1, seed=seed % 1000)
            text = fresh_routes(read, len(context.delta), len(done.token_ids))
            out.append(replace(done, routes=text))
        return out


def test_routes_go_through_store_export_and_import(tmp_path: Path, store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        grown = asyncio.run(
            search(
                SUITE.tasks("train", 1)[0], SUITE, Routed(), budget=Budget(expansions=3), settings=Settings(close=True),
                store=store,
            )
        )  # fmt: skip
        tree = store.load(grown.tree_id)
        assert len(tree) > 3 and tree.routes == grown.routes and tree.routes[0] == "" and all(tree.routes[1:])
        assert store.check() == [] and "routes" not in store.nodes()[1].more
        for node in range(1, len(tree)):
            above = tree.parent[node]
            most = len(tree.delta[above]) + len(tree.ids[node])
            assert len(decode_routes(tree.routes[node])) == most - (above == 0), "nothing is before the first prompt"
        export_dataset(store, tmp_path / "data", ExportOptions(formats=("raw",), file_type="jsonl"))
    (line,) = (tmp_path / "data" / "raw" / "train.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert problems(row) == []
    with TreeStore.open(tmp_path / "again.sqlite") as store:
        report = asyncio.run(import_trees(tmp_path / "data" / "raw" / "train.jsonl", store))
        assert report.added == [tree.tree_id]
        assert store.load(tree.tree_id).routes == tree.routes
    for wrong, words in (
        (encode_routes(some(9999)), r"nodes\[1\]\.routes: of 9999 tokens, where"),
        ("x", "begin with"),
    ):
        row["nodes"][1]["routes"] = wrong
        assert any(re.search(words, one) for one in problems(row))
    for node in row["nodes"]:
        del node["routes"]
    row["schema"] = 2
    assert problems(row) == [], "an older file has none"
