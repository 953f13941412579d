"""What goes in comes out equal, whatever it is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from treewright.envs.types import Action, Call, Effect, Observation, Task
from treewright.search.schema import NUMBERS, SPENT, FieldKind
from treewright.search.store import STATUSES, Redactor, TreeStore
from treewright.search.store.arrays import array_of, state_key
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Origin, Outcome, Spent

ATTEMPT = count()

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "né\u0000x", "\ud83d\ude00", "\udc80", "\ufffehello", "ok \\n \\u1234", "line\nbreak", "x" * 500]
    ),
)
names = st.text(st.characters(codec="utf-8"), max_size=8)
reals = st.floats().filter(lambda x: x != -5e-324)  # stands for -0.0 in the file
token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)
logprobs = st.one_of(
    st.just(()), st.lists(st.floats(-50, 0), max_size=5).map(tuple), st.lists(st.floats(-9, 0, width=32)).map(tuple)
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=4,
)
arguments = st.dictionaries(texts, json_values, max_size=2)
actions = st.lists(st.builds(Call, texts, arguments), min_size=1, max_size=2).map(lambda calls: Action(tuple(calls)))
parts = st.lists(st.fixed_dictionaries({"type": st.just("image"), "png": st.binary(max_size=300)}), max_size=2).map(
    tuple
)
observations = st.builds(
    Observation,
    text=texts,
    fingerprint=texts,
    provenance=st.sampled_from(["environment", "page", "error"]),
    parts=parts,
)
outcomes = st.builds(
    Outcome,
    observation=observations,
    status=st.sampled_from(
        [s for s in NodeStatus if s.value in ("draft", "open", "terminal", "truncated", "fault", "unreachable")]
    ),
    reward=st.floats(0, 1, width=32) | st.just(math.nan),
    effect=st.sampled_from(Effect),
    keep=st.integers(0, 9),
    delta=token_ids,
    error=st.none() | texts,
    fault=st.none() | texts,
    steps=st.integers(0, 99),
)
completions = st.builds(
    Completion,
    text=texts,
    token_ids=token_ids,
    logprobs=logprobs,
    finish_reason=st.sampled_from(["stop", "length"]),
    policy_version=st.sampled_from(["v1", "v2"]),
    trainable=st.booleans(),
    origin=st.sampled_from(Origin),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    share=st.none() | st.floats(0, 1),
    hidden=st.integers(0, 2**31 - 1),
    money=reals,
)
spents = st.builds(Spent, **{f.name: reals if f.kind is FieldKind.REAL else st.integers(0, 2**40) for f in SPENT})


@st.composite
def grown(draw: st.DrawFn) -> tuple[TreeHeader, list[Expansion]]:
    """A header and expansions that fit it: eager and lazy ones, closing chains, faults."""
    task = Task(
        "kg",
        draw(names),
        draw(texts),
        seed=3,
        split="train",
        horizon=8,
        data=draw(arguments),
        truth=draw(arguments),
    )
    above = draw(st.none() | st.just(("ab" * 16, 7)))
    header = TreeHeader(
        run=draw(names),
        task=task,
        attempt=2,
        seed=2**62,
        policy_version="v1",
        settings=draw(arguments),
        root=draw(outcomes),
        continues=above,
    )
    size, out = 1, []
    for seq in range(draw(st.integers(0, 5))):
        closing = draw(st.booleans())
        drafts = []
        for i in range(draw(st.integers(0, 4))):
            after = i if closing else draw(st.sampled_from([0, 0, 0, i]))
            drafts.append(
                Draft(
                    after=after,
                    slot=draw(st.sampled_from([i, i, 0])),  # now and then an older one's slot, which is then superseded
                    mult=draw(st.integers(1, 4)),
                    share=draw(st.floats(0, 1)),
                    seed=draw(st.integers(0, 2**63 - 1)),
                    completion=draw(completions),
                    action=draw(st.none() | actions),
                    error=draw(st.none() | texts),
                    effect=draw(st.sampled_from(Effect)),
                    score=draw(reals),
                    outcome=draw(st.none() | outcomes),
                )
            )
        popped = draw(st.none() | outcomes)
        fault = draw(st.none() | texts)
        drawn = draw(st.integers(0, 4))
        node = draw(st.integers(0, size - 1))
        out.append(
            Expansion(
                seq=seq,
                node=node,
                closing=closing,
                drawn=drawn,
                outcome=popped,
                drafts=tuple(drafts),
                spent=draw(spents),
                fault=fault,
            )
        )
        size += len(drafts)
    return header, out


def same(a: object, b: object) -> bool:
    """Equality in which NaN equals NaN."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if is_dataclass(a) and type(a) is type(b):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


async def keep(store: TreeStore, header: TreeHeader, expansions: list[Expansion]) -> Tree:
    """Grows a tree in memory and in the store."""
    tree = Tree.start(header)
    store.create(header)
    for expansion in expansions:
        store.append_nowait(header.tree_id, expansion, len(tree))
        tree.apply(expansion)
    await store.flush()
    return tree


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TreeStore]:
    sqlite = request.param == "sqlite"
    url = tmp_path_factory.mktemp("store") / "t.db" if sqlite else request.getfixturevalue("new_database")()
    with TreeStore.open(url, redact=Redactor([])) as store:
        yield store
        assert store.check() == []


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(grown())
def test_headers_expansions_and_digests_come_back_equal(
    store: TreeStore, made: tuple[TreeHeader, list[Expansion]]
) -> None:
    header, expansions = made
    header = replace(header, attempt=next(ATTEMPT))
    tree = asyncio.run(keep(store, header, expansions))
    assert same(store.header(tree.tree_id), header)
    back = store.expansions(tree.tree_id)
    assert len(back) == len(expansions)
    for found, given_ in zip(back, expansions, strict=True):
        assert same(found, given_)
    again = store.load(tree.tree_id)
    assert again.digest() == tree.digest()
    assert again.reasons == tree.reasons and not again.revealed
    assert same(again.spent, tree.spent)
    columns = store.arrays([tree.tree_id])
    assert columns["drawn"].tolist() == tree.drawn
    assert columns["parent"].tolist() == tree.parent
    assert [STATUSES[code] for code in columns["status"]] == tree.status
    assert columns["n_tokens"].tolist() == [len(ids) for ids in tree.ids]
    for f in NUMBERS:
        np.testing.assert_array_equal(columns[f.tree], array_of(f, getattr(tree, f.tree)), err_msg=f.tree)
    assert columns["share"].tolist() == tree.share
    assert columns["call_ok"].tolist() == [error is None for error in tree.error]
    seen = [o.fingerprint if o is not None else "" for o in tree.observation]
    assert columns["state_key"].tolist() == [state_key(text) for text in seen]
    tree.reveal()
    np.testing.assert_array_equal(columns["reward"], tree.rewards())
