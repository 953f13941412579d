"""Agents as worlds: run, gone back to by replay, searched; without a change to their code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from not_none import not_none
from walking import PLACES, TASK, choices, go, say, walker_suite

from treewright.agent.gateway.agents import agent_suite
from treewright.agent.gateway.normal import Normal, learned
from treewright.agent.gateway.record import request_of
from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.agent.runs.collect import collect, open_worlds
from treewright.envs.custom import custom_suite
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Effect, Suite, Task, Turn
from treewright.search import Budget, NodeStatus, Pool, Settings, best_first, search
from treewright.search.store import TreeStore


def suite(how: str = "", **options: Any) -> Suite:
    return walker_suite(**{"env": {"WALKER": how}, **options})


async def walked(how: str, *actions: Action, **options: Any) -> tuple[list[Any], Any | None, Any]:
    """The observations of one episode, and the last result."""
    made = suite(how, **options)
    env = await made.open()
    try:
        seen, result = [await env.reset(TASK, 1)], None
        for action in actions:
            result = await env.step(action, 1)
            seen.append(result.observation)
        return seen, result, env
    finally:
        await env.close()
        await not_none(made.close)()


async def test_an_answer_is_an_action_and_the_next_request_the_observation() -> None:
    seen, result, _ = await walked("", *map(go, PLACES), say("here"))
    assert seen[0].text == "system: Walk.\nuser: find the inn"
    assert [s.text for s in seen[1:4]] == ["you are at mill", "you are at lake", "you are at inn"]
    assert not_none(result).terminated and not_none(result).reward == 1.0
    assert [not_none(request_of(s))["link"] for s in seen[:4]] == ["spawns", "continues", "continues", "continues"]
    _, failed, _ = await walked("", say("here"))
    assert not_none(failed).terminated and not_none(failed).reward == 0.0


async def test_compaction_and_helpers_are_told_apart() -> None:
    seen, _, _ = await walked("compact helper", go("mill"), say("left"), go("lake"), go("inn"), say("here"))
    links = [(not_none(request_of(s))["link"], not_none(request_of(s))["of"]) for s in seen[:5]]
    assert links == [("spawns", 0), ("spawns", 0), ("continues", 1), ("rewrites", 0), ("continues", 4)]
    assert "guide says left" in seen[2].text


async def test_n_answers_are_n_steps_at_one_prompt() -> None:
    seen, result, _ = await walked("votes", say("yes"), say("no"), say("yes"))
    assert [not_none(request_of(s))["link"] for s in seen[:3]] == ["spawns", "again", "again"]
    assert not_none(result).terminated and not_none(result).reward == 1.0


async def test_what_changes_by_itself_is_learnt_and_what_behaves_otherwise_is_not() -> None:
    first, _, env = await walked("noisy", go("mill"), say("here"))
    again, _, _ = await walked("noisy", go("mill"), say("here"))
    assert [a.fingerprint for a in first] == [b.fingerprint for b in again]
    assert any("learnt" in line for line in env._shared.told)
    _, _, fickle = await walked("fickle", go("mill"))
    assert "more than numbers" in fickle._shared.told[0]


def test_learnt_rules_take_numbers_and_ids_and_no_words() -> None:
    made = Normal()
    left, right = {"a": ["nr 17 of", "same"]}, {"a": ["nr 2045 of", "same"]}
    rules = learned(left, right)
    fresh = made.with_rules(not_none(rules))
    assert fresh.key(left) == fresh.key(right) != fresh.key({"a": ["nr x of", "same"]})
    assert learned({"a": "go left"}, {"a": "go right"}) is None
    assert learned({"a": "x"}, {"b": "x"}) is None
    plain = "on 2026-01-02 10:11:12 in /tmp/abc/d.txt id 550e8400-e29b-41d4-a716-446655440000 for 3 days"
    assert made.text(plain) == "on <date> in <temporary> id <uuid> for 3 days"


async def test_a_search_finds_what_single_runs_seldom_find_and_every_node_is_reached_by_replay(tmp_path: Path) -> None:
    made = suite("noisy")
    pool = Pool(made.open, 1, around=made.around)
    try:
        with TreeStore.open(tmp_path / "t.sqlite") as store:
            tree = await search(
                TASK, pool, scripted_choice(choices), rule=best_first(draws=3),
                budget=Budget(expansions=12), settings=Settings(max_tokens=64), store=store,
            )  # fmt: skip
            again = store.load(tree.tree_id)
    finally:
        await pool.close()
        await not_none(made.close)()
    assert NodeStatus.UNREACHABLE not in tree.status and NodeStatus.FAULT not in tree.status
    assert tree.spent.env_steps > len([s for s in tree.observation if s is not None])  # replays are counted
    assert again.digest() == tree.digest()
    for node in range(1, len(tree)):
        above, seen = tree.parent[node], tree.observation[node]
        if tree.children[node] and not_none(request_of(seen))["link"] == "continues":  # nothing is encoded twice
            whole = tree.context_ids(above) + tree.ids[node]
            assert tree.context_ids(node)[: len(whole)] == whole


async def test_a_request_that_differs_makes_the_node_unreachable() -> None:
    made = suite("fickle", learn=False)
    pool = Pool(made.open, 1, around=made.around)
    try:
        tree = await search(
            TASK, pool, scripted_choice(choices), rule=best_first(draws=3), budget=Budget(expansions=6),
            settings=Settings(max_tokens=64, repairs=0),
        )  # fmt: skip
    finally:
        await pool.close()
        await not_none(made.close)()
    assert NodeStatus.UNREACHABLE in tree.status and "a replay diverged" in tree.reasons


async def test_crashes_time_outs_and_orphans_are_faults_and_leave_nothing_behind() -> None:
    made = suite("crash", learn=False)
    env = await made.open()
    with pytest.raises(TreewrightError, match="before it asked"):
        await env.reset(TASK, 1)
    await env.close()
    await not_none(made.close)()
    made = suite("hang", learn=False)
    pool = Pool(made.open, 1, deadline=1.5, around=made.around)
    tree = await search(
        TASK, pool, ScriptedPolicy(lambda *_: "x"), settings=Settings(retries=0), budget=Budget(expansions=2)
    )
    assert tree.status[0] is NodeStatus.FAULT and "ActionTimeout" in (tree.fault[0] or "")
    await pool.close()
    await not_none(made.close)()
    assert not _sleepers()


def _sleepers() -> list[str]:
    out = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == b"sleep\x00300\x00":
                out.append(path.parent.name)
        except OSError:
            continue
    return out


async def test_in_a_live_world_what_cannot_be_undone_waits() -> None:
    def sells(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        return 'sell {"what": "cow"}' if rng.random() < 0.5 else 'go {"to": "mill"}'

    made = suite(sandboxed=False, effects={"go": "read"})
    pool = Pool(made.open, 1, around=made.around)
    try:
        tree = await search(
            TASK, pool, ScriptedPolicy(sells), rule=best_first(draws=4), budget=Budget(expansions=4),
            settings=Settings(max_tokens=64),
        )  # fmt: skip
    finally:
        await pool.close()
        await not_none(made.close)()
    sold = [i for i in range(1, len(tree)) if not_none(tree.action[i]).name == "sell"]
    assert sold and all(tree.observation[i] is None or tree.effect[i] is Effect.IRREVERSIBLE for i in sold)
    assert any(tree.observation[i] for i in range(1, len(tree)) if not_none(tree.action[i]).name == "go")


def rewarded(task: Task, history: Sequence[Turn], run: Any) -> float:
    return float(run.exit_code == 0 and (run.directory / "answer.txt").read_text() == "here at inn")


async def test_tasks_of_a_file_are_collected_with_a_reward_function_or_an_output(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    rows = [{"id": "a", "goal": "find the inn", "truth": {"output": "here at inn"}}]
    tasks.write_text("\n".join(map(json.dumps, rows)))

    def always(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        return f'go {{"to": "{PLACES[len(turns)]}"}}' if len(turns) < 3 else "here"

    for options, reward in (({}, rewarded), ({"output": "answer.txt"}, None)):
        made = custom_suite("agent", tasks, suite(**options), reward)
        async with open_worlds([made]) as worlds:
            (tree,) = await collect(
                made.tasks("train", 1), worlds, ScriptedPolicy(always), rule=best_first(draws=1),
                budget=Budget(expansions=6), settings=Settings(),
            )  # fmt: skip
        assert tree.chosen is not None and tree.outcome_of(tree.chosen) == 1.0


def test_wrong_options_and_commands_say_what_to_write() -> None:
    for options, words in (
        ({"goals": "stdin"}, "did you mean"),
        ({"goal": "letter"}, "argument, stdin"),
        ({"effects": {"go": "nice"}}, "reversible"),
        ({"normalise": ["("]}, "regular expression"),
        ({"folder": "/nowhere"}, "no folder"),
    ):
        with pytest.raises(TreewrightError, match=words):
            agent_suite("true", **options)
    with pytest.raises(TreewrightError, match="no command"):
        agent_suite("no-such-program-here")


async def test_programs_that_are_forked_from_a_nursery_behave_as_those_that_are_started(tmp_path: Path) -> None:
    seen, result, _ = await walked("helper", go("mill"), say("left"), go("lake"), go("inn"), say("here"))
    how = {"preload": ["json", "urllib.request"]}
    forked, ended, _ = await walked("helper", go("mill"), say("left"), go("lake"), go("inn"), say("here"), **how)
    assert [s.fingerprint for s in forked] == [s.fingerprint for s in seen] and not_none(ended).reward == not_none(
        result
    ).reward == 1.0
    made = suite("hang", learn=False, preload=["json"])
    pool = Pool(made.open, 1, deadline=1.5, around=made.around)
    tree = await search(
        TASK, pool, ScriptedPolicy(lambda *_: "x"), settings=Settings(retries=0), budget=Budget(expansions=2)
    )
    assert "ActionTimeout" in (tree.fault[0] or "")
    await pool.close()
    await not_none(made.close)()
    assert not _sleepers()
    made = suite(preload=["no_such_module_at_all"], learn=False)
    env = await made.open()
    with pytest.raises(TreewrightError, match="No module named"):
        await env.reset(TASK, 1)
    await env.close()
    await not_none(made.close)()
    with pytest.raises(TreewrightError, match="python FILE"):
        agent_suite("sleep 3", preload=["json"])


async def test_many_sessions_wait_at_the_same_time_without_holding_each_other_up() -> None:
    made = suite()
    envs = [await made.open() for _ in range(4)]
    try:
        seen = await asyncio.gather(*(env.reset(TASK, 1) for env in envs))
        assert len({s.fingerprint for s in seen}) == 1
        results = [await env.step(say("here"), 1) for env in reversed(envs)]
        assert all(r.terminated for r in results)
    finally:
        await asyncio.gather(*(env.close() for env in envs))
        await not_none(made.close)()
