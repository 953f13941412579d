"""Corpora and questions from other people's files: many shapes are read; what cannot be used is left out by place."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from treewright.envs import Action
from treewright.envs.retrieval.corpus import Corpus, CorpusError, Doc, Question, load_corpus, load_questions
from treewright.envs.retrieval.multihop import has_passages, load_multihop
from treewright.envs.retrieval.world import make_suite

DOC = {"id": "a", "title": "T", "text": "body"}
ASKED = {"id": "q", "question": "who ?", "answers": ["me"]}


def write(path: Path, *lines: Any) -> Path:
    """Lines of text as they are, anything else as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), "utf-8")
    return path


# -- shapes -----------------------------------------------------------------------------------------------------------


def test_a_corpus_and_its_questions_come_from_jsonl(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "c.jsonl", {"id": "x", "text": "one"}, "", {**DOC, "id": "y"}))
    assert corpus.docs == (Doc("x", "x", "one"), Doc("y", "T", "body")) and corpus.get("z") is None
    rows = [{"id": str(i), "question": "who ?", "answers": "me"} for i in range(200)]
    questions = load_questions(write(tmp_path / "q.jsonl", *rows, {**rows[0], "id": "t", "split": "test"}))
    assert questions[0].answers == ("me",) and questions[-1].split == "test"
    assert 20 <= sum(q.split == "test" for q in questions[:-1]) <= 60


def test_corpora_of_other_peoples_shapes_are_read(tmp_path: Path) -> None:
    rows = {"_id": 7, "contents": '"Blue whale"\nIt eats krill.'}, {"title": "Moon", "body": "It shines."}
    docs = (Doc("7", "Blue whale", "It eats krill."), Doc("Moon", "Moon", "It shines."))
    assert load_corpus(write(tmp_path / "c.jsonl", *rows)).docs == docs
    assert load_corpus(write(tmp_path / "c.json", list(rows))).docs == docs


@pytest.mark.parametrize(
    ("rows", "ids"),
    [
        ([{"title": "Ada", "text": "1"}, {"title": "Ada", "text": "2"}, {"title": "Ada", "text": "3"}],
         ["Ada", "Ada (2)", "Ada (3)"]),
        ([{"title": "Ada", "text": "1"}, {"id": "Ada", "text": "2"}], ["Ada (2)", "Ada"]),
        ([{"title": "Ada (2)", "text": "1"}, {"title": "Ada", "text": "2"}, {"title": "Ada", "text": "3"}],
         ["Ada (2)", "Ada", "Ada (3)"]),
        ([{"text": "1"}, {"text": "2"}], ["1", "2"]),
    ],
)  # fmt: skip
def test_a_corpus_without_ids_whose_titles_repeat_loads(
    tmp_path: Path, rows: list[dict[str, str]], ids: list[str]
) -> None:
    corpus = load_corpus(write(tmp_path / "c.jsonl", *rows))
    assert [doc.id for doc in corpus.docs] == ids and corpus.left_out == ()
    assert [doc.text for doc in corpus.docs] == [row["text"] for row in rows]


def test_a_folder_of_texts_is_a_corpus_and_an_empty_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "sea").mkdir()
    (tmp_path / "sea" / "whale.md").write_bytes(b"\xef\xbb\xbfWhales sing.")
    (tmp_path / "moon.txt").write_text("The Moon shines.")
    (tmp_path / "wide.txt").write_text("The Sun too.", "utf-16")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "data.bin").write_bytes(b"\xff")
    corpus = load_corpus(tmp_path)
    assert [(d.id, d.text) for d in corpus.docs] == [
        ("moon.txt", "The Moon shines."), ("sea/whale.md", "Whales sing."), ("wide.txt", "The Sun too."),
    ]  # fmt: skip
    assert len(corpus.left_out) == 1 and corpus.left_out[0].startswith("latin.txt: not readable as UTF-8")
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match=r"holds no document that can be used; put \.txt"):
        load_corpus(tmp_path / "none")


@pytest.mark.parametrize(
    ("row", "answers", "support"),
    [
        ({"query": "q", "golden_answers": ["Ada"], "answer_aliases": ["A. L.", "Ada"], "supporting_titles": ["x"]},
         ("Ada", "A. L."), ("x",)),
        ({"question": "q", "answers": {"text": ["Ada", "Ada"], "answer_start": [3, 9]}}, ("Ada",), ()),
        ({"question": "q", "answers": [1998, "1998", None, ""], "support": [7]}, ("1998",), ("7",)),
        ({"question": "q", "answer": 3.5, "support": "x"}, ("3.5",), ("x",)),
        ({"question": "q", "answers": [], "answer": "Ada", "support": {"title": ["x", "x"]}}, ("Ada",), ("x",)),
    ],
)  # fmt: skip
def test_answers_and_support_of_many_forms_are_read(
    tmp_path: Path, row: dict[str, Any], answers: tuple[str, ...], support: tuple[str]
) -> None:
    (question,) = load_questions(write(tmp_path / "q.jsonl", row))
    assert (question.id, question.answers, question.support) == ("1", answers, support)


