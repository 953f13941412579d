"""Following links between passages by the names in them, without training."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from treewright.envs import Action, InvalidAction
from treewright.envs.check import check_env
from treewright.envs.retrieval.almanac import almanac
from treewright.envs.retrieval.corpus import Corpus, Doc, Question
from treewright.envs.retrieval.hypergraph import _JOINING as JOINING
from treewright.envs.retrieval.hypergraph import _WORD as WORD
from treewright.envs.retrieval.hypergraph import Hypergraph, HypergraphIndex
from treewright.envs.retrieval.index import LexicalIndex
from treewright.envs.retrieval.opening import open_suite
from treewright.envs.types import Suite

DOCS = [
    Doc("ada", "Ada Lane", "The poet Ada Lane was born in Harrow Bay. She later met Tomas Reck."),
    Doc("bay", "Harrow Bay (town)", "It is a port. The river Aun flows through the town to the sea."),
    Doc("aun", "Aun", "A river of 80 miles, famous for its salmon."),
    Doc("reck", "The Long Winter", "A novel by Tomas Reck about a port in the north."),
    Doc("salt", "Salt", "It is mined in the hills. The salt is white."),
    *(Doc(f"x{i}", f"Filler {i}", f"The weather on day {i} was mild in the south.") for i in range(10)),
]


def recall(index: HypergraphIndex | LexicalIndex, corpus: Corpus, questions: list[Question], k: int = 5) -> float:
    found = [{corpus.docs[hit.position].id for hit in index.rank(q.text, k)} & set(q.support) for q in questions]
    return sum(len(f) / len(set(q.support)) for f, q in zip(found, questions, strict=True)) / len(questions)


def test_passages_are_linked_by_titles_and_by_names_and_not_by_first_words_of_sentences() -> None:
    graph = Hypergraph(DOCS)
    assert [(DOCS[one.position].id, one.name) for one in graph.neighbours(0)] == [
        ("bay", "harrow bay"), ("reck", "tomas reck"),
    ]  # fmt: skip
    assert [DOCS[one.position].id for one in graph.neighbours(1)] == ["aun", "ada"]
    assert graph.neighbours(4) == [], "'It' and 'The' link nothing"


def test_what_a_question_does_not_name_is_found_over_a_link() -> None:
    question = "Which river flows through the town where the poet Ada Lane was born?"
    index, plain = HypergraphIndex(DOCS), LexicalIndex(DOCS)
    assert [DOCS[hit.position].id for hit in index.rank(question, 2)] == ["ada", "bay"]
    born = "Where was Ada Lane born, and what novel did somebody write whom she met?"
    assert "reck" in [DOCS[hit.position].id for hit in index.rank(born, 3)]
    assert {DOCS[hit.position].id for hit in index.rank("Ada Lane's birthplace", 2)} == {"ada", "bay"}
    assert "bay" not in {DOCS[hit.position].id for hit in plain.rank("Ada Lane's birthplace", 2)}


def test_two_hops_over_invented_passages_are_found_where_words_find_one() -> None:
    corpus, questions = almanac(300)
    linked, words = (recall(kind(corpus.docs), corpus, questions[:100]) for kind in (HypergraphIndex, LexicalIndex))
    assert linked >= 0.9 and linked >= 1.5 * words


@pytest.mark.parametrize(
    ("title", "text"),
    [("東京", "彼は東京で生まれた。"), ("Straße", "Er ging in die STRASSE hinaus."), ("दिल्ली", "वह दिल्ली में रहता है।"),
     ("Ада Лейн", "Это написала Ада Лейн.")],
)  # fmt: skip
def test_titles_of_any_script_link(title: str, text: str) -> None:
    graph = Hypergraph([Doc("a", title, "…"), Doc("b", "b", text)])
    assert [one.position for one in graph.neighbours(1)] == [0]


def test_empty_and_odd_questions_and_passages_give_no_error() -> None:
    index = HypergraphIndex([Doc("a", "", "\ud83d"), Doc("b", "()", ""), Doc("c", "C", "x")])
    for question in ("", " ", "?", "\ud83d", "()", "C " * 500):
        assert len(index.rank(question, 3)) <= 3
    assert index.rank("c", 0) == []


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps({"id": d.id, "title": d.title, "text": d.text}) + "\n" for d in DOCS)
    )
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Which river?", "answers": ["Aun"], "split": "train"}))
    return open_suite("own", corpus=tmp_path / "c.jsonl", questions=tmp_path / "q.jsonl", retriever="hypergraph")


async def test_a_world_over_a_hypergraph_has_tools_for_links_and_keeps_the_contract(suite: Suite) -> None:
    report = await check_env(suite.open, suite.tasks("train", 1))
    report.raise_if_failed()
    env: Any = await suite.open()
    await env.reset(suite.tasks("train", 1)[0], 0)

    async def shown(name: str, **arguments: Any) -> str:
        return str((await env.step(Action.of(name, **arguments), 0)).observation.text)

    assert [tool.name for tool in env.tools] == ["search", "read", "neighbours", "bridge", "answer"]
    linked = (await shown("neighbours", passage="ada")).splitlines()
    assert linked[0].startswith("[bay] Harrow Bay (town): It is a port.") and linked[0].endswith("(by harrow bay)")
    assert linked[1].startswith("[reck]") and linked[1].endswith("(by tomas reck)")
    assert await shown("neighbours", passage="salt") == "no results"
    assert (await shown("bridge", a="Ada Lane", b="Aun")) == "no results"
    between = (await shown("bridge", a="Harrow Bay", b="Tomas Reck")).splitlines()
    assert (
        len(between) == 1 and between[0].startswith("[ada]") and between[0].endswith("(by harrow bay and tomas reck)")
    )
    assert (await shown("bridge", a="ada", b="aun")).startswith("[bay] ")
    for name, arguments, message in [
        ("neighbours", {"passage": "nobody"}, "no doc 'nobody'; search shows ids"),
        ("bridge", {"a": "ada", "b": "Nobody Known"}, "no doc and no name 'Nobody Known'"),
        ("bridge", {"a": "ada"}, "bridge needs b"),
    ]:
        with pytest.raises(InvalidAction, match=message):
            await shown(name, **arguments)
    assert (await env.step(Action.of("answer", text="the Aun"), 0)).reward == 1.0


def test_equal_corpora_rank_alike_whatever_the_order_of_sets() -> None:
    corpus, questions = almanac(100, seed=4)
    one, two = HypergraphIndex(corpus.docs), HypergraphIndex(Corpus(corpus.docs).docs)
    for question in questions[:20]:
        assert one.rank(question.text, 10) == two.rank(question.text, 10)


def slow_names(graph: Hypergraph, text: str) -> set[str]:
    """Word by word: at each the longest title that begins there, and runs of capitalised words as they end."""
    words = WORD.findall(text)
    keys, found = [word.casefold() for word in words], set[str]()
    for i in range(len(words)):
        for end in range(len(words), i, -1):
            written = words[i:end]
            named = any(not word[0].islower() for word in written) and (end > i + 1 or words[i] not in graph._common)
            if named and " ".join(keys[i:end]) in graph.titled:
                found.add(" ".join(keys[i:end]))
                break
    run: list[int] = []
    for i, word in enumerate([*words, ""]):
        if word and (word[0].isupper() or word[0].isdigit()) and (run or word not in graph._common):
            run.append(i)
        elif not run or word not in JOINING:
            if len(run) > 1 or (run and words[run[0]] not in graph._first):
                found.add(" ".join(keys[run[0] : run[-1] + 1]))
            run = []
    return found


def test_names_are_those_that_reading_word_by_word_finds() -> None:
    rng = random.Random(3)
    some = ["Ada", "Bay", "The", "the", "of", "and", "river", "Harrow", "x-Ray", "X-ray", "3rd", "Ünal", "bay", "von"]

    def text(count: int) -> str:
        return " ".join(rng.choice(some) + rng.choice(["", "", "", ",", "."]) for _ in range(count))

    titles = ["Ada", "Ada Bay", "The Bay of Harrow", "the river", "Ünal", "Bay of the Ada von Harrow", "3rd", ""]
    titles += ["Harrow", "Harrow Bay 3rd"]
    graph = Hypergraph([Doc(str(i), title, text(30)) for i, title in enumerate(titles * 5)])
    texts = [text(rng.randint(0, 25)) for _ in range(400)]
    assert [graph.names_in(one) for one in texts] == [slow_names(graph, one) for one in texts]
    assert len(set().union(*map(graph.names_in, texts))) > 50
