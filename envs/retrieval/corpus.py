"""Documents and questions, from Python, from JSONL files or a folder; a bad file gets an error with line and field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.types import digest, seed_of

__all__ = ["Corpus", "CorpusError", "Doc", "Question", "load_corpus", "load_questions"]

IDS = ("id", "_id", "doc_id", "docid", "qid")
TEXTS = ("text", "contents", "content", "passage", "body")
QUESTIONS = ("question", "query")
ANSWERS = ("answers", "answer", "golden_answers")
SUFFIXES = (".txt", ".md", ".rst")


class CorpusError(TreewrightError, ValueError):
    """A corpus or question file, or a list of documents, that cannot be used; the message says where."""


@dataclass(frozen=True, slots=True)
class Doc:
    """One document. `id` is what `read` takes and is unique in its corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its accepted answers; `split` is 'train' or 'test'.

    support  ids of the documents that hold the answer, in the order of the hops, where they are known
    """

    id: str
    text: str
    answers: tuple[str, ...]
    split: str = "train"
    support: tuple[str, ...] = ()


class Corpus:
    """Documents in a fixed order, found by id. Raises CorpusError if it is empty or an id stands twice."""

    def __init__(self, docs: Iterable[Doc]) -> None:
        self.docs = tuple(docs)
        self.position = {doc.id: i for i, doc in enumerate(self.docs)}
        if not self.docs:
            raise CorpusError("a corpus needs at least one document")
        if len(self.position) != len(self.docs):
            twice = next(doc.id for i, doc in enumerate(self.docs) if self.position[doc.id] != i)
            raise CorpusError(f"document id {twice!r} stands twice in the corpus; ids must be unique")

    def __len__(self) -> int:
        return len(self.docs)

    def get(self, doc_id: str) -> Doc | None:
        """The document of that id, or None."""
        at = self.position.get(doc_id)
        return None if at is None else self.docs[at]

    @property
    def digest(self) -> str:
        """32 hex digits that are equal for equal documents in equal order: what an index is cached by."""
        return digest(*(part for doc in self.docs for part in (doc.id, doc.title, doc.text)))


def load_corpus(path: str | Path) -> Corpus:
    """A corpus from JSONL, one object a line, or from a folder of .txt, .md and .rst files.

    A line has `text` (or contents, content, passage, body), and may have `id` (or _id, doc_id, docid) and `title`; an
    id that is missing is the title, and a title that is missing the id. `contents` may begin with the title on a line
    of its own, as Search-R1's corpora do. A file's id is its path in the folder.

    Raises CorpusError naming the file, the line and the field.
    """
    if Path(path).is_dir():
        return _folder(Path(path))
    docs: list[Doc] = []
    seen: dict[str, int] = {}
    for line, row in rows_of(Path(path)):
        where = f"{path} line {line}"
        doc = _doc(row, where)
        if doc.id in seen:
            raise CorpusError(f"{where}: field 'id' repeats {doc.id!r} of line {seen[doc.id]}; ids must be unique")
        seen[doc.id] = line
        docs.append(doc)
    if not docs:
        raise CorpusError(f"{path} holds no document; write one JSON object a line with 'id' and 'text'")
    return Corpus(docs)


def _doc(row: dict[str, Any], where: str) -> Doc:
    field = _named(row, TEXTS, where)
    text = text_of(row, field, where)
    title = text_of(row, "title", where) if "title" in row else None
    if title is None and field == "contents" and "\n" in text:
        first, _, rest = text.partition("\n")
        title, text = (first.strip().strip('"'), rest) if first.strip() and rest.strip() else (None, text)
    doc_id = _identity(row, where)
    if doc_id is None and title is None:
        raise CorpusError(f"{where}: field 'id' is missing, and there is no 'title' to take its place")
    return Doc(doc_id or title or "", title or doc_id or "", text)


def _folder(path: Path) -> Corpus:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    docs = []
    for file in files:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"cannot read {file} as UTF-8 text: {error}") from error
        if text.strip():
            docs.append(Doc(file.relative_to(path).as_posix(), file.stem, text))
    if not docs:
        raise CorpusError(f"the folder {path} holds no {', '.join(SUFFIXES)} file with text in it")
    return Corpus(docs)


def load_questions(path: str | Path) -> list[Question]:
    """Questions from JSONL, one object a line: `question` (or query) and `answers` (or answer, golden_answers).

    Answers are a string or a list of strings; `answer_aliases` are accepted too. `id` (or _id, qid) is the line's
    number if it is missing. `split` is 'train' or 'test'; without it a hash of the id puts one question in five into
    the test split. `support` or `supporting_titles` names the documents that hold the answer.
    Raises CorpusError naming the file, the line and the field.
    """
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for line, row in rows_of(Path(path)):
        where = f"{path} line {line}"
        question_id = _identity(row, where) or str(line)
        if question_id in seen:
            raise CorpusError(f"{where}: field 'id' repeats {question_id!r} of line {seen[question_id]}")
        seen[question_id] = line
        split = row.get("split", split_of(question_id))
        if split not in ("train", "test"):
            raise CorpusError(f"{where}: field 'split' must be 'train' or 'test', got {split!r}")
        text = text_of(row, _named(row, QUESTIONS, where), where)
        support = row.get("support", row.get("supporting_titles", []))
        if not isinstance(support, list) or not all(isinstance(s, str) for s in support):
            raise CorpusError(f"{where}: field 'support' must be a list of document ids, got {support!r:.40}")
        questions.append(Question(question_id, text, answers_of(row, where), split, tuple(support)))
    if not questions:
        raise CorpusError(f"{path} holds no question; write one JSON object a line with 'question' and 'answers'")
    return questions


def split_of(question_id: str) -> str:
    """'test' for one id in five, always the same ones."""
    return "train" if seed_of("split", question_id) % 5 else "test"


def _named(row: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The first of these fields that the row has; the first name if it has none, to be complained about."""
    return next((name for name in names if name in row), names[0])


def _identity(row: dict[str, Any], where: str) -> str | None:
    """The row's id as text, None if it has none; numbers are taken as they are written."""
    field = next((name for name in IDS if name in row), None)
    if field is None:
        return None
    if isinstance(row[field], int) and not isinstance(row[field], bool):
        return str(row[field])
    return text_of(row, field, where)


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield line, _parse(raw, f"{path} line {line}")
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parse(raw: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(raw)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}, column {error.colno}: not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise CorpusError(f"{where}: field {field!r} is missing")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(f"{where}: field {field!r} must be a non-empty string, got {value!r:.40}")
    return value


def answers_of(row: dict[str, Any], where: str) -> tuple[str, ...]:
    field = next((name for name in ANSWERS if name in row), None)
    if field is None:
        raise CorpusError(f"{where}: field 'answers' is missing")
    given = [row[field]] if isinstance(row[field], str) else row[field]
    aliases = row.get("answer_aliases", [])
    if not isinstance(given, list) or not given or not isinstance(aliases, list):
        raise CorpusError(f"{where}: field {field!r} must be a string or a list of strings, got {row[field]!r:.40}")
    answers = [*given, *aliases]
    if not all(isinstance(a, str) and a.strip() for a in answers):
        raise CorpusError(f"{where}: field {field!r} must be a string or a list of strings, got {row[field]!r:.40}")
    return tuple(dict.fromkeys(answers))
