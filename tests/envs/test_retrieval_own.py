"""Own corpora and question files, other retrievers, and a server of somebody else."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from not_none import not_none

from treewright.envs import Action, EnvFault, TreewrightError
from treewright.envs.check import check_env
from treewright.envs.retrieval.almanac import almanac
from treewright.envs.retrieval.corpus import Corpus, Doc, Question
from treewright.envs.retrieval.dense import DenseIndex, top
from treewright.envs.retrieval.hybrid import HybridIndex, fuse
from treewright.envs.retrieval.index import Hit, LexicalIndex
from treewright.envs.retrieval.opening import make_retriever, open_suite
from treewright.envs.retrieval.remote import RemoteServer, make_remote_suite
from treewright.envs.retrieval.treehop import Gate, Jump, TreeHopIndex, linked_jumps, normalise
from treewright.envs.types import seed_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Hashed:
    """Words as random directions, added up: an encoder that needs no model."""

    name, size, calls = "hashed", 64, 0

    def encode(self, texts: Sequence[str]) -> NDArray[Any]:
        self.calls += len(texts)
        out = np.zeros((len(texts), self.size), np.float32)
        for i, text in enumerate(texts):
            for word in text.lower().replace(".", " ").split():
                out[i] += np.random.default_rng(seed_of(word) % 2**32).normal(size=self.size)
        scaled: NDArray[Any] = (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)).astype(np.float32)
        return scaled


HOTPOT = {
    "_id": "h1", "question": "where ?", "answer": "Rome",
    "context": [["Ada", ["Ada lives ", "in Rome."]], ["Bob", ["Bob."]]], "supporting_facts": [["Ada", 0], ["Ada", 1]],
}  # fmt: skip


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


async def test_a_question_file_alone_is_a_suite_that_keeps_the_contract(tmp_path: Path) -> None:
    (tmp_path / "h.json").write_text(json.dumps([HOTPOT | {"_id": f"h{i}"} for i in range(8)]))
    suite = open_suite("own", questions=tmp_path / "h.json")
    report = await check_env(suite.open, suite.tasks("train", 1))
    report.raise_if_failed()
    env = await suite.open()
    await env.reset(suite.tasks("train", 1)[0], 0)
    assert "[Ada]" in (await env.step(Action.of("search", query="rome"), 0)).observation.text
    assert (await env.step(Action.of("answer", text="the rome."), 0)).reward == 1.0


def test_what_is_missing_or_unknown_is_said(tmp_path: Path) -> None:
    questions = lines(tmp_path / "q.jsonl", {"question": "q", "answers": "a"})
    with pytest.raises(TreewrightError, match="brings no passages of its own: name a corpus too"):
        open_suite("own", questions=questions)
    for kind, message in [("lexicle", "no retriever 'lexicle'"), ("treehop", "treehop needs the folder of its gate")]:
        with pytest.raises(TreewrightError, match=message):
            make_retriever(Corpus([Doc("a", "a", "b")]), kind)


# -- rankings ---------------------------------------------------------------------------------------------------------


def test_top_is_a_stable_sort() -> None:
    rng = random.Random(0)
    for _ in range(50):
        scores = np.array([rng.randrange(6) for _ in range(rng.randrange(1, 30))], np.float32)
        k = rng.randrange(0, 35)
        assert top(scores, k).tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def test_reciprocal_rank_fusion_by_hand() -> None:
    found = fuse([[Hit(3, 9.0), Hit(1, 8.0)], [Hit(1, 0.5), Hit(2, 0.4)]], 3)
    assert [h.position for h in found] == [1, 3, 2]
    assert found[0].score == pytest.approx(1 / 62 + 1 / 61) and found[1].score == pytest.approx(1 / 61)


async def test_dense_search_is_the_nearest_vectors_and_is_cached_by_content(tmp_path: Path) -> None:
    corpus, questions = almanac(80, seed=3)
    first = Hashed()
    index = DenseIndex(corpus, first, cache=tmp_path)
    exact = index.vectors @ first.encode([questions[0].text])[0]
    found = await index.search(questions[0].text, 7)
    assert [h.position for h in found] == np.argsort(-exact, kind="stable")[:7].tolist()
    again = Hashed()
    assert np.array_equal(DenseIndex(corpus, again, cache=tmp_path).vectors, index.vectors) and again.calls == 0
    other = DenseIndex(Corpus(corpus.docs[:-1]), again, cache=tmp_path)
    assert again.calls == len(corpus) - 1 and len(other.vectors) == len(corpus) - 1
    next(tmp_path.glob("dense-*.npy")).write_bytes(b"cut short")  # noqa: ASYNC240
    assert len(DenseIndex(corpus, Hashed(), cache=tmp_path).vectors) == len(corpus)
    assert await index.search("  ", 3) == []


def test_a_graph_finds_what_exhaustive_search_finds() -> None:
    pytest.importorskip("faiss")
    corpus, questions = almanac(400, seed=1)
    encoder = Hashed()
    flat, graph = DenseIndex(corpus, encoder), DenseIndex(corpus, encoder, flat=10)
    same = [
        len({h.position for h in flat.rank(q.text, 10)} & {h.position for h in graph.rank(q.text, 10)})
        for q in questions[:40]
    ]
    assert np.mean(same) > 9


async def test_a_hybrid_of_one_is_that_one() -> None:
    corpus, questions = almanac(60)
    lexical = LexicalIndex(corpus.docs)
    hybrid = HybridIndex([lexical])
    for question in questions[:10]:
        assert [h.position for h in await hybrid.search(question.text, 5)] == [
            h.position for h in lexical.rank(question.text, 5)
        ]


def test_a_lexical_index_that_was_kept_answers_alike(tmp_path: Path) -> None:
    corpus, questions = almanac(60)
    made, again = (LexicalIndex(corpus.docs, folder=tmp_path / "kept") for _ in range(2))
    plain = LexicalIndex(corpus.docs)
    for question in questions[:10]:
        assert made.rank(question.text, 5) == again.rank(question.text, 5) == plain.rank(question.text, 5)


# -- hops -------------------------------------------------------------------------------------------------------------


def test_jumps_follow_the_links_of_a_corpus() -> None:
    corpus = Corpus([
        Doc("Ada", "Ada Lane", "Ada Lane is a poet. Home is Harrow Bay."),
        Doc("bay", "Harrow Bay", "Harrow Bay is a town. It stands on Aun Water."),
    ])  # fmt: skip
    (jump,) = linked_jumps(corpus)
    assert (jump.first, jump.second) == (0, 1)
    assert "Harrow Bay" not in jump.question and jump.question.startswith("Ada Lane: Home is it.")


class Linked:
    """Vectors of passages that carry their own name and, turned, the name of the passage they link to."""

    name, calls = "linked", 0

    def __init__(self, count: int = 200, size: int = 32, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        names = rng.normal(size=(count, size)) / size**0.5
        turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
        self.links = (np.arange(count) + 1 + rng.integers(0, count - 1, count)) % count
        self.known = {f"p{i}": names[i] + names[self.links[i]] @ turn for i in range(count)}
        self.known |= {f"q{i}": names[i] + 0.3 * rng.normal(size=size) / size**0.5 for i in range(count)}
        self.corpus = Corpus(Doc(f"p{i}", f"p{i}", f"p{i}") for i in range(count))

    def encode(self, texts: Sequence[str]) -> NDArray[Any]:
        self.calls += len(texts)
        return normalise(np.array([self.known[text] for text in texts], np.float32))


def test_a_second_hop_is_learned_and_survives_saving(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from treewright.training.treehop import train_gate

    linked = Linked()
    dense = DenseIndex(linked.corpus, linked)
    train, test = range(140), range(140, 200)
    gate = train_gate(dense, [Jump(f"q{i}", i, int(linked.links[i])) for i in train], hidden=128, epochs=150, lr=3e-3)
    gate.save(tmp_path)
    hop = TreeHopIndex(dense, Gate.load(tmp_path))

    def found(index: TreeHopIndex | DenseIndex) -> np.floating[Any]:
        return np.mean([linked.links[i] in {h.position for h in index.rank(f"q{i}", 5)} for i in test])

    before = linked.calls
    assert found(hop) > found(dense) + 0.2, "the passage behind the first one is found for questions never trained on"
    assert linked.calls - before == 2 * len(test), "the question is the only text that is encoded"
    rows = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    assert np.allclose(np.linalg.norm(gate.next(rows, rows), axis=1), 1, atol=1e-5)
    with pytest.raises(TreewrightError, match="treewright train treehop"):
        Gate.load(tmp_path / "nothing")
    linked.name = "another"
    with pytest.raises(TreewrightError, match="trained on vectors of 'linked', the index has those of 'another'; name"):
        TreeHopIndex(dense, gate)


def test_a_gate_finds_no_less_than_one_hop_where_it_knows_the_links_and_where_it_does_not() -> None:
    pytest.importorskip("torch")
    from treewright.training.treehop import train_gate

    linked, foreign = Linked(), Linked(seed=7)
    jumps = [Jump(f"q{i}", i, int(linked.links[i])) for i in range(140)]
    gate = train_gate(DenseIndex(linked.corpus, linked), jumps, hidden=128, epochs=60, lr=3e-3)
    assert 0 < gate.sure < 1

    def recall(index: TreeHopIndex | DenseIndex, world: Linked, k: int) -> np.floating[Any]:
        found = [{hit.position for hit in index.rank(f"q{i}", k)} for i in range(140, 200)]
        return np.mean([len(f & {i, int(world.links[i])}) / 2 for i, f in enumerate(found, 140)])

    for world, k in itertools.product((linked, foreign), (2, 5, 10)):
        dense = DenseIndex(world.corpus, world)
        assert recall(TreeHopIndex(dense, gate), world, k) >= recall(dense, world, k) - 0.02, (world is linked, k)


def test_a_gate_of_the_first_form_loads_and_a_broken_one_is_named(tmp_path: Path) -> None:
    parts = {"w1": (6, 3), "b1": (3,), "w2": (3, 2), "b2": (2,)}
    kept: dict[str, Any] = {k: np.zeros(v, np.float32) for k, v in parts.items()}
    np.savez(tmp_path / "treehop.npz", **kept, encoder='"minilm"')
    assert Gate.load(tmp_path).encoder == "minilm" and Gate.load(tmp_path).weight == 1.0
    (tmp_path / "treehop.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(TreewrightError, match="is no gate of TreeHop"):
        Gate.load(tmp_path)


# -- somebody else's server -------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(answer: Callable[[Any], Any]) -> AsyncIterator[str]:
    """A retrieval server on loopback whose answer to each request is `answer(asked)`: (status, body)."""

    async def handle(reader: Any, writer: Any) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
        status, body = answer(json.loads(await reader.readexactly(length)))
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (status, len(raw)) + raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/retrieve"
    finally:
        server.close()


def over(index: LexicalIndex, corpus: Corpus) -> Callable[[Any], Any]:
    """Search-R1's protocol over an index."""

    def answer(asked: Any) -> tuple[int, dict[str, list[list[Any]]]]:
        def told(hit: Hit) -> dict[str, Any]:
            doc = corpus.docs[hit.position]
            return {"document": {"id": doc.id, "contents": doc.text}, "score": hit.score}

        rows = [[told(hit) for hit in index.rank(query, asked["topk"])] for query in asked["queries"]]
        return 200, {"result": rows}

    return answer


