"""Logs of Inspect out of trees, and conversations out of the documents of others."""

from __future__ import annotations

import asyncio
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from export_store import fill
from not_none import not_none
from search_trees import random_tree

from treewright.envs.errors import TreewrightError
from treewright.search.store.tree_store import TreeStore
from treewright.search.types import Origin
from treewright.training.export import ExportOptions, View, export_dataset, grown_trees
from treewright.training.export.atif18 import atif18
from treewright.training.export.foreign import conversations_in, read_documents
from treewright.training.export.messages import conversation_tree, parse_conversation
from treewright.training.export.peers import verifiers_trace


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("logs")
    with TreeStore.open(folder / "trees.sqlite") as store:
        asyncio.run(fill(store))
        report = export_dataset(store, folder / "out", ExportOptions(formats=("inspect",)))
    assert report.total("inspect") == 6
    return sorted((folder / "out" / "inspect").rglob("*.json"))


def spans(place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield place
    for branch in place["branches"]:
        yield from spans(branch)


def test_a_log_holds_every_executed_node_once_and_branches_nest_as_the_tree_does(logs: list[Path]) -> None:
    samples = [s for file in logs for s in json.loads(file.read_text())["samples"]]
    assert sorted(s["id"] for s in samples) == [f"t{n}" for n in range(6)]
    for sample in samples:
        tree = random_tree(int(sample["id"][1:]), window=int(sample["id"][1:]) % 2 == 1)
        events = {event["uuid"]: event for event in sample["events"]}
        asked = {e["metadata"]["node"]: e for e in sample["events"] if e["event"] == "model"}
        view = View(tree)
        assert set(asked) == {node for node in range(1, len(tree)) if view.executed(node)}
        placed = list[int]()
        for place in spans(sample["timelines"][0]["root"]):
            turns = [events[c["event"]] for c in place["content"]]
            nodes = [e["metadata"]["node"] for e in turns if e["event"] == "model"]
            placed += nodes
            above = int(place.get("branched_from", "node-0").removeprefix("node-"))
            assert [tree.parent[node] for node in nodes] == [above, *nodes[:-1]]
            assert all(e["span_id"] == place["id"] for e in turns)
        assert sorted(placed) == sorted(asked)


def test_a_log_says_what_each_node_was_asked_and_drew(logs: list[Path]) -> None:
    for file in logs:
        log = json.loads(file.read_text())
        assert log["version"] == 2 and log["status"] == "success" and log["eval"]["task"] == "s"
        for sample in log["samples"]:
            tree = random_tree(int(sample["id"][1:]), window=int(sample["id"][1:]) % 2 == 1)
            tree.reveal()
            pool = sample["events_data"]["messages"]
            for event in sample["events"]:
                if event["event"] != "model":
                    continue
                node = event["metadata"]["node"]
                read = [pool[i] for first, after in event["input_refs"] for i in range(first, after)]
                shown = [(m["role"], m["content"]) for m in View(tree).messages(tree.parent[node])]
                assert [(m["role"], m["content"]) for m in read] == shown
                assert tuple(event["metadata"]["token_ids"]) == tree.ids[node]
                assert event["metadata"]["logprobs"] == list(tree.logprobs[node])
            scores = [e for e in sample["events"] if e["event"] == "score"]
            assert [e["score"]["value"] for e in scores if not e["intermediate"]] == [
                sample["scores"]["outcome"]["value"]
            ]
            assert len(scores) == sum(1 for _ in tree.leaves())
        mean = log["results"]["scores"][0]["metrics"]["mean"]["value"]
        assert mean == pytest.approx(sum(s["scores"]["outcome"]["value"] for s in log["samples"]) / len(log["samples"]))


def test_a_log_is_imported_as_a_conversation_for_each_path(logs: list[Path]) -> None:
    file = logs[0]
    grown = list(grown_trees(file))
    samples = json.loads(file.read_text())["samples"]
    counts = [1 + sum(e["event"] == "branch" for e in sample["events"]) for sample in samples]
    assert len(grown) == sum(counts)
    first = grown[0].tree
    assert first.header.task.id == samples[0]["id"] and first.outcome_of(len(first) - 1) == pytest.approx(
        samples[0]["scores"]["outcome"]["value"]
    )
    assert [t.tree.header.task.id.partition("/")[0] for t in grown] == [
        s["id"] for s, n in zip(samples, counts, strict=True) for _ in range(n)
    ]


def test_documents_of_others_become_the_conversations_that_they_hold() -> None:
    tree = random_tree(4)
    tree.reveal()
    view = View(tree)
    for rows in (list(atif18(view)), list(verifiers_trace(view))):
        for row, leaf in zip(rows, view.leaves(), strict=True):
            talks = conversations_in(json.loads(json.dumps(row)))
            assert talks is not None
            talk = talks[-1]
            texts = [m["content"] for m in talk["messages"] if m["role"] == "assistant"]
            assert texts == [tree.text[node] for node in tree.path(leaf)[1:]]
            assert talk["reward"] == pytest.approx(tree.outcome_of(leaf))
    assert conversations_in({"messages": []}) is None and conversations_in([1]) is None


WRITTEN = [
    'a {"n": 1}',
    ' thinking first <tool_call>{"name": "a", "arguments": {"n": 1}}</tool_call>\n',
    '<think>hm</think>{"name": "a", "arguments": {"n": 1}}',
    "a native call that only its own policy reads",
]


FORMS = ["atif", "atif18", "inspect"]
# A log of Inspect does not say that a text has its calls: they are known by the forms that a text may have.
MARKED = [(form, text) for form in FORMS for text in WRITTEN if form != "inspect" or text != WRITTEN[-1]]


@pytest.mark.parametrize(("form", "text"), MARKED)
def test_a_call_comes_back_as_it_was_written_and_not_twice(tmp_path: Path, form: str, text: str) -> None:
    with TreeStore.open(tmp_path / "trees.sqlite") as store:
        asyncio.run(fill(store, range(2), text=text))
        export_dataset(store, tmp_path / "out", ExportOptions(formats=(form,), file_type="jsonl"))
        trees = [store.load(row.tree_id) for row in store.trees()]
    folder = tmp_path / "out" / form
    found = [grown.tree for grown in grown_trees(folder / "train.jsonl" if form == "atif18" else folder)]
    ends = [(t, leaf) for t in trees for leaf in (View(t).leaves() if form != "inspect" else [not_none(t.chosen)])]
    assert found and all(set(tree.text[1:]) == {text} for tree in found)
    if form != "inspect":
        acted = {tuple(str(t.action[i]) for i in t.path(leaf)[1:]) for t, leaf in ends}
        assert {tuple(map(str, tree.action[1:])) for tree in found} == acted


def test_a_call_that_a_message_does_not_spell_is_written_behind_its_words() -> None:
    step = {"source": "agent", "message": "I look", "tool_calls": [
        {"tool_call_id": "c", "function_name": "get", "arguments": {"city": "Bern"}}
    ]}  # fmt: skip
    talks = conversations_in({"schema_version": "ATIF-v1.4", "steps": [{"source": "user", "message": "?"}, step]})
    assert talks is not None
    grown = conversation_tree(
        parse_conversation(talks[0]), run="r", suite="s", task_id="t", attempt=0, origin=Origin.STORED, version="v"
    )
    assert grown.tree.text[1] == ('I look\n<tool_call>{"name": "get", "arguments": {"city": "Bern"}}</tool_call>')


def test_long_texts_of_a_log_come_from_where_it_keeps_them() -> None:
    message = {"role": "assistant", "content": "attachment://a1"}
    sample = {"id": 1, "epoch": 2, "messages": [{"role": "user", "content": "q"}, message],
              "attachments": {"a1": "long"}, "scores": {"match": {"value": "C"}}}  # fmt: skip
    talks = conversations_in({"version": 2, "eval": {"task": "t", "model": "m"}, "samples": [sample]})
    assert talks is not None and len(talks) == 1
    talk = talks[0]
    assert talk["messages"][-1]["content"] == "long" and talk["id"] == "1/2" and talk["reward"] == 1.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"schema_version": "ATIF-v1.8", "steps": [{}]}, "an ATIF document without a field 'source'"),
        ({"nodes": [{"message": {"role": "user"}, "parent": 0}]}, None),
        ({"nodes": [{"message": 3, "parent": None}]}, "a trace of verifiers that is not in its form"),
        ({"version": 2, "eval": {}, "samples": [{}]}, "a log of Inspect without a field 'id'"),
    ],
)
def test_a_document_that_lacks_what_its_format_has_is_named(row: Any, said: str | None) -> None:
    if said is None:
        assert conversations_in(row) == []
        return
    with pytest.raises(TreewrightError, match=said):
        conversations_in(row)


