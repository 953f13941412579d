"""Question files that bring their own passages: HotpotQA, 2WikiMultihopQA and MuSiQue.

    corpus, questions = load_multihop("hotpot_dev_distractor_v1.json")

The corpus is all passages of all questions, equal ones once. Formats are recognised by their fields:

HotpotQA, 2WikiMultihopQA   one JSON list of {_id, question, answer, context: [[title, [sentence, …]], …],
                            supporting_facts: [[title, sentence number], …]} (Yang et al. 2018, Ho et al. 2020)
MuSiQue                     JSONL of {id, question, answer, answer_aliases, paragraphs: [{title, paragraph_text,
                            is_supporting}], question_decomposition} (Trivedi et al. 2022)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from treewright.envs.retrieval.corpus import Corpus, Doc, Question, unique
from treewright.envs.retrieval.fields import answers_of, identity, splits_of, text_of, title_of
from treewright.envs.retrieval.rows import CorpusError, LeftOut, clean, one_line, records

__all__ = ["has_passages", "load_multihop"]

LOOKED_AT = 100  # records by which a file's kind is told
Passage = tuple[str, str, bool]


def has_passages(path: str | Path) -> bool:
    """True if one of the file's first questions brings passages of its own. Raises CorpusError if it cannot be read."""
    rows = (row for _, _, row in records(Path(path), LeftOut(Path(path))))
    return any(
        isinstance(row.get(f), list | dict) for row in islice(rows, LOOKED_AT) for f in ("context", "paragraphs")
    )


def load_multihop(path: str | Path) -> tuple[Corpus, list[Question]]:
    """The passages and the questions of a file.

    Passages of equal title and other text get the ids `title`, `title (2)`, …. Questions that MuSiQue marks as not
    answerable bring their passages only. Passages without text are left out; so are records that cannot be used, with
    a warning that names record and field. Raises CorpusError if nothing is left.
    """
    left_out = LeftOut(Path(path))
    docs: dict[tuple[str, str], Doc] = {}
    used: set[str] = set()
    questions: dict[str, Question] = {}
    for where, number, row in records(Path(path), left_out):
        try:
            passages, question = list(_passages(row, where)), _question(row, number, where)
            if question is not None and question.id in questions:
                raise CorpusError(f"{where}: id {question.id!r} stands twice; give each its own")
        except CorpusError as error:
            left_out.add(error)
            continue
        for title, text, _ in passages:
            if (title, text) not in docs:
                name = unique(title or f"passage {len(docs) + 1}", used)
                docs[title, text] = Doc(name, title or name, text)
        if question is not None:
            support = tuple(dict.fromkeys(docs[title, text].id for title, text, gold in passages if gold))
            questions[question.id] = replace(question, support=support)
    form = "each needs 'question', 'answer', and 'context' or 'paragraphs'"
    why = left_out.close(min(len(docs), len(questions)), "question with passages", form)
    splits = splits_of([(name, None) for name in questions])
    asked = [replace(one, split=split) for one, split in zip(questions.values(), splits, strict=True)]
    return Corpus(docs.values(), why), asked


def _question(row: dict[str, Any], number: int, where: str) -> Question | None:
    """The question without support and split; None if it is marked as not answerable."""
    if row.get("answerable") is False:
        return None
    name = identity(row, where) or str(number)
    return Question(name, text_of(row, ("question",), where), answers_of(row, where))


def _passages(row: dict[str, Any], where: str) -> Iterator[Passage]:
    """Title, text, and whether it holds the answer; those without text are left out."""
    return (one for one in (_paragraphs if "paragraphs" in row else _context)(row, where) if one[1].strip())


def _paragraphs(row: dict[str, Any], where: str) -> Iterator[Passage]:
    for paragraph in _list(row, "paragraphs", where):
        if not isinstance(paragraph, dict):
            raise CorpusError(f"{where}: field 'paragraphs' must hold objects, got {paragraph!r:.40}")
        text = paragraph.get("paragraph_text")
        if not isinstance(text, str | None):
            raise CorpusError(f"{where}: field 'paragraph_text' must be a string, got {text!r:.40}")
        yield title_of(paragraph, where) or "", clean(text or ""), bool(paragraph.get("is_supporting"))


def _context(row: dict[str, Any], where: str) -> Iterator[Passage]:
    gold = {one_line(str(title)) for title in _facts(row.get("supporting_facts"))}
    context = row.get("context")
    if isinstance(context, dict):  # columns, as `datasets` gives them
        titles, texts = _list(context, "title", where), _list(context, "sentences", where)
        context = [list(pair) for pair in zip(titles, texts, strict=False)]
    for passage in _list({"context": context}, "context", where):
        try:
            title, sentences = passage
            text = "".join(sentence for sentence in sentences if sentence is not None).strip()
        except (TypeError, ValueError):
            raise CorpusError(f"{where}: field 'context' must hold [title, [sentences]], got {passage!r:.40}") from None
        title = title_of({"title": title}, where) or ""
        yield title, clean(text), title in gold


def _facts(given: Any) -> list[Any]:
    """The titles of HotpotQA's supporting facts: [[title, sentence], …], or columns as `datasets` gives them."""
    if isinstance(given, dict):
        titles = given.get("title")
        return titles if isinstance(titles, list) else []
    return [fact[0] for fact in given if isinstance(fact, list) and fact] if isinstance(given, list) else []


def _list(row: dict[str, Any], field: str, where: str) -> list[Any]:
    value = row.get(field)
    if not isinstance(value, list):
        raise CorpusError(f"{where}: field {field!r} must be a list, got {value!r:.40}")
    return value
