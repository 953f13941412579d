"""Question files that bring their own passages: HotpotQA, 2WikiMultihopQA and MuSiQue.

    corpus, questions = load_multihop("hotpot_dev_distractor_v1.json")

The corpus is all passages of all questions, equal ones once. Formats are recognised by their fields:

HotpotQA, 2WikiMultihopQA   one JSON list of {_id, question, answer, context: [[title, [sentence, …]], …],
                            supporting_facts: [[title, sentence number], …]} (Yang et al. 2018, Ho et al. 2020)
MuSiQue                     JSONL of {id, question, answer, answer_aliases, paragraphs: [{title, paragraph_text,
                            is_supporting}], question_decomposition} (Trivedi et al. 2022)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treewright.envs.retrieval.corpus import Corpus, CorpusError, Doc, Question, answers_of, rows_of, split_of, text_of

__all__ = ["has_passages", "load_multihop"]


def has_passages(path: str | Path) -> bool:
    """True if the file's first question brings passages of its own. Raises CorpusError if it cannot be read."""
    _, row = next(_records(Path(path)), (0, {}))
    return "context" in row or "paragraphs" in row


def load_multihop(path: str | Path) -> tuple[Corpus, list[Question]]:
    """The passages and the questions of a file. Raises CorpusError naming the record and the field.

    Passages of equal title and other text get the ids `title`, `title (2)`, …. Questions that MuSiQue marks as not
    answerable are left out.
    """
    docs: dict[tuple[str, str], Doc] = {}
    counts: dict[str, int] = {}
    questions: dict[str, Question] = {}
    for where, row in _records(Path(path)):
        support: list[str] = []
        for title, text, supporting in _passages(row, where):
            if (title, text) not in docs:
                counts[title] = counts.get(title, 0) + 1
                name = title if counts[title] == 1 else f"{title} ({counts[title]})"
                docs[title, text] = Doc(name, title, text)
            if supporting:
                support.append(docs[title, text].id)
        if row.get("answerable", True):
            name = text_of(row, "_id" if "_id" in row else "id", where)
            if name in questions:
                raise CorpusError(f"{where}: id {name!r} stands twice")
            questions[name] = Question(
                name, text_of(row, "question", where), answers_of(row, where), split_of(name), tuple(support)
            )
    return Corpus(docs.values()), list(questions.values())


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record with its place: of one JSON list, or of JSON lines."""
    try:
        with path.open(encoding="utf-8") as file:
            listed = file.read(64).lstrip().startswith("[")
        rows = json.loads(path.read_text("utf-8")) if listed else None
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorpusError(f"{path} is not JSON: {error}") from error
    if rows is None:
        yield from ((f"{path} line {line}", row) for line, row in rows_of(path))
        return
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise CorpusError(f"{path} record {i}: expected a JSON object, got {type(row).__name__}")
        yield f"{path} record {i}", row


def _passages(row: dict[str, Any], where: str) -> Iterator[tuple[str, str, bool]]:
    if "paragraphs" in row:
        for paragraph in _list(row, "paragraphs", where):
            if not isinstance(paragraph, dict):
                raise CorpusError(f"{where}: field 'paragraphs' must hold objects, got {paragraph!r:.40}")
            title, text = (text_of(paragraph, field, where) for field in ("title", "paragraph_text"))
            yield title, text, bool(paragraph.get("is_supporting", False))
        return
    gold = {fact[0] for fact in row.get("supporting_facts", []) if isinstance(fact, list) and fact}
    for passage in _list(row, "context", where):
        try:
            title, sentences = passage
            text = "".join(sentences).strip()
        except (TypeError, ValueError):
            raise CorpusError(f"{where}: field 'context' must hold [title, [sentences]], got {passage!r:.40}") from None
        if text:
            yield title, text, title in gold


def _list(row: dict[str, Any], field: str, where: str) -> list[Any]:
    value = row.get(field)
    if not isinstance(value, list):
        raise CorpusError(f"{where}: field {field!r} must be a list, got {value!r:.40}")
    return value
