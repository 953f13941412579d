"""Finding words whatever their script, form and spelling."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treewright.envs import TreewrightError
from treewright.envs.retrieval.answers import exact_match, f1
from treewright.envs.retrieval.corpus import Corpus, Doc
from treewright.envs.retrieval.index import LexicalIndex
from treewright.envs.retrieval.opening import make_retriever

LANGUAGES = json.loads((Path(__file__).parent / "multilingual.json").read_text("utf-8"))
DOCS = [Doc(f"{name}{i}", "", text) for name, told in LANGUAGES.items() for i, text in enumerate(told["passages"])]
FORMS: dict[str, Callable[[str], str]] = {
    "as written": str,
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "capitals": str.upper,
}


@pytest.fixture(scope="module")
def mixed() -> LexicalIndex:
    return LexicalIndex(DOCS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LANGUAGES)
def test_questions_in_twelve_languages_find_their_passage_in_one_corpus_of_all(
    mixed: LexicalIndex, name: Any, form: str
) -> None:
    asked = [(FORMS[form](question), DOCS.index(Doc(f"{name}{at}", "", LANGUAGES[name]["passages"][at])))
             for question, at in LANGUAGES[name]["questions"]]  # fmt: skip
    first = [mixed.rank(question, 1) for question, _ in asked]
    right = [bool(hits) and hits[0].position == at for hits, (_, at) in zip(first, asked, strict=True)]
    assert sum(right) / len(right) >= 0.75, [question for (question, _), ok in zip(asked, right, strict=True) if not ok]


def test_recall_over_all_languages_is_high(mixed: LexicalIndex) -> None:
    asked = [(question, f"{name}{at}") for name, told in LANGUAGES.items() for question, at in told["questions"]]
    found = [[DOCS[hit.position].id for hit in mixed.rank(question, 3)] for question, _ in asked]
    recall = sum(doc in hits for (_, doc), hits in zip(asked, found, strict=True)) / len(asked)
    assert recall >= 0.95


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        ("Das Café in Zürich öffnet", ["cafe zurich", "Cafe\u0301", "ZÜRICH", "Zu\u0308rich"]),
        ("Große Straße", ["STRASSE", "grosse strasse", "straße"]),
        ("Ørsted, Łódź, Ísafjörður, œuvre", ["orsted", "lodz", "Isafjordur", "oeuvre"]),
        ("ﬁsh ｆｕｌｌ width １２ and ² squared", ["fish", "full", "12", "2"]),
        ("co\u00adopera\u00adtion with zero\u200bwidth", ["cooperation", "zerowidth"]),
        ("मूल्य १९४७ तथा ٣", ["1947", "मूल्य", "3"]),
        ("ﾊﾝｶｸ カタカナ", ["ハンカク", "ｶﾀｶﾅ"]),
        ("水は生命である", ["水", "生命"]),
        ("שָׁלוֹם עולם", ["שלום"]),
        ("צה״ל ג׳ירפה", ["צהל", "גירפה", "צה״ל"]),
        ("کتاب فارسی", ["كتاب", "فارسي", "کتاب"]),
        ("مصطفى", ["مصطفي", "مصطفى"]),
        ("Hawaiʻi, Nukuʻalofa", ["hawaii", "Hawaiʻi", "nukualofa"]),
        ("He was running; the boxes and libraries", ["run", "box", "library", "Libraries"]),
        ("a " + "x" * 60, ["x" * 60]),
        ("अंतर्राष्ट्रीयकरणसंबंधी", ["अंतर्राष्ट्रीयकरणसंबंधी"]),
    ],
)
async def test_a_word_is_found_however_it_is_spelled(text: str, queries: list[str]) -> None:
    retriever = make_retriever(Corpus([Doc("other", "", "nothing of the kind"), Doc("it", "", text)]), "lexical")
    for query in queries:
        assert [hit.position for hit in await retriever.search(query, 3)][:1] == [1], query


def test_the_language_of_a_corpus_is_told_by_its_function_words_and_can_be_named() -> None:
    german = [Doc("a", "", "Die Häuser und die Gärten der Stadt"), Doc("b", "", "Ein Auto ist in dem Hof")]
    assert LexicalIndex(german).stemming == "german" and LexicalIndex(german).rank("Haus Garten", 1)
    english = [Doc("a", "", "The houses of the town"), Doc("b", "", "A car is in the yard")]
    assert LexicalIndex(english).stemming == "english"
    assert LexicalIndex([Doc("a", "", "北京的人口")]).stemming == "english"
    assert LexicalIndex(english, stemming="none").rank("house", 1) == []
    assert LexicalIndex(english, stemming="none").rank("HOUSES", 1)
    with pytest.raises(TreewrightError, match="no stemmer 'klingon'; there are auto, none, danish"):
        LexicalIndex(english, stemming="klingon")


def test_half_characters_in_a_query_find_what_the_rest_finds() -> None:
    index = LexicalIndex([Doc("a", "", "Rome"), Doc("b", "", "Oslo")])
    assert [hit.position for hit in index.rank("oslo \ud83d", 2)] == [1]
    assert index.rank("\ud83d\0", 2) == []


def test_titles_and_texts_are_one_field_in_which_the_title_weighs_a_little_more() -> None:
    docs = [Doc("a", "Rome", "A town of hills."), Doc("b", "Hills", "A town near Rome."), Doc("c", "Oslo", "x " * 20)]
    index = LexicalIndex(docs)
    assert [hit.position for hit in index.rank("Rome", 2)] == [0, 1]
    assert [hit.position for hit in index.rank("Rome hills town", 1)] == [0]


def test_answers_are_compared_by_character_and_not_by_code_point() -> None:
    assert exact_match("Cafe\u0301 Muller", ["Café Muller"]) == 1.0
    assert exact_match("STRASSE", ["Straße"]) == 1.0 and exact_match("１９９８年", ["1998年"]) == 1.0
    assert exact_match("«Война и мир»", ["война и мир"]) == 1.0 and exact_match("Müller", ["Muller"]) == 0.0
    assert f1("北京市", ["北京"]) == pytest.approx(0.8) and f1("東京", ["北海道"]) == 0.0
