"""Raw tables lose nothing; what was changed on the way is named."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from export_store import fill
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Effect, Observation, Task
from treewright.search.store import TreeStore
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Origin, Outcome, Spent
from treewright.training.export import ExportOptions, TreeFilter, View, decode_tree, encode_tree, export_dataset
from treewright.training.export import import_trees as load
from treewright.training.export.columns import columns
from treewright.training.export.raw import Grown

texts = st.text(max_size=8) | st.sampled_from(["", "né\u0000x", "\ud83d", "\udc80", "\ufffehello", "a\\n\nb"])
names = st.text(st.characters(codec="utf-8"), max_size=6)
reals = st.floats(allow_infinity=False, width=32)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
parts = st.sampled_from([(), ({"type": "image", "png": b"\x00\xff"},)])
observations = st.builds(Observation, text=texts, fingerprint=names, provenance=texts, parts=parts)
statuses = st.sampled_from([s for s in NodeStatus if s.value in ("draft", "open", "terminal", "truncated", "fault")])
outcomes = st.builds(
    Outcome, observation=observations, status=statuses, reward=reals, effect=st.sampled_from(Effect),
    keep=st.integers(0, 9), delta=ids, error=st.none() | texts, fault=st.none() | texts, steps=st.integers(0, 9),
)  # fmt: skip
actions = st.none() | texts.map(lambda t: Action.of("do", what=t))
done = st.builds(
    Completion, text=texts, token_ids=ids, logprobs=st.lists(st.floats(-50, 0)).map(tuple), finish_reason=texts,
    policy_version=texts, trainable=st.booleans(), origin=st.sampled_from(Origin), temperature=reals,
    share=st.none() | st.floats(0, 1), hidden=st.integers(0, 99), money=reals,
)  # fmt: skip


@st.composite
def trees(draw: Any) -> tuple[Tree, list[Expansion]]:
    task = Task(
        "s",
        draw(names),
        draw(texts),
        seed=3,
        split="train",
        horizon=8,
        data={"k": draw(texts)},
        truth={"b": b"\x01"},
    )
    tree = Tree.start(
        TreeHeader(
            run=draw(names),
            task=task,
            attempt=0,
            seed=2**62,
            policy_version="v1",
            settings={"x": [1]},
            root=draw(outcomes),
            continues=("ab" * 16, 7),
        )
    )
    grown = []
    for seq in range(draw(st.integers(0, 3))):
        drafts = tuple(
            Draft(
                after=draw(st.sampled_from([0, i])),
                slot=i,
                mult=1,
                share=draw(st.floats(0, 1)),
                seed=draw(st.integers(0, 2**63 - 1)),
                completion=draw(done),
                action=draw(actions),
                error=draw(st.none() | texts),
                effect=draw(st.sampled_from(Effect)),
                score=draw(reals),
                outcome=draw(st.none() | outcomes),
            )
            for i in range(draw(st.integers(0, 3)))
        )
        node = draw(st.integers(0, len(tree) - 1))
        e = Expansion(
            seq=seq,
            node=node,
            closing=draw(st.booleans()),
            drawn=draw(st.integers(0, 3)),
            outcome=draw(st.none() | outcomes),
            drafts=drafts,
            spent=Spent(expansions=1, seconds=draw(st.floats(0, 9))),
            fault=draw(st.none() | texts),
        )
        tree.apply(e)
        grown.append(e)
    tree.chosen = draw(st.none() | st.integers(0, len(tree) - 1))
    tree.stopped_by, tree.reasons = draw(st.none() | texts), draw(st.lists(texts, max_size=2))
    for i in range(len(tree)):
        if draw(st.integers(0, 4)) == 0:
            tree.status[i], tree.keep_prob[i], tree.kept[i] = NodeStatus.PRUNED, 0.25, False
    tree.reveal()
    return tree, grown


def same(tree: Tree, grown: list[Expansion], back: Grown) -> None:
    assert back.tree.digest() == tree.digest()
    assert repr(back.expansions) == repr(tuple(grown)) and repr(back.tree.header) == repr(tree.header)
    for name in ("chosen", "stopped_by", "reasons", "status", "keep_prob", "kept", "kind", "spent"):
        assert getattr(back.tree, name) == getattr(tree, name), name


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_whatever_grew_comes_back_equal_through_json(made: tuple[Tree, list[Expansion]]) -> None:
    tree, grown = made
    line = json.dumps(encode_tree(View(tree), grown), ensure_ascii=False, allow_nan=False).encode()
    same(tree, grown, decode_tree(json.loads(line)))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_whatever_grew_comes_back_equal_through_parquet(made: tuple[Tree, list[Expansion]]) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'treewright[data]'")
    from treewright.training.export.columns import arrow_schema

    tree, grown = made
    table = pa.Table.from_pylist([encode_tree(View(tree), grown)], schema=arrow_schema(columns("raw")))
    same(tree, grown, decode_tree(table.to_pylist()[0]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TreeStore]:
    with TreeStore.open(tmp_path / "trees.sqlite") as opened:
        asyncio.run(fill(opened))
        yield opened


FILES = [
    "jsonl",
    pytest.param(
        "parquet",
        marks=pytest.mark.skipif(
            not __import__("importlib.util", fromlist=["util"]).find_spec("pyarrow"), reason="pyarrow is not installed"
        ),
    ),
]


@pytest.mark.parametrize("file_type", FILES)
def test_export_and_import_keep_every_tree_and_a_second_import_adds_nothing(
    store: TreeStore, tmp_path: Path, file_type: Any
) -> None:
    report = export_dataset(store, tmp_path / "data", ExportOptions(formats=("raw",), file_type=file_type))
    assert report.rows == {("raw", "train"): 4, ("raw", "test"): 2}
    with TreeStore.open(tmp_path / "other.sqlite") as other:
        assert len(asyncio.run(load(tmp_path / "data", other)).added) == 6
        again = asyncio.run(load(tmp_path / "data", other))
        assert (again.added, again.present) == ([], 6)
        for row in store.trees():
            ours, theirs = store.load(row.tree_id), other.load(row.tree_id)
            assert ours.digest() == theirs.digest() and ours.chosen == theirs.chosen
            assert repr(store.expansions(row.tree_id)) == repr(other.expansions(row.tree_id))

        def facts(s: TreeStore) -> list[Any]:
            return sorted((r.tree_id, r.outcome, r.success, r.nodes, r.spent) for r in s.trees())

        assert facts(store) == facts(other) and not other.check()


def test_a_tree_that_was_left_half_imported_is_completed(store: TreeStore, tmp_path: Path) -> None:
    export_dataset(store, tmp_path / "data", ExportOptions(formats=("raw",), file_type="jsonl"))
    row = store.trees()[0]
    first = store.expansions(row.tree_id)[0]

    async def half(other: TreeStore) -> None:
        await other.create(store.header(row.tree_id))
        await other.append(row.tree_id, first, 1)
        await other.interrupt(row.tree_id)

    with TreeStore.open(tmp_path / "other.sqlite") as other:
        asyncio.run(half(other))
        assert len(asyncio.run(load(tmp_path / "data", other)).added) == 6
        assert other.load(row.tree_id).digest() == store.load(row.tree_id).digest()


def test_a_tree_that_is_there_with_other_content_is_left_out_by_name(store: TreeStore, tmp_path: Path) -> None:
    export_dataset(store, tmp_path / "data", ExportOptions(formats=("raw",), file_type="jsonl"))

    async def other_content(other: TreeStore) -> None:
        header = store.header(store.trees()[0].tree_id)
        await other.create(header)
        tree = Tree.start(header)
        tree.chosen = 0
        await other.finish(tree)

    with TreeStore.open(tmp_path / "other.sqlite") as other:
        asyncio.run(other_content(other))
        report = asyncio.run(load(tmp_path / "data", other))
        assert len(report.added) == 5 and len(report.left_out) == 1
        assert "line 1: tree" in report.left_out[0] and "with other content" in report.left_out[0]
        with pytest.raises(TreewrightError, match="with other content"):
            asyncio.run(load(tmp_path / "data", other, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(schema=99), "schema: 99 is newer"),
        (lambda r: r.pop("schema"), "nor the fields of a raw table"),
        (lambda r: r.pop("goal"), "goal: Field required"),
        (lambda r: r["nodes"][2].update(status="opne"), r"nodes\[2\].status: Input should be"),
        (lambda r: r["nodes"][1]["outcome"].update(keep="x"), r"nodes\[1\].outcome.keep"),
        (lambda r: r["nodes"][1].update(ids=[10**3]), "digest: the row says"),
        (lambda r: r["nodes"][1].update(action="[1]"), r"nodes\[1\].action"),
        (lambda r: r.update(task_data="{"), "task_data"),
        (lambda r: r.update(attempt=77), "tree_id: .* is not the id"),
        (lambda r: r["expansions"][-1].update(drafts=50), r"expansions\[\d+\].drafts: 50 nodes are announced"),
        (lambda r: r["expansions"].pop(), "the expansions make"),
        (lambda r: r["nodes"][1].update(parent=40), r"nodes\[1\].parent: 40"),
        (lambda r: r.update(chosen=999), "chosen: node 999 does not exist"),
        (lambda r: r["nodes"].clear(), r"nodes\[0\].outcome"),
    ],
)
def test_a_changed_row_is_refused_and_the_field_named(
    store: TreeStore, change: Callable[[Any], Any], said: str
) -> None:
    name = store.trees()[0].tree_id
    row = json.loads(json.dumps(encode_tree(View(store.load(name)), store.expansions(name))))
    change(row)
    with pytest.raises(TreewrightError, match=said):
        decode_tree(row)


def test_rows_say_what_estimators_and_readers_need(store: TreeStore) -> None:
    name = store.trees()[0].tree_id
    tree, row = store.load(name), encode_tree(View(store.load(name)), store.expansions(name))
    assert list(row) == list(columns("raw")) and list(row["nodes"][1]) == list(columns("raw")["nodes"][0])
    assert [n["weight"] for n in row["nodes"]] == tree.mass
    assert [n["logprobs"] for n in row["nodes"]] == [list(p) for p in tree.logprobs]
    assert all(n["value"] is None or math.isfinite(n["value"]) for n in row["nodes"])


def test_the_card_tells_counts_filters_versions_and_licence(store: TreeStore, tmp_path: Path) -> None:
    options = ExportOptions(file_type="jsonl", license="apache-2.0", min_gap=0.3)
    report = export_dataset(store, tmp_path / "data", options, TreeFilter(split="train"))
    card = (tmp_path / "data" / "README.md").read_text()
    assert report.rows["raw", "train"] == 4 and ("raw", "test") not in report.rows
    for said in (
        'license: "apache-2.0"',
        "| split | train |",
        "| min_gap | 0.3 |",
        "from 4 search trees",
        "| v1 | 4 |",
    ):
        assert said in card
    lines = {f: len((tmp_path / "data" / f / "train.jsonl").read_text().splitlines()) for f in ("sft", "dpo", "prm")}
    assert lines == {f: report.rows[f, "train"] for f in lines}
    assert len(list((tmp_path / "data" / "atif" / "train").iterdir())) == report.rows["atif", "train"] > 0


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (TreeFilter(suite="s"), 6),
        (TreeFilter(split="test"), 2),
        (TreeFilter(run="run", policy_version="v1"), 6),
        (TreeFilter(exact=True), 6),
    ],
)
def test_filters_choose_trees(store: TreeStore, tmp_path: Path, where: TreeFilter, count: int) -> None:
    report = export_dataset(store, tmp_path / "d", ExportOptions(formats=("raw",), file_type="jsonl"), where)
    assert report.total("raw") == count


def test_success_splits_the_trees_in_two(store: TreeStore, tmp_path: Path) -> None:
    options = ExportOptions(formats=("raw",), file_type="jsonl")
    won = {r.tree_id for r in store.trees(success=True)}
    assert 0 < len(won) < 6
    assert export_dataset(store, tmp_path / "w", options, TreeFilter(success=True)).total("raw") == len(won)
    assert export_dataset(store, tmp_path / "l", options, TreeFilter(success=False)).total("raw") == 6 - len(won)


def test_a_filter_that_nothing_passes_and_a_folder_in_use_are_errors(store: TreeStore, tmp_path: Path) -> None:
    options = ExportOptions(formats=("raw",), file_type="jsonl")
    with pytest.raises(TreewrightError, match="none of the 6 finished trees"):
        export_dataset(store, tmp_path / "d", options, TreeFilter(suite="other"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(TreewrightError, match="not empty"):
        export_dataset(store, tmp_path / "full", options)


def test_parquet_without_pyarrow_says_what_to_install_and_json_lines_work(
    store: TreeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treewright.training.export.tables.has_pyarrow", lambda: False)
    with pytest.raises(TreewrightError, match=r"needs pyarrow.*treewright\[data\].*jsonl"):
        export_dataset(store, tmp_path / "d", ExportOptions())
    assert not (tmp_path / "d").exists()
    assert export_dataset(store, tmp_path / "d", ExportOptions(file_type="jsonl")).total("raw") == 6


async def test_a_row_of_the_first_version_has_the_defaults_of_what_came_later(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "t.db") as store:
        await fill(store, range(1))
        (name,) = (row.tree_id for row in store.trees())
        tree, grown = store.load(name), store.expansions(name)
    row = encode_tree(View(tree), grown)
    row["schema"] = 1
    for node in row["nodes"]:
        for later in ("hidden", "money", "drawn_share"):
            del node[later]
    again = decode_tree(row)
    assert again.tree.digest() == tree.digest() and repr(again.expansions) == repr(tuple(grown))
