"""The general retrieval world: ranking, paging, comparing answers, and files that are not as they should be."""

from __future__ import annotations

import random
from typing import Any

import pytest

from treewright.envs import Action, Environment, InvalidAction
from treewright.envs.retrieval.answers import exact_match, f1, normalise
from treewright.envs.retrieval.corpus import Corpus, CorpusError, Doc, Question
from treewright.envs.retrieval.index import Hit, LexicalIndex
from treewright.envs.retrieval.world import RetrievalWorld, make_suite
from treewright.envs.types import Suite

DOCS = [
    Doc("whale", "Blue whale", "The blue whale is a marine mammal. It lives in every ocean but the Arctic."),
    Doc("krill", "Krill", "Krill are small crustaceans. The blue whale eats krill."),
    Doc("moon", "Moon", "The Moon orbits the Earth."),
    Doc("long", "Long read", "word " * 500),
]
QUESTIONS = [Question("q1", "what does the blue whale eat ?", ("Krill", "small crustaceans"), "test")]


def a_suite(**options: Any) -> Suite:
    return make_suite("animals", Corpus(DOCS), QUESTIONS, **options)


async def opened(**options: Any) -> Environment:
    chosen = a_suite(**options)
    env = await chosen.open()
    await env.reset(chosen.tasks("test", 1)[0], 0)
    return env


async def shown(env: Environment | RetrievalWorld, name: str, **arguments: Any) -> str:
    return (await env.step(Action.of(name, **arguments), 0)).observation.text


async def test_search_ranks_titles_with_ids_and_snippets() -> None:
    env = await opened()
    assert isinstance(env, Environment)
    lines = (await shown(env, "search", query="blue whale")).splitlines()
    assert lines[0].startswith("[whale] Blue whale: The blue whale is a marine mammal")
    assert lines[1].startswith("[krill] Krill: ") and len(lines) == 2
    assert await shown(env, "search", query="?!") == "no results"
    assert await shown(env, "search", query='title:"x AND (') == "no results"


async def test_read_shows_a_document_page_by_page() -> None:
    env = await opened()
    assert await shown(env, "read", doc="moon") == "The Moon orbits the Earth."
    first, last = await shown(env, "read", doc="long"), await shown(env, "read", doc="long", page=3)
    assert first.endswith("(page 1 of 3)") and last.endswith("(page 3 of 3)")
    with pytest.raises(InvalidAction, match="no page 4, 'long' has 3"):
        await shown(env, "read", doc="long", page=4)
    with pytest.raises(InvalidAction, match="page must be a whole number"):
        await shown(env, "read", doc="long", page="2")
    with pytest.raises(InvalidAction, match="no doc 'blue', did you mean 'whale'"):
        await shown(env, "read", doc="blue")


@pytest.mark.parametrize(
    ("reward", "text", "expected"),
    [("exact", "the KRILL.", 1.0), ("exact", "krill and fish", 0.0), ("f1", "krill and fish", 0.5), ("f1", "ice", 0.0)],
)
async def test_an_answer_is_graded_against_all_accepted_ones(reward: str, text: str, expected: float) -> None:
    env = await opened(reward=reward)
    result = await env.step(Action.of("answer", text=text), 0)
    assert result.terminated and result.reward == expected


async def test_the_truth_is_in_no_observation_before_it_is_looked_up() -> None:
    chosen = a_suite()
    env = await chosen.open()
    assert (await env.reset(chosen.tasks("test", 1)[0], 0)).text == "ready"
    assert chosen.tasks("train", 0) == []
    with pytest.raises(ValueError, match="there are 1"):
        chosen.tasks("test", 2)


def test_answers_are_compared_without_case_articles_punctuation_and_spacing() -> None:
    assert normalise("  The  Blue-Whale's\tpath ") == "bluewhales path"
    assert exact_match("An answer!", ["answer"]) == 1.0
    assert exact_match("a", ["the"]) == 0.0 and exact_match("+", ["-"]) == 0.0
    assert exact_match("a", ["A"]) == 1.0
    assert f1("new york city", ["the New York"]) == pytest.approx(0.8)
    assert f1("x", []) == 0.0 and exact_match("x", []) == 0.0


def test_equal_scores_stand_in_corpus_order_whatever_the_limit() -> None:
    docs = [Doc(str(i), f"title {i}", "same words here" if i % 3 else "same words") for i in range(2000)]
    index = LexicalIndex(docs)
    whole = [hit.position for hit in index.rank("words", 2000)]
    assert sorted(whole) == list(range(2000))
    shorter = [i for i in range(2000) if i % 3 == 0]
    assert whole == shorter + [i for i in range(2000) if i % 3]
    for k in (1, 5, 667, 700):
        assert [hit.position for hit in index.rank("words", k)] == whole[:k]


def test_two_indexes_of_one_corpus_rank_alike() -> None:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(50)]
    docs = [Doc(str(i), rng.choice(words), " ".join(rng.choices(words, k=12))) for i in range(400)]
    one, two = LexicalIndex(docs), LexicalIndex(docs)
    for _ in range(30):
        query = " ".join(rng.choices(words, k=3))
        assert one.rank(query, 10) == two.rank(query, 10)
        assert len(one.rank(query, 10)) == 10


def test_a_word_in_the_title_weighs_more_than_in_the_text() -> None:
    index = LexicalIndex([Doc("a", "birds", "fish swim"), Doc("b", "fish", "birds swim")])
    assert [hit.position for hit in index.rank("fish", 2)] == [1, 0]


def test_ids_that_stand_twice_are_refused() -> None:
    with pytest.raises(CorpusError, match="'moon' stands twice"):
        Corpus([*DOCS, DOCS[2]])
    with pytest.raises(CorpusError, match="at least one"):
        Corpus([])
    with pytest.raises(CorpusError, match="unique"):
        make_suite("twice", Corpus(DOCS), QUESTIONS * 2)


async def test_any_retriever_serves() -> None:
    class Newest:
        async def search(self, query: str, k: int) -> list[Hit]:
            return LexicalIndex(DOCS).rank("krill", 1)

    env = RetrievalWorld(Corpus(DOCS), Newest(), snippet_chars=0)
    await env.reset(a_suite().tasks("test", 1)[0], 0)
    assert await shown(env, "search", query="anything") == "krill"