async def test_a_server_that_speaks_the_protocol_is_a_world() -> None:
    corpus, _ = almanac(60)
    index = LexicalIndex(corpus.docs)
    questions = [Question("q", "where ?", ("Rome",), "train")]
    async with served(over(index, corpus)) as url:
        suite = make_remote_suite("remote", url, questions, results=2)
        report = await check_env(suite.open, suite.tasks("train", 1))
        report.raise_if_failed()
        env = await suite.open()
        await env.reset(suite.tasks("train", 1)[0], 0)
        shown = (await env.step(Action.of("search", query=corpus.docs[3].title), 0)).observation.text
        assert shown.startswith("[1] ") and corpus.docs[3].text in shown and len(shown.splitlines()) == 2
        await not_none(suite.close)()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, b"boom"), "status 500: boom"),
        ((200, b"<html>"), "expected .*result"),
        ((200, {"result": []}), "expected .*result"),
        ((200, {"result": [[{"document": {"text": "x"}, "score": 1}]]}), "expected .*contents"),
    ],
)
async def test_trouble_with_a_server_is_a_fault_that_names_it(
    answer: tuple[int, bytes | dict[str, Any]], message: str
) -> None:
    async with served(lambda _: answer) as url:
        server = RemoteServer(url)
        with pytest.raises(EnvFault, match=message) as caught:
            await server.search("x", 3)
        assert url in str(caught.value)
        await server.close()


async def test_a_server_that_is_not_there_is_a_fault_too() -> None:
    async with served(lambda _: (200, {})) as url:
        pass
    server = RemoteServer(url, seconds=1.0)
    with pytest.raises(EnvFault, match="retrieval server"):
        await server.search("x", 3)
    await server.close()
