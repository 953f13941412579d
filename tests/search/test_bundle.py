"""Rows of many expansions at once are those of each by itself; nodes of one pop may hang on different nodes."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from threading import Event

from treewright.envs.redact import Redactor
from treewright.envs.secrecy import keep_secret
from treewright.envs.types import Action, Effect, Observation, Task
from treewright.search.schema import COLUMNS
from treewright.search.store import StoreError, TreeStore
from treewright.search.store.bundle import Bundler, Grown
from treewright.search.store.codec import Encoder
from treewright.search.store.writer import Batch
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import SEGMENT, Completion, Draft, Expansion, NodeKind, NodeStatus, Outcome, Spent

HEADER = TreeHeader(
    run="r", task=Task("maze", "t", "walk"), attempt=0, seed=1, policy_version="v1", settings={},
    root=Outcome(Observation("start", "f0"), NodeStatus.OPEN),
)  # fmt: skip


def drafts_of(rng: random.Random, count: int) -> tuple[Draft, ...]:
    def outcome() -> Outcome:
        seen = Observation(rng.choice(["a", "b" * 2000, ""]), rng.choice(["f", "g"]), provenance="environment")
        reward, error = rng.choice([0.0, -0.0, 1.0]), rng.choice([None, "no"])
        return Outcome(seen, NodeStatus.OPEN, reward=reward, delta=(1, 2), error=error)

    return tuple(
        Draft(
            after=rng.choice([0, 0, i]), slot=i, mult=1, share=rng.choice([0.25, 0.0]), seed=rng.getrandbits(62),
            completion=Completion(
                "x", (1, 2), (-0.5, -0.25), policy_version=rng.choice(["v1", "v2"]),
                finish_reason=rng.choice(["stop", SEGMENT]), trainable=bool(i % 2),
            ),
            action=rng.choice([None, Action.of("move", to="north")]), effect=rng.choice(list(Effect)),
            score=rng.choice([float("nan"), 1.0]), outcome=rng.choice([None, outcome()]),
        )
        for i in range(count)
    )  # fmt: skip


def grown(seed: int) -> tuple[Tree, list[Grown]]:
    rng, tree, out = random.Random(seed), Tree.start(HEADER), list[Grown]()
    for seq in range(12):
        executed = Outcome(Observation("p"), NodeStatus.OPEN) if rng.random() < 0.3 else None
        made = Expansion(
            seq=seq, node=rng.randrange(len(tree)), closing=False, drawn=4, outcome=executed,
            drafts=drafts_of(rng, rng.randrange(5)), spent=Spent(expansions=1, seconds=0.5),
        )  # fmt: skip
        out.append(Grown(7, "v1", made, len(tree)))
        tree.apply(made)
    return tree, out


def test_expansions_in_one_bundle_have_the_rows_that_they_have_alone() -> None:
    for seed in range(5):
        _, given = grown(seed)
        whole = Bundler(Encoder(Redactor([])))
        together = whole.rows(given)
        alone = [Bundler(Encoder(Redactor([]))).rows([one]) for one in given]
        assert together.expansions == [row for one in alone for row in one.expansions]
        assert together.nodes == [row for one in alone for row in one.nodes]
        single = Encoder(Redactor([]))
        rows = iter(together.nodes)
        for key, version, made, first in given:
            for i, draft in enumerate(made.drafts):
                above = made.node if draft.after == 0 else first + draft.after - 1
                row = single.node(first + i, above, made.seq, draft, version)
                assert next(rows) == (key, *row, len(draft.completion.token_ids))
        assert single.take().items() <= whole.encoder.take().items()


def test_nodes_of_one_pop_hang_where_their_drafts_say() -> None:
    for seed in range(20):
        tree, given = grown(seed)
        for made in given:
            for i, draft in enumerate(made.expansion.drafts):
                node, above = made.first + i, tree.parent[made.first + i]
                assert above == (made.expansion.node if draft.after == 0 else made.first + draft.after - 1)
                assert node in tree.children[above] and tree.depth[node] == tree.depth[above] + 1
                segment = draft.completion.finish_reason == SEGMENT
                assert (tree.kind[node] is NodeKind.SEGMENT) == segment
        assert all(len(getattr(tree, name)) == len(tree) for name in COLUMNS)


async def test_what_was_written_before_a_secret_was_learned_is_masked_after(tmp_path: Path) -> None:
    secret = "bundle-0123456789-pass"
    seen, said = f"the page says {secret}", f"call {secret}"

    def made(seq: int) -> Expansion:
        outcome = Outcome(Observation(seen, secret), NodeStatus.OPEN)
        draft = Draft(
            after=0, slot=seq, mult=1, share=1.0, seed=seq, completion=done, action=action, outcome=outcome,
        )  # fmt: skip
        return Expansion(seq=seq, node=0, closing=False, drawn=1, outcome=None, drafts=(draft,), spent=Spent())

    done, action = Completion(said), Action.of("type", text=secret)
    with TreeStore.open(tmp_path / "t.db") as store:
        await store.create(HEADER)
        await store.append(HEADER.tree_id, made(0), 1)
        keep_secret(secret)
        await store.append(HEADER.tree_id, made(1), 2)
        assert secret in str(store.expansions(HEADER.tree_id)[0])
        assert secret not in str(store.expansions(HEADER.tree_id)[1])


async def heard(given: asyncio.Future[None]) -> str:
    try:
        await given
    except StoreError as error:
        return str(error)
    return ""


async def test_a_value_that_cannot_be_written_fails_its_own_expansion_alone(tmp_path: Path) -> None:
    """All of them wait for one transaction: rows are made at its end, or where another job asks the database."""
    odd = replace(HEADER, task=Task("maze", "odd", "walk"))
    later = replace(HEADER, task=Task("maze", "later", "walk"))

    def made(seq: int, **part: object) -> Expansion:
        seen = Observation(f"page {seq}", "f", parts=(part,) if part else ())
        draft = Draft(
            after=0, slot=seq, mult=1, share=1.0, seed=seq, completion=Completion("x"), action=None,
            outcome=Outcome(seen, NodeStatus.OPEN),
        )  # fmt: skip
        return Expansion(seq=seq, node=0, closing=False, drawn=1, outcome=None, drafts=(draft,), spent=Spent())

    with TreeStore.open(tmp_path / "t.db") as store:
        await store.create(HEADER)
        await store.create(odd)
        begun, go = Event(), Event()

        def hold(batch: Batch) -> None:
            begun.set()
            go.wait()

        held = store._pen().submit(hold)
        await asyncio.to_thread(begun.wait)
        given = [
            store.append(HEADER.tree_id, made(0), 1),
            store.append(odd.tree_id, made(0), 1),
            store.append(odd.tree_id, made(1, png=object()), 2),
            store.append(HEADER.tree_id, made(1), 2),
            store.create(later),
            store.append(odd.tree_id, made(2), 3),
            store.append(later.tree_id, made(0), 1),
        ]
        go.set()
        await held
        said = [await heard(one) for one in given]
        assert [bool(one) for one in said] == [False, False, True, False, False, True, False]
        assert "object is not JSON" in said[2] and "comes next" in said[5]
        await store.append(odd.tree_id, made(1), 2)  # what was wrong leaves nothing behind
        wanted = [(HEADER, [0, 1]), (odd, [0, 1]), (later, [0])]
        for header, seqs in wanted:
            assert store.expansions(header.tree_id) == [made(seq) for seq in seqs]
        assert store.check() == []
