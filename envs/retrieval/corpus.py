"""Documents and questions, from Python, JSONL files or a folder; what cannot be used is named by line and field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from treewright.envs.retrieval.fields import (
    answers_of,
    identity,
    named,
    split_in,
    splits_of,
    support_of,
    text_of,
    title_of,
)
from treewright.envs.retrieval.rows import CorpusError, LeftOut, clean, decoded, one_line, records
from treewright.envs.types import digest

__all__ = ["Corpus", "CorpusError", "Doc", "Question", "load_corpus", "load_questions", "unique"]

TEXTS = ("text", "contents", "content", "passage", "body")
QUESTIONS = ("question", "query")
SUFFIXES = (".txt", ".md", ".rst")


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
    """Documents in a fixed order, found by id. Raises CorpusError if it is empty or an id stands twice.

    left_out  what a file held besides them and why it could not be used, one text a row
    """

    def __init__(self, docs: Iterable[Doc], left_out: Sequence[str] = ()) -> None:
        self.docs, self.left_out = tuple(map(_storable, docs)), tuple(left_out)
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


def _storable(doc: Doc) -> Doc:
    cleaned = tuple(map(clean, (doc.id, doc.title, doc.text)))
    return doc if cleaned == (doc.id, doc.title, doc.text) else Doc(*cleaned)


def load_corpus(path: str | Path) -> Corpus:
    """A corpus from JSONL, one object a line, or from a folder of .txt, .md and .rst files.

    A line has `text` (or contents, content, passage, body), and may have `id` (or _id, doc_id, docid) and `title`; an
    id that is missing is the title, `title (2)` and so on where titles repeat, or the line's number; a title that is
    missing is the id. A field that is empty or null is missing. `contents` may begin with the title on a line of its
    own, as Search-R1's corpora do. A file's id is its path in the folder.

    Rows and files that cannot be used are left out, with a warning that names line and field (`Corpus.left_out`).
    Raises CorpusError if the path cannot be read or nothing is left.
    """
    if Path(path).is_dir():
        return _folder(Path(path))
    left_out, rows = LeftOut(Path(path)), list[tuple[int, str | None, Doc]]()
    taken: dict[str, str] = {}
    for where, line, row in records(Path(path), left_out):
        try:
            doc_id, doc = identity(row, where), _doc(row, where)
        except CorpusError as error:
            left_out.add(error)
            continue
        if doc_id in taken:
            left_out.add(f"{where}: field 'id' repeats {doc_id!r} of{taken[doc_id]}; ids must be unique")
            continue
        if doc_id is not None:
            taken[doc_id] = where.removeprefix(str(path))
        rows.append((line, doc_id, doc))
    used, docs = set(taken), list[Doc]()
    for line, doc_id, doc in rows:
        name = unique(doc.title or str(line), used) if doc_id is None else doc_id
        docs.append(replace(doc, id=name, title=doc.title or name))
    why = left_out.close(len(docs), "document", "write one JSON object a line with 'id' and 'text'")
    return Corpus(docs, why)


def unique(name: str, used: set[str]) -> str:
    """The name, or the first of `name (2)`, `name (3)`, … that is not used; it is used then."""
    chosen, count = name, 1
    while chosen in used:
        count += 1
        chosen = f"{name} ({count})"
    used.add(chosen)
    return chosen


def _doc(row: dict[str, Any], where: str) -> Doc:
    """The document of a row, its id left open, its title empty if there is none."""
    text, title = text_of(row, TEXTS, where), title_of(row, where)
    if title is None and named(row, TEXTS) == "contents" and "\n" in text:
        first, _, rest = text.partition("\n")
        title, text = (one_line(first).strip('"'), rest) if first.strip() and rest.strip() else (None, text)
    return Doc("", title or "", text)


def _folder(path: Path) -> Corpus:
    left_out, docs = LeftOut(path), list[Doc]()
    for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()):
        name = file.relative_to(path).as_posix()
        try:
            text = decoded(file.read_bytes())
        except (OSError, UnicodeDecodeError) as error:
            left_out.add(f"{name}: not readable as UTF-8 text ({error})")
            continue
        if text.strip():
            docs.append(Doc(name, file.stem, text))
    why = left_out.close(len(docs), "document", f"put {', '.join(SUFFIXES)} files with text into it")
    return Corpus(docs, why)


def load_questions(path: str | Path) -> list[Question]:
    """Questions from JSONL, one object a line: `question` (or query) and `answers` (or answer, golden_answers).

    Answers are a text, a number, a list of them, or SQuAD's {"text": [...]}; `answer_aliases` are accepted too. `id`
    (or _id, qid) is the line's number if it is missing. `split` is train, test, or dev (or validation: for testing if
    there are train questions); without it a hash of the id puts one question in five into the test split, see
    `splits_of`. `support` or `supporting_titles` names the documents that hold the answer. A field that is empty or
    null is missing.

    Rows that cannot be used are left out, with a warning that names line and field. Raises CorpusError if the file
    cannot be read or no question is left.
    """
    left_out, questions, said = LeftOut(Path(path)), list[Question](), list[tuple[str, str | None]]()
    seen: dict[str, str] = {}
    for where, line, row in records(Path(path), left_out):
        try:
            question, split = _question(row, line, where), split_in(row, where)
        except CorpusError as error:
            left_out.add(error)
            continue
        if question.id in seen:
            left_out.add(f"{where}: field 'id' repeats {question.id!r} of{seen[question.id]}")
            continue
        seen[question.id] = where.removeprefix(str(path))
        questions.append(question)
        said.append((question.id, split))
    left_out.close(len(questions), "question", "write one JSON object a line with 'question' and 'answers'")
    return [replace(one, split=split) for one, split in zip(questions, splits_of(said), strict=True)]


def _question(row: dict[str, Any], line: int, where: str) -> Question:
    name = identity(row, where) or str(line)
    text, answers = text_of(row, QUESTIONS, where), answers_of(row, where)
    return Question(name, text, answers, support=support_of(row, where))
