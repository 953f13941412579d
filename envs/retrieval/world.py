"""Search, read and answer over any corpus: the general retrieval world.

corpus = load_corpus("passages.jsonl")
suite = make_suite("mine", corpus, load_questions("questions.jsonl"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, TypeVar

from treewright.envs.errors import InvalidAction
from treewright.envs.retrieval.answers import exact_match, f1
from treewright.envs.retrieval.corpus import Corpus, CorpusError, Doc, Question
from treewright.envs.retrieval.index import LexicalIndex, Retriever
from treewright.envs.retrieval.rows import one_line
from treewright.envs.retrieval.session import ANSWER, EvidenceWorld, tool
from treewright.envs.types import Call, Environment, Suite, Task, ToolSpec, seed_of

__all__ = ["RetrievalWorld", "first", "make_suite", "tasks_of"]

T = TypeVar("T")


class RetrievalWorld(EvidenceWorld):
    """One session over a corpus; the accepted answers are `task.truth["answers"]`.

    corpus         the documents
    retriever      ranks them for a query
    results        most hits that a search shows, one a line: `[id] title: snippet`
    snippet_chars  length of the snippet in characters; 0 shows the id only
    page_chars     length of a page of a document in characters; `read` shows one page
    reward         'exact' (1.0 or 0.0) or 'f1' (word overlap in [0, 1]); both after normalisation
    """

    name = "retrieval"
    tools: ClassVar[tuple[ToolSpec, ...]] = (
        tool("search", "find documents by words", query="words to look for"),
        tool("read", "read a page of a document", optional=("page",), doc="a document id", page=1),
        ANSWER,
    )

    def __init__(
        self,
        corpus: Corpus,
        retriever: Retriever,
        *,
        results: int = 5,
        snippet_chars: int = 80,
        page_chars: int = 1000,
        reward: Literal["exact", "f1"] = "exact",
    ) -> None:
        super().__init__()
        self.corpus, self.retriever = corpus, retriever
        self._results, self._snippet, self._page = results, snippet_chars, page_chars
        self._reward = exact_match if reward == "exact" else f1

    async def look(self, call: Call, key: int) -> str:
        if call.name == "search":
            return await self._search(call.arguments["query"])
        return await self._read(call.arguments["doc"], call.arguments.get("page", 1))

    async def document(self, name: str) -> str | None:
        """The whole text of a document by id, which `read` shows page by page; None for no such document."""
        doc = self.corpus.get(name)
        return None if doc is None else f"{doc.title}\n\n{doc.text}" if doc.title else doc.text

    def grade(self, answer: str, key: int) -> float:
        return self._reward(answer, self.task.truth["answers"])

    async def _search(self, query: str) -> str:
        hits = await self.retriever.search(query, self._results)
        return "\n".join(self._line(self.corpus.docs[hit.position]) for hit in hits) or "no results"

    def _line(self, doc: Doc) -> str:
        if not self._snippet:
            return doc.id
        return f"[{doc.id}] {one_line(doc.title)}: {_shorten(doc.text, self._snippet)}"

    async def _read(self, doc_id: str, page: int) -> str:
        doc = self.corpus.get(doc_id)
        if doc is None:
            near = await self.retriever.search(doc_id, 1)
            hint = f", did you mean {self.corpus.docs[near[0].position].id!r}?" if near else ""
            raise InvalidAction(f"no doc {doc_id!r}{hint}")
        pages = max(1, -(-len(doc.text) // self._page))
        if not 1 <= page <= pages:
            raise InvalidAction(f"no page {page}, {doc_id!r} has {pages}")
        text = doc.text[(page - 1) * self._page : page * self._page]
        return text if pages == 1 else f"{text}\n(page {page} of {pages})"


def make_suite(
    name: str,
    corpus: Corpus,
    questions: Sequence[Question],
    *,
    retriever: Retriever | None = None,
    horizon: int = 8,
    reward: Literal["exact", "f1"] = "exact",
    max_tokens: int | None = None,
    world: Callable[..., RetrievalWorld] = RetrievalWorld,
) -> Suite:
    """A suite over a corpus. Without a retriever a lexical index is built. Questions keep their order in a split.

    world  makes a session of corpus, retriever and reward=…

    Raises CorpusError if two questions share an id.
    """
    index = LexicalIndex(corpus.docs) if retriever is None else retriever
    of = tasks_of(name, questions, horizon)

    def tasks(split: str, count: int) -> Sequence[Task]:
        return first(name, split, of.get(split, []), count)

    async def open_session() -> Environment:
        return world(corpus, index, reward=reward)

    return Suite(
        name, tasks, open_session, description=f"questions over {len(corpus)} documents", max_tokens=max_tokens
    )


def first(name: str, split: str, items: Sequence[T], count: int) -> Sequence[T]:
    """The first `count` items of a split. Raises ValueError for an unknown split or more than there are."""
    if split not in ("train", "test"):
        raise ValueError(f"{name}: split must be 'train' or 'test', got {split!r}")
    if not 0 <= count <= len(items):
        raise ValueError(f"{name}: {count} {split} tasks asked for, there are {len(items)}")
    return items[:count]


def tasks_of(name: str, questions: Sequence[Question], horizon: int) -> dict[str, list[Task]]:
    """The tasks of each split, in the order of the questions. Raises CorpusError if two questions share an id."""
    if len({question.id for question in questions}) != len(questions):
        raise CorpusError(f"suite {name!r}: question ids must be unique")
    found: dict[str, list[Task]] = {}
    for question in questions:
        found.setdefault(question.split, []).append(_task(name, question, horizon))
    return found


def _task(name: str, question: Question, horizon: int) -> Task:
    return Task(
        suite=name,
        id=f"{name}-{question.id}",
        goal=question.text,
        seed=seed_of(name, question.id),
        split=question.split,
        horizon=horizon,
        truth={"answers": list(question.answers)},
    )


def _shorten(text: str, chars: int) -> str:
    line = " ".join(text[: 2 * chars].split())
    return line if len(line) <= chars else line[: chars - 1].rstrip() + "…"
