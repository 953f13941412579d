"""A retrieval server of somebody else that speaks Search-R1's protocol (Jin et al. 2025).

    POST URL {"queries": ["…"], "topk": 3, "return_scores": true}
    → {"result": [[{"document": {"id": "…", "contents": "\\"Title\\"\\ntext"}, "score": 0.7}, …]]}

Such a server gives whole passages and no way to ask for one by name, so the world has `search` and `answer` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import httpx

from treewright.envs.errors import EnvFault, boundary
from treewright.envs.lines import json_value
from treewright.envs.retrieval.answers import exact_match, f1
from treewright.envs.retrieval.corpus import Question
from treewright.envs.retrieval.rows import clean
from treewright.envs.retrieval.session import ANSWER, EvidenceWorld, tool
from treewright.envs.retrieval.world import first, tasks_of
from treewright.envs.types import Call, Environment, Suite, Task

__all__ = ["Passage", "RemoteServer", "RemoteWorld", "make_remote_suite"]

Passage = tuple[str, float]
"""What a passage says, and its score; NaN where the server gives none."""


class RemoteServer:
    """A client of one server. Raises EnvFault for trouble with it, naming the address and what was wrong."""

    def __init__(self, url: str, seconds: float = 30.0) -> None:
        self.url = url
        self._client = httpx.AsyncClient(timeout=seconds)

    async def search(self, query: str, k: int) -> list[Passage]:
        """At most k passages, best first."""
        asked = {"queries": [clean(query)], "topk": k, "return_scores": True}
        with boundary(f"retrieval server {self.url}", trouble=(httpx.HTTPError,)):
            try:
                answer = await self._client.post(self.url, json=asked)
            except httpx.TimeoutException as error:
                raise TimeoutError from error
        if answer.status_code != 200:
            raise EnvFault(f"retrieval server {self.url}: status {answer.status_code}: {answer.text[:200]}")
        return _passages(answer, self.url)[:k]

    async def close(self) -> None:
        await self._client.aclose()


def _passages(answer: httpx.Response, url: str) -> list[Passage]:
    try:
        (found,) = json_value(answer.content)["result"]
        return [_passage(one) for one in found]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EnvFault(
            f"retrieval server {url}: expected {{'result': [[{{'document': {{'contents': …}}, 'score': …}}]]}}, got "
            f"{answer.text[:120]!r} ({type(error).__name__}: {error})"
        ) from error


def _passage(one: dict[str, Any]) -> Passage:
    document, score = (one["document"], float(one["score"])) if "document" in one else (one, float("nan"))
    return clean(str(document["contents"])), score


class RemoteWorld(EvidenceWorld):
    """One session that searches by a server; the accepted answers are `task.truth["answers"]`."""

    name = "retrieval"
    tools = (tool("search", "find passages", query="words to look for"), ANSWER)

    def __init__(self, server: RemoteServer, *, results: int = 3, reward: Literal["exact", "f1"] = "exact") -> None:
        super().__init__()
        self._server, self._results = server, results
        self._reward = exact_match if reward == "exact" else f1

    async def look(self, call: Call, key: int) -> str:
        found = await self._server.search(call.arguments["query"], self._results)
        return "\n".join(f"[{i}] {' '.join(text.split())}" for i, (text, _) in enumerate(found, 1)) or "no results"

    def grade(self, answer: str, key: int) -> float:
        return self._reward(answer, self.task.truth["answers"])


def make_remote_suite(
    name: str,
    url: str,
    questions: Sequence[Question],
    *,
    results: int = 3,
    horizon: int = 8,
    reward: Literal["exact", "f1"] = "exact",
    max_tokens: int | None = None,
) -> Suite:
    """A suite whose sessions share one client of the server at `url`. Raises CorpusError if ids are not unique."""
    server, of = RemoteServer(url), tasks_of(name, questions, horizon)

    def tasks(split: str, count: int) -> Sequence[Task]:
        return first(name, split, of.get(split, []), count)

    async def open_session() -> Environment:
        return RemoteWorld(server, results=results, reward=reward)

    return Suite(
        name, tasks, open_session, description=f"questions over {url}", max_tokens=max_tokens, close=server.close
    )