def test_files_that_cannot_be_read_are_named_and_the_rest_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "below"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{")
    (folder / "b.eval").write_bytes(b"no archive")
    tree = random_tree(2)
    tree.reveal()
    (folder / "c.json").write_text(json.dumps(next(iter(atif18(View(tree))))))
    (folder / "d.json").write_text(json.dumps({"version": 2, "eval": {"task": "t"}, "samples": []}))
    left = list[str]()
    assert len(list(grown_trees(tmp_path / "docs", leave=left.append))) == 1
    assert [Path(one.partition(":")[0].partition(",")[0]).name for one in left] == [
        "a.json cannot be read",
        "b.eval cannot be read",
        "d.json",
    ]


def test_an_archive_of_a_log_is_read_sample_by_sample(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    message = {"role": "assistant", "content": "hi"}
    entries = {
        "header.json": {"version": 2, "eval": {"task": "t", "model": "m"}},
        "samples/1_epoch_1.json": {"id": 1, "epoch": 1, "messages": [message]},
        "samples/2_epoch_1.json": {"id": 2, "epoch": 1, "messages": [message]},
    }
    plain = tmp_path / "plain.eval"
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in entries.items():
            archive.writestr(name, json.dumps(value))
    read = [conversations_in(row) for _, row in read_documents(plain)]
    assert [talk["id"] for talks in read for talk in talks or ()] == ["1", "2"]
    if sys.version_info < (3, 14):  # packed as Inspect packs: method 93, which zipfile neither writes nor reads
        packed = tmp_path / "packed.eval"
        texts = {name: json.dumps(value).encode() for name, value in entries.items()}
        raw = {name: pa.compress(text, codec="zstd", asbytes=True) for name, text in texts.items()}
        with zipfile.ZipFile(packed, "w") as archive:
            for name, data in raw.items():
                archive.writestr(name, data)
            for entry in archive.filelist:
                entry.compress_type, entry.file_size = 93, len(texts[entry.filename])
        assert [conversations_in(row) for _, row in read_documents(packed)] == read


def test_logs_are_what_inspect_itself_reads(logs: list[Path]) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="with make test-formats")
    for file in logs:
        found = log.read_eval_log(str(file))
        assert found.status == "success" and found.samples
        for sample in found.samples:
            root = sample.timelines[0].root
            assert root.content and all(e.input for e in sample.events if e.event == "model")