@pytest.mark.parametrize("empty", [None, "", " ", [], {}])
def test_optional_fields_that_are_there_and_empty_count_as_missing(
    tmp_path: Path, empty: str | list[Any] | dict[str, Any] | None
) -> None:
    fields: tuple[str, ...] = ("title", "id", "_id")
    corpus = load_corpus(write(tmp_path / "c.jsonl", {"text": "body"} | dict.fromkeys(fields, empty), DOC))
    assert corpus.docs == (Doc("1", "1", "body"), Doc("a", "T", "body")) and corpus.left_out == ()
    fields = ("answer_aliases", "support", "supporting_titles", "split", "id", "answer")
    (question,) = load_questions(
        write(tmp_path / "q.jsonl", {"question": "w", "answers": "x"} | dict.fromkeys(fields, empty))
    )
    assert (question.id, question.answers, question.support, question.split) == ("1", ("x",), (), "train")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["train", "dev"], ["train", "test"]), (["training", "Validation", "test"], ["train", "test", "test"]),
        (["test", "test"], ["test", "test"]), (["dev"], ["train"]), ([None], ["train"]),
        (["test", None], ["test", "train"]),
    ],
)  # fmt: skip
def test_splits_by_other_names_are_understood_and_training_is_never_left_without(
    tmp_path: Path, said: list[Any], expected: list[str]
) -> None:
    rows = [ASKED | {"id": f"x{i}", "split": split} for i, split in enumerate(said)]
    assert [q.split for q in load_questions(write(tmp_path / "q.jsonl", *rows))] == expected


# -- odd bytes and characters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_no_part_of_the_first_row(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(DOC, ensure_ascii=False) + "\n", encoding)
    assert load_corpus(tmp_path / "c.jsonl").docs == (Doc("a", "T", "body"),)
    (tmp_path / "h.json").write_text(json.dumps([HOTPOT]), encoding)
    assert has_passages(tmp_path / "h.json") and len(load_multihop(tmp_path / "h.json")[1]) == 1
    twice = b"\xef\xbb\xbf" + json.dumps(DOC).encode() + b"\n\xef\xbb\xbf" + json.dumps(DOC | {"id": "b"}).encode()
    (tmp_path / "joined.jsonl").write_bytes(twice)
    assert len(load_corpus(tmp_path / "joined.jsonl")) == 2


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n \n", "\n\x1e"])
def test_rows_end_where_json_lines_end(tmp_path: Path, end: str) -> None:
    rows = [json.dumps(DOC | {"id": str(i), "text": "a\u2028b\x85c\x0bd"}, ensure_ascii=i > 0) for i in range(3)]
    (tmp_path / "c.jsonl").write_bytes(end.join(rows).encode())
    corpus = load_corpus(tmp_path / "c.jsonl")
    assert [doc.text for doc in corpus.docs] == ["a\u2028b\x85c\x0bd"] * 3 and corpus.left_out == ()


async def test_line_ends_of_any_kind_in_a_title_do_not_break_the_list_of_hits(tmp_path: Path) -> None:
    for mark in ("\n", "\u2028", "\x85", "\r"):
        path = write(tmp_path / "c.jsonl", {"id": f"x{mark}1", "title": f"A{mark}B", "text": f"one{mark}two"})
        corpus = load_corpus(path)
        env = await make_suite("own", corpus, [Question("q", "w", ("a",))]).open()
        await env.reset(make_suite("own", corpus, [Question("q", "w", ("a",))]).tasks("train", 1)[0], 0)
        shown = (await env.step(Action.of("search", query="one"), 0)).observation.text
        assert shown == "[x 1] A B: one two"
        assert (await env.step(Action.of("read", doc="x 1"), 0)).observation.text == f"one{mark}two"


async def test_half_characters_are_replaced_wherever_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "d\\ud83d", "title": "\\udc00", "text": "Ada \\ud83d lives \\ud83d\\ude00 \\u0000"}\n')
    corpus = load_corpus(path)
    assert corpus.docs == (Doc("d\ufffd", "\ufffd", "Ada \ufffd lives \U0001f600 \ufffd"),)
    assert Corpus([Doc("a", "\ud83d", "\ud83d")]).docs == (Doc("a", "\ufffd", "\ufffd"),)
    (tmp_path / "q.jsonl").write_text('{"question": "who \\ud83d", "answers": ["x\\ud83d"]}\n')
    (question,) = load_questions(tmp_path / "q.jsonl")
    assert (question.text, question.answers) == ("who \ufffd", ("x\ufffd",))
    suite = make_suite("own", corpus, [question])
    env = await suite.open()
    await env.reset(suite.tasks("train", 1)[0], 0)
    found = await env.step(Action.of("search", query="ada \ud83d"), 0)
    assert found.observation.text.startswith("[d\ufffd] \ufffd: Ada")
    done = await env.step(Action.of("answer", text="x\ud83d"), 0)
    assert done.reward == 1.0
    snapshot = await env.snapshot()
    assert (await (await suite.open()).restore(snapshot)).text == "done"


