"""Trees by what they are, nodes by what they do, branches by how far they part, runs side by side."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from treewright.envs.types import Action, Effect, Observation, Task
from treewright.search.store import StoreError, TreeStore, compare, parse_where
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent


def draft(
    name: str,
    reward: float | None = None,
    effect: Effect = Effect.READ,
    status: NodeStatus = NodeStatus.TERMINAL,
    score: float = math.nan,
    share: float = 0.5,
    after: int = 0,
) -> Draft:
    outcome = None
    if reward is not None:
        outcome = Outcome(Observation(f"after {name}", "f"), status, reward=reward, effect=effect, steps=1)
    done = Completion(name, (1, 2), (-1.0, -1.0), policy_version="v1")
    return Draft(
        after=after,
        slot=0,
        mult=1,
        share=share,
        seed=1,
        completion=done,
        action=Action.of(name, to=1),
        error=None,
        effect=effect,
        score=score,
        outcome=outcome,
    )


async def keep(
    store: TreeStore, task: str, expansions: list[Any], run: str = "r", suite: str = "kg", chosen: int | None = None
) -> str:
    root = Outcome(Observation(f"root of {task}"), NodeStatus.OPEN)
    tree = Tree.start(
        TreeHeader(run=run, task=Task(suite, task, "g"), attempt=0, seed=1, policy_version="v1", settings={}, root=root)
    )
    store.create(tree.header)
    for seq, (node, drafts, outcome) in enumerate(expansions):
        one = Expansion(
            seq=seq,
            node=node,
            closing=False,
            drawn=len(drafts),
            outcome=outcome,
            drafts=tuple(drafts),
            spent=Spent(expansions=1, policy_tokens=10, judge_tokens=0, env_steps=2),
        )
        store.append(tree.tree_id, one, len(tree))
        tree.apply(one)
    if chosen is not None:
        tree.chosen = chosen
        store.finish(tree)
    await store.flush()
    return tree.tree_id


async def two_trees(store: TreeStore) -> tuple[Any, Any]:
    good = draft("buy", 1.0, Effect.IRREVERSIBLE, score=0.25)
    first = await keep(store, "a", [(0, [good, draft("look", 0.0, score=0.5)], None)], chosen=1)
    later = Outcome(Observation("late"), NodeStatus.TERMINAL, reward=0.25, effect=Effect.REVERSIBLE)
    pops = [
        (0, [draft("go", 0.0, status=NodeStatus.OPEN), draft("wait")], None),
        (1, [draft("win", 1.0, share=0.75), draft("lose", 0.0, share=0.25)], None),
        (2, [], later),
    ]
    return first, await keep(store, "b", pops, suite="maze")


async def test_trees_are_found_by_every_field_and_operator(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        first, second = await two_trees(store)
        for where, found in {
            ("suite", "kg"): [first],
            ("suite !=", "kg"): [second],
            ("task in", ("a", "b")): [first, second],
            ("task_id like", "%b"): [second],
            ("success", True): [first],
            ("nodes >=", 3): [first],
            ("tokens <", 10): [],
            ("outcome", None): [second],
            ("status", "done"): [first],
        }.items():
            assert [row.tree_id for row in store.trees(where=dict([where]))] == found, where
        assert [r.tree_id for r in store.trees(suite="maze", where=parse_where(["status!=done", "task=b"]))] == [second]
        for wrong, message in {
            "siute": "did you mean 'suite'",
            "suite ~": "no operator '~'",
            "suite in": "needs a list",
        }.items():
            with pytest.raises(StoreError, match=message):
                store.trees(where={wrong: "kg"})


def test_filters_typed_on_a_command_line_are_read() -> None:
    read = parse_where(["nodes>=20", "suite = kg", "success=true", "task!=3", "outcome<0.5"])
    assert read == {"nodes >=": 20, "suite =": "kg", "success =": True, "task !=": "3", "outcome <": 0.5}
    with pytest.raises(StoreError, match="has no operator"):
        parse_where(["suite"])


async def test_values_that_do_not_fit_a_field_are_refused_and_name_it(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        await two_trees(store)
        for text, takes in {
            "created<yesterday": "created takes seconds since 1970 or an ISO date or time",
            "created>2025": "created takes seconds since 1970 or an ISO date or time",
            "ended!=2020-13-01": "ended takes seconds since 1970",
            "nodes<3k": "nodes takes a whole number of at most 64 bits, not '3k'$",
            "nodes < three": "not 'three'$",
            "nodes=2.5": "not 2.5: only < <= > >= compare with a fraction$",
            "nodes<99999999999999999999999": "nodes takes a whole number of at most 64 bits, not 9+$",
            f"seed={'9' * 5000}": "seed takes a whole number of at most 64 bits, not '9+…$",
            "nodes=true": "not True$",
            "attempt=null": "not 'null'$",
            "tokens<1e9x": "not '1e9x'$",
            "seed>x": "not 'x'$",
            "outcome<low": "outcome takes a number, not 'low'$",
            "outcome!=abc": "outcome takes a number, not 'abc'$",
            "outcome=NaN": "outcome takes a number, not 'NaN'$",
            "outcome=": "outcome takes a number, not ''$",
            "seconds>=[1]": r"seconds takes a number, not \[1\]$",
            "success=maybe": "success takes true, false, yes or no, not 'maybe'$",
            "success<yes": "success takes true, false, yes or no, and no '<' 'yes'; use = or !=$",
        }.items():
            with pytest.raises(StoreError, match=takes):
                parse_where([text])
        for where, takes in {
            ("created <", "soon"): "created takes seconds",
            ("nodes", "3k"): "nodes takes a whole number",
            ("nodes !=", True): "nodes takes a whole number",
            ("nodes <", 2**63): "nodes takes a whole number",
            ("nodes <", 10**5000): "not one of thousands of digits",
            ("nodes <", math.inf): "nodes takes a whole number",
            ("nodes <", None): "nodes takes a whole number",
            ("nodes in", (3, "x")): "nodes takes a whole number of at most 64 bits, not 'x'",
            ("nodes in", (3, 2.5)): "not 2.5: only",
            ("nodes like", "3%"): "nodes takes a whole number of at most 64 bits, and no 'like'",
            ("outcome in", (1.0, None)): "outcome takes a number, not None",
            ("outcome", math.nan): "outcome takes a number",
            ("outcome <", 10**400): "outcome takes a number",
            ("success", 1.0): "success takes true",
            ("success <", True): "success takes true",
            ("task_id", 1.5): "task_id takes text, not 1.5",
            ("task_id", True): "task_id takes text, not True",
            ("task_id in", b"ab"): "needs a list",
            ("task_id like", None): "task_id takes text",
        }.items():
            for ask in (store.trees, store.nodes):
                with pytest.raises(StoreError, match=takes):
                    ask(where=dict([where]))
        with pytest.raises(StoreError, match="success takes true"):
            store.trees(success="maybe")  # type: ignore[arg-type]


async def test_times_are_seconds_or_dates_in_utc_unless_they_say_otherwise(store_url: str) -> None:
    moment = datetime(2020, 1, 31, 12, 30, tzinfo=UTC)
    read = parse_where(["created<2020-01-31", "ended>=2020-01-31T12:30", "created>20200131", "ended<1580473800.5"])
    midnight = moment.replace(hour=0, minute=0).timestamp()
    assert list(read.values()) == [midnight, moment.timestamp(), midnight, 1580473800.5]
    assert list(parse_where(["ended=2020-01-31 13:30:00+01:00"]).values()) == [moment.timestamp()]
    assert parse_where(["created=2020-01-31T12:30Z"]) == {"created =": moment.timestamp()}
    now = datetime.now(UTC)
    with TreeStore.open(store_url) as store:
        first, second = await two_trees(store)
        for where, found in {
            ("created <", "2020-01-01"): [],
            ("created <=", date(2020, 1, 1)): [],
            ("created <", datetime(2020, 1, 1)): [],
            ("created >=", "2020-01-01"): [first, second],
            ("created >", now - timedelta(hours=1)): [first, second],
            ("created <", (now + timedelta(hours=1)).astimezone(timezone(timedelta(hours=9)))): [first, second],
            ("created <", 0): [],
            ("ended <", "2020-01-01T00:00:00Z"): [],
            ("ended >", "2020-01-01"): [first],
            ("ended", None): [second],
        }.items():
            assert [row.tree_id for row in store.trees(where=dict([where]))] == found, where


async def test_typed_values_are_read_by_the_type_of_their_field(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        one = await keep(store, "1", [(0, [draft("buy", 1.0)], None)], run="7", chosen=1)
        odd = await keep(store, "null", [(0, [draft("buy", 0.0)], None)], run="1e5", chosen=1)
        more = await keep(store, ' "true" ', [], run="true")
        for texts, found in {
            ("task_id=1",): [one],
            ("task=1", "run = 7"): [one],
            ("run=1e5",): [odd],
            ("run=100000",): [],
            ("run=true",): [more],
            ("tree_id=1e5",): [],
            ("task_id=null",): [odd],
            ("task_id!=null",): [one, more],
            ('task_id="1"',): [one],
            (r'task_id=" \"true\" "',): [more],
            ('task_id=" 1',): [],
            ("task_id!=1", "task_id!=null"): [more],
            ("created>=2020-01-01", "created>=1"): [one, odd, more],
            ("nodes<3000000000",): [one, odd],
            ("nodes<2.5",): [one, odd],
            ("nodes<1.5",): [],
            ("tokens<=1e1", "tokens>9.5"): [one, odd],
            ("nodes=2", "attempt=0"): [one, odd],
            ("seed=9223372036854775807",): [],
            ("success=yes",): [one],
            ("success=True",): [one],
            ("success=NO",): [odd],
            ("success!=true",): [odd],
            ("success=null",): [more],
            ("outcome!=null",): [one, odd],
            ("stopped_by=null",): [one, odd, more],
            ("outcome=1",): [one],
            ("outcome<0.5",): [odd],
        }.items():
            assert [row.tree_id for row in store.trees(where=parse_where(texts))] == found, texts


async def test_numbers_and_flags_of_numpy_and_numbers_for_texts_are_taken(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        one = await keep(store, "1", [(0, [draft("buy", 1.0)], None)], run="7", chosen=1)
        for where in (
            ("task_id", 1),
            ("task_id in", (1, "2")),
            ("nodes >=", np.int64(2)),
            ("nodes in", np.arange(3)),
            ("nodes", 2.0),
            ("outcome", np.float32(1.0)),
            ("outcome <", math.inf),
            ("success", np.True_),
            ("success in", ("yes", False)),
            ("stopped_by", None),
        ):
            assert [row.tree_id for row in store.trees(where=dict([where]))] == [one], where


async def test_nodes_are_found_by_action_effect_and_status(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        first, second = await two_trees(store)
        (bought,) = store.nodes(action="buy")
        assert (bought.tree_id, bought.node, bought.effect, bought.reward) == (first, 1, "irreversible", 1.0)
        assert store.nodes(effect="irreversible") == [bought] == store.nodes(action=Action.of("buy", to=1).key)
        (waited,) = store.nodes(effect="reversible")
        assert (waited.tree_id, waited.node, waited.status, waited.reward) == (second, 2, "terminal", 0.25)
        assert store.nodes(status="draft") == [] and store.nodes(action='y","to') == []
        assert len(store.nodes(where={"suite": "maze"})) == 5 and len(store.nodes(limit=2)) == 2


async def test_the_path_of_a_node_shows_what_was_said_and_seen(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        _, second = await two_trees(store)
        path = store.path_to(second, 3)
        assert [row.node for row in path] == [0, 1, 3] and [row.text for row in path] == ["", "go", "win"]
        assert [row.observation for row in path] == ["root of b", "after go", "after win"]
        assert store.path_to(second, 2)[-1].observation == "late"
        with pytest.raises(StoreError, match="has no node 9"):
            store.path_to(second, 9)


async def test_branches_come_with_the_widest_gap_first(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        first, second = await two_trees(store)
        found = store.branches(at_least=0.5)
        assert [(b.tree_id, b.node, b.children, b.values, b.gap) for b in found] == [
            (first, 0, (1, 2), (1.0, 0.0), 1.0),
            (second, 1, (3, 4), (1.0, 0.0), 1.0),
            (second, 0, (1, 2), (0.75, 0.25), 0.5),
        ]
        (scored,) = store.branches(at_least=0.1, by="score")
        assert (scored.tree_id, scored.values) == (first, (0.25, 0.5))
        assert store.branches(at_least=2.0) == []
        with pytest.raises(StoreError, match="cannot be ranked by"):
            store.branches(0.1, by="luck")


async def test_two_runs_are_compared_on_the_tasks_both_have(store_url: str) -> None:
    won, lost = [(0, [draft("x", 1.0)], None)], [(0, [draft("x", 0.0)], None)]
    with TreeStore.open(store_url) as store:
        for i in range(40):
            await keep(store, f"t{i}", won if i < 10 else lost, run="one", suite="kg", chosen=1)
            await keep(store, f"t{i}", won if i < 30 else lost, run="two", suite="kg", chosen=1)
        await keep(store, "only here", won, run="one", chosen=1)
        await keep(store, "t0", won, run="two", suite="maze")
        (found,) = store.compare("one", "two")
        assert (found.suite, found.tasks, found.first, found.second, found.gain) == ("kg", 40, 0.25, 0.75, 0.5)
        assert 0.3 < found.low < 0.4 and 0.6 < found.high < 0.7
        assert (found.only_first, found.only_second, found.tokens) == (0, 20, (400, 400))
        (none,) = store.compare("one", "one")
        assert (none.gain, none.low, none.high) == (0.0, 0.0, 0.0)
        with pytest.raises(StoreError, match="no task is finished in both"):
            compare(store.trees(run="one"), store.trees(suite="maze"))