# -- rows that cannot be used -----------------------------------------------------------------------------------------


BAD_DOCS = [
    ('{"id": "b", ', "line 2, column 13: not JSON"),
    ("[1]", "line 2: expected a JSON object, got list"),
    ("[" * 100_000, "line 2, column 1: not JSON (it is nested deeper"),
    ({"id": "b"}, "line 2: field 'text' is missing"),
    ({"id": [7], "text": "x"}, "line 2: field 'id' must be a non-empty string"),
    ({"id": "b", "text": " "}, "line 2: field 'text' is empty"),
    ({"id": "b", "text": 5}, "line 2: field 'text' must be"),
    ({"id": "b", "text": "x", "title": ["y"]}, "line 2: field 'title' must be"),
    (DOC, "line 2: field 'id' repeats 'a' of line 1"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_DOCS)
def test_one_odd_row_of_a_corpus_is_left_out_and_named_by_line_and_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: Collection[str], message: str
) -> None:
    with caplog.at_level(logging.WARNING, "treewright"):
        corpus = load_corpus(write(tmp_path / "c.jsonl", DOC, bad, DOC | {"id": "z"}))
    assert [doc.id for doc in corpus.docs] == ["a", "z"] and len(corpus.left_out) == 1
    assert corpus.left_out[0].startswith(message)
    assert f"c.jsonl: left out 1 of 3: {message}" in caplog.text


@pytest.mark.parametrize("bad", [bad for bad, _ in BAD_DOCS[:2]])
def test_an_odd_first_row_is_left_out_too(tmp_path: Path, bad: Any) -> None:
    assert len(load_corpus(write(tmp_path / "c", bad, DOC))) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "b", "answers": ["x"]}, "line 2: field 'question' is missing"),
        ({"id": "b", "question": "who ?"}, "line 2: field 'answers' is missing"),
        ({"id": "b", "question": "who ?", "answers": []}, "line 2: field 'answers' is empty"),
        ({"id": "b", "question": "who ?", "answers": ["x", True]}, "line 2: field 'answers' must be"),
        ({"id": "b", "question": "who ?", "answers": "x", "split": "later"}, "line 2: field 'split' must be"),
        ({"id": "b", "question": "who ?", "answers": "x", "support": [{}, [1]]}, "line 2: field 'support' must be"),
        (ASKED, "line 2: field 'id' repeats 'q' of line 1"),
    ],
)
def test_one_odd_question_is_left_out_and_named_by_line_and_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: dict[str, Any], message: str
) -> None:
    with caplog.at_level(logging.WARNING, "treewright"):
        questions = load_questions(write(tmp_path / "q.jsonl", ASKED, bad, ASKED | {"id": "z"}))
    assert [question.id for question in questions] == ["q", "z"]
    assert f"q.jsonl: left out 1 of 3: {message}" in caplog.text


def test_many_odd_rows_are_counted_and_the_first_places_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "treewright"):
        corpus = load_corpus(write(tmp_path / "c.jsonl", DOC, *["no"] * 40))
    assert len(corpus.left_out) == 40
    assert "left out 40 of 41: line 2, column 1: not JSON" in caplog.text and "and 35 more" in caplog.text


def test_bytes_that_are_no_text_cost_their_own_line_only(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(json.dumps(DOC).encode() + b'\n{"id": "caf\xe9", "text": "x"}\n')
    corpus = load_corpus(tmp_path / "c.jsonl")
    assert len(corpus) == 1 and corpus.left_out == ("line 2: not UTF-8 text at character 12",)


def test_a_file_of_which_nothing_is_left_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read"):
        load_corpus(tmp_path / "none.jsonl")
    with pytest.raises(CorpusError, match="holds no document that can be used; write one JSON object a line"):
        load_corpus(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(CorpusError, match="no document that can be used, line 1: field 'text' is missing"):
        load_corpus(write(tmp_path / "c.jsonl", {"id": "x", "txt": "y"}))
    with pytest.raises(CorpusError, match="no question that can be used, line 1: field 'answers' is missing"):
        load_questions(write(tmp_path / "q.jsonl", {"question": "x"}))
    with pytest.raises(CorpusError, match=r"h\.json is not JSON"):
        load_multihop(write(tmp_path / "h.json", "[{"))


# -- files that bring their passages ----------------------------------------------------------------------------------


HOTPOT = {
    "_id": "h1", "question": "where ?", "answer": "Rome",
    "context": [["Ada", ["Ada lives ", "in Rome."]], ["Bob", ["Bob."]]], "supporting_facts": [["Ada", 0], ["Ada", 1]],
}  # fmt: skip
COLUMNS = HOTPOT | {
    "context": {"title": ["Ada", "Bob"], "sentences": [["Ada lives ", "in Rome."], ["Bob."]]},
    "supporting_facts": {"title": ["Ada", "Ada"], "sent_id": [0, 1]},
}  # fmt: skip
MUSIQUE: dict[str, Any] = {
    "id": "m1", "question": "what ?", "answer": "tea", "answer_aliases": ["a tea"], "answerable": True,
    "paragraphs": [
        {"title": "Ada", "paragraph_text": "Ada drinks tea.", "is_supporting": True},
        {"title": "Ada", "paragraph_text": "Another Ada.", "is_supporting": False},
    ],
}  # fmt: skip


@pytest.mark.parametrize("row", [HOTPOT, COLUMNS])
def test_multihop_files_bring_their_passages(tmp_path: Path, row: dict[str, Any]) -> None:
    corpus, (question,) = load_multihop(write(tmp_path / "h.json", [row]))
    assert corpus.docs[0] == Doc("Ada", "Ada", "Ada lives in Rome.") and question.support == ("Ada",)
    assert has_passages(write(tmp_path / "lines.jsonl", "odd", row))


def test_musique_brings_paragraphs_of_equal_titles(tmp_path: Path) -> None:
    unanswerable = MUSIQUE | {"id": "m2", "answerable": False}
    corpus, (question,) = load_multihop(write(tmp_path / "m.jsonl", MUSIQUE, unanswerable))
    assert [d.id for d in corpus.docs] == ["Ada", "Ada (2)"] and question.answers == ("tea", "a tea")


def test_paragraphs_without_title_or_text_and_null_fields_are_no_reason_to_refuse(tmp_path: Path) -> None:
    odd = [{"title": "", "paragraph_text": "Untitled."}, {"title": "Bo", "paragraph_text": None}]
    row = MUSIQUE | {"answer_aliases": None, "answerable": None, "paragraphs": MUSIQUE["paragraphs"] + odd}
    corpus, (question,) = load_multihop(write(tmp_path / "m.jsonl", row))
    assert [d.id for d in corpus.docs] == ["Ada", "Ada (2)", "passage 3"] and question.support == ("Ada",)
    hotpot = HOTPOT | {"supporting_facts": None, "context": [*HOTPOT["context"], ["Cy", []], [None, ["x", None]]]}
    corpus, (question,) = load_multihop(write(tmp_path / "h.json", [hotpot]))
    assert [d.id for d in corpus.docs] == ["Ada", "Bob", "passage 3"] and question.support == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": "no"}, "record 1: field 'context' must be a list"),
        ({"context": [["Ada"]]}, "record 1: field 'context' must hold [title, [sentences]]"),
        ({"answer": []}, "record 1: field 'answer' is empty"),
        ({"question": ""}, "record 1: field 'question' is empty"),
        ({"_id": "h1"}, "record 1: id 'h1' stands twice"),
    ],
)
def test_one_odd_record_is_left_out_and_named_with_its_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], message: str
) -> None:
    with caplog.at_level(logging.WARNING, "treewright"):
        corpus, questions = load_multihop(write(tmp_path / "h.json", [HOTPOT, HOTPOT | {"_id": "h2"} | change, 5]))
    assert [question.id for question in questions] == ["h1"] and len(corpus) == 2
    assert f"left out 2 of 3: {message}" in caplog.text.replace(" of 4", " of 3")
    assert "record 2: expected a JSON object, got int" in caplog.text


def test_the_command_line_goes_on_past_odd_rows_and_says_so(tmp_path: Path) -> None:
    text = "Krill feed whales. Half an emoji: \ud83d"
    write(tmp_path / "c.jsonl", {"_id": "1", "title": "", "text": text, "metadata": {}}, "{oops")
    asked = {"question": "What feeds whales?", "answers": [1, "Krill"], "split": None}
    write(tmp_path / "q.jsonl", asked, {"question": 3})
    given = ["collect", "--name", "odd", "--corpus", "c.jsonl", "--questions", "q.jsonl", "--tasks", "1"]
    given += ["--set", "search.expansions=1"]
    script = "from treewright.agent.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", script, *given], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "next: treewright train --name odd" in done.stdout
    said = " ".join(done.stderr.split())
    assert "c.jsonl: left out 1 of 2: line 2, column 2: not JSON" in said and "Traceback" not in said
    assert "q.jsonl: left out 1 of 2: line 2: field 'question' must be a non-empty string, got 3" in said
