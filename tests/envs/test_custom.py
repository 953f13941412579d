"""Own tasks with a reward function, and the environment that the README shows."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from not_none import not_none

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import (
    Action,
    InvalidAction,
    Restore,
    RestoreUnsupported,
    Snapshot,
    Task,
    TreewrightError,
)
from treewright.envs.check import check_env
from treewright.envs.custom import custom_suite, load_tasks
from treewright.envs.maze import Maze
from treewright.envs.types import Environment, Observation, Turn
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.types import Budget

README = Path(__file__).parent.parent / "readme_env.py"
spec = importlib.util.spec_from_file_location("readme_env", README)
readme_env = importlib.util.module_from_spec(not_none(spec))
not_none(not_none(spec).loader).exec_module(readme_env)
sys.modules["readme_env"] = readme_env

ROWS = [
    {"id": "four", "goal": "measure 4 litres", "data": {"sizes": [3, 5], "wanted": 4}, "truth": {"canary": "s3cret"}},
    {"id": "one", "goal": "measure 1 litre", "data": {"sizes": [3, 5], "wanted": 1}, "split": "test", "seed": 7},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


@pytest.fixture
def tasks_file(tmp_path: Path) -> Path:
    return write(tmp_path / "tasks.jsonl", ROWS)


def short(task: Task, history: Sequence[Turn]) -> float:
    """Reward of the tests: 1 divided by the number of actions, 0 if the last text does not show what was wanted."""
    assert isinstance(history, tuple) and history[0].action is None
    wanted = str(task.data.get("wanted", "stopped"))
    return 1.0 / (len(history) - 1) if wanted in history[-1].observation.text.split() else 0.0


def jug(task: Task, turns: Any, tools: Any, rng: Random) -> Any:
    """One of the three moves that help, drawn blindly."""
    return rng.choice(['fill {"jug": 1}', 'pour {"jug": 1}', 'drain {"jug": 0}'])


def expert(task: Task, history: Sequence[Turn], tools: Any) -> Action:
    """The six moves that leave 4 litres in the larger of jugs for 3 and 5; what it does elsewhere is of no use."""
    moves = [("fill", 1), ("pour", 1), ("drain", 0), ("pour", 1), ("fill", 1), ("pour", 1)]
    verb, this = moves[(len(history) - 1) % 6]
    return Action.of(verb, jug=this)


async def play(env: Environment, task: Task, *actions: Action) -> list[Any]:
    seen = [await env.reset(task, 1)]
    return [*seen, *[await env.step(action, i) for i, action in enumerate(actions)]]


# -- tasks file -----------------------------------------------------------------------------------------------------


def test_tasks_are_read_with_defaults_and_blank_lines_are_skipped(tasks_file: Path) -> None:
    four, one = load_tasks(tasks_file, "jugs")
    assert (four.suite, four.id, four.seed, four.split, four.horizon) == ("jugs", "four", 0, "train", 8)
    assert (one.seed, one.split, one.truth) == (7, "test", {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "gaol": "x"}, r"line 3: no field named 'gaol'; did you mean 'goal'\?"),
        ({"id": "a", "goal": "x", "colour": 1}, "no field named 'colour'; known: id, goal, seed"),
        ({"id": "a"}, "line 3: field 'goal' is missing or empty"),
        ({"id": "", "goal": "x"}, "field 'id' is missing or empty"),
        ({"id": "a", "goal": "x", "seed": "7"}, "field 'seed' must be an integer, not \"7\""),
        ({"id": "a", "goal": "x", "seed": True}, "field 'seed' must be an integer, not true"),
        ({"id": "a", "goal": "x", "data": []}, "field 'data' must be an object"),
        ({"id": "a", "goal": "x", "split": "dev"}, "field 'split' must be 'train' or 'test', not 'dev'"),
        ({"id": "a", "goal": "x", "horizon": 0}, "field 'horizon' must be at least 1"),
        ({"id": "four", "goal": "x"}, "line 3: id 'four' was used in line 1 already"),
        ("[1]", "line 3: a task is an object"),
        ('{"id": ', "line 3: not valid JSON"),
    ],
)
def test_a_wrong_line_is_left_out_and_named_with_its_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any] | str, message: str
) -> None:
    tasks = load_tasks(write(tmp_path / "tasks.jsonl", [ROWS[0], row, ROWS[1]]), "jugs")
    assert [task.id for task in tasks] == ["four", "one"]
    assert re.search(message, caplog.text) and "2 tasks read, 1 lines left out" in caplog.text


@pytest.mark.parametrize(("bad", "told"), [(5, ""), (6, "; and 1 more"), (7, "; and 2 more")])
def test_wrong_lines_that_are_not_named_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: int, told: str
) -> None:
    load_tasks(write(tmp_path / "tasks.jsonl", [ROWS[0], *["{"] * bad]), "jugs")
    assert f"1 tasks read, {bad} lines left out" in caplog.messages[0] and caplog.messages[0].count("not valid") == 5
    assert caplog.messages[0].endswith(told or '"what to do"}') and ("; and " in caplog.messages[0]) == bool(told)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["data", "truth"])
def test_numbers_that_json_does_not_have_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, number: str
) -> None:
    row = f'{{"id": "odd", "goal": "measure", "{field}": {{"deep": [1, {{"x": {number}}}]}}}}'
    assert len(load_tasks(write(tmp_path / "tasks.jsonl", [ROWS[0], row]), "jugs")) == 1
    assert re.search(f"line 3: field '{field}' holds NaN, Infinity .* which JSON does not have", caplog.text)


def test_a_file_of_wrong_lines_alone_is_refused_by_its_first(tmp_path: Path) -> None:
    rows = [{"id": "a", "gaol": "x"}, "{", {"id": "b"}]
    with pytest.raises(TreewrightError, match=r"line 1: no field named 'gaol'.*and 2 more wrong lines"):
        load_tasks(write(tmp_path / "tasks.jsonl", rows), "jugs")


A, B = (json.dumps({"id": name, "goal": "measure"}).encode() for name in "ab")
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "raw",
    [
        MARK + A + b"\n" + MARK + B,
        (A + b"\r\n" + B + b"\r\n").decode().encode("utf-16"),
        A + b"\r" + B,
        A + b"\n\xff\xfe{}\n" + B,
    ],
    ids=["byte order marks", "utf-16", "carriage returns", "bytes that are no text"],
)
def test_tasks_are_read_however_a_file_was_saved(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(raw)
    assert [task.id for task in load_tasks(path, "jugs")] == ["a", "b"]


def test_separators_that_json_allows_in_strings_do_not_cut_a_line(tmp_path: Path) -> None:
    goal = "one\u2028two\u2029three\x85four"
    path = write(tmp_path / "tasks.jsonl", [json.dumps({"id": "a", "goal": goal}, ensure_ascii=False)])
    assert load_tasks(path, "jugs")[0].goal == goal


def test_optional_fields_that_are_empty_count_as_not_given(tmp_path: Path) -> None:
    empty = {"id": "a", "goal": "x", "seed": None, "split": "", "horizon": None, "data": None, "truth": ""}
    (task,) = load_tasks(write(tmp_path / "tasks.jsonl", [empty]), "jugs")
    assert (task.seed, task.split, task.horizon, task.data, task.truth) == (0, "train", 8, {}, {})


def test_half_surrogates_become_the_replacement_character(tmp_path: Path) -> None:
    row = r'{"id": "a", "goal": "find \ud83d", "data": {"\udc00": ["\ud83d\ude00", "\ud800"]}}'
    (task,) = load_tasks(write(tmp_path / "tasks.jsonl", [row]), "jugs")
    assert task.goal == "find \ufffd" and task.data == {"\ufffd": ["\U0001f600", "\ufffd"]}


def test_an_empty_or_missing_file_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match="holds no task; write one a line"):
        load_tasks(write(tmp_path / "tasks.jsonl", [""]), "jugs")
    with pytest.raises(TreewrightError, match="cannot read tasks"):
        load_tasks(tmp_path / "nowhere.jsonl", "jugs")


# -- suite ----------------------------------------------------------------------------------------------------------


def test_splits_keep_the_order_of_the_file_and_an_absent_one_is_an_error(tmp_path: Path, tasks_file: Path) -> None:
    suite = custom_suite("jugs", tasks_file, "readme_env:Jugs", short)
    assert [task.id for task in suite.tasks("train", 5)] == ["four"]
    only = custom_suite("jugs", write(tmp_path / "one.jsonl", ROWS[:1]), "readme_env:Jugs", short)
    with pytest.raises(TreewrightError, match='no task with "split": "test"'):
        only.tasks("test", 1)


@pytest.mark.parametrize(
    ("open", "reward", "message"),
    [
        ("readme_env:Jug", short, "no 'Jug'; did you mean 'Jugs'"),
        ("no_such_module_here:X", short, "cannot import"),
        ("maz", short, "did you mean 'maze'"),
        ("maze", "test_custom", "not of the form 'module:name'"),
        ("maze", "json:lods", "did you mean 'loads'"),
        ("maze", 3, "reward must be a function"),
        (3, short, "open is of type int; name a class, an object, a suite or a function"),
    ],
)
def test_a_wrong_world_or_reward_is_refused_at_once(
    tasks_file: Path, open: str | int, reward: Callable[[Any, Any], Any] | str | int, message: str
) -> None:
    with pytest.raises(TreewrightError, match=message):
        custom_suite("jugs", tasks_file, open, reward)  # type: ignore[arg-type]


async def test_a_built_in_world_a_class_and_a_coroutine_function_all_open(tasks_file: Path) -> None:
    async def opened() -> Maze:
        return Maze()

    for open in ("maze", "treewright.envs.maze:Maze", opened):
        env = await custom_suite("mine", tasks_file, open, short).open()
        *_, end = await play(env, replace(ROWS_TASK, data={"size": 3}), Action.of("stop"))
        assert (end.terminated, end.reward) == (True, 1.0)
        await env.close()


# -- reward and history ---------------------------------------------------------------------------------------------

ROWS_TASK = Task("mine", "t", "stop", horizon=3, truth={"canary": "s3cret"})


async def test_the_reward_function_alone_decides_and_is_asked_once_at_the_end(tasks_file: Path) -> None:
    asked = []

    def reward(task: Task, history: Sequence[Turn]) -> float:
        asked.append([str(turn.action) for turn in history])
        return 0.25

    env = await custom_suite("jugs", tasks_file, "readme_env:Jugs", reward).open()
    task = load_tasks(tasks_file, "jugs")[0]
    pour, fill = Action.of("pour", jug=1), Action.of("fill", jug=1)
    results = await play(env, task, fill, pour, Action.of("drain", jug=0), pour, fill, pour)
    assert [r.reward for r in results[1:]] == [0, 0, 0, 0, 0, 0.25]
    assert results[-1].terminated and len(asked) == 1 and len(asked[0]) == 7


async def test_the_horizon_ends_an_episode_that_the_world_does_not(tasks_file: Path) -> None:
    env = await custom_suite("jugs", tasks_file, "readme_env:Jugs", lambda task, history: len(history)).open()
    task = replace(load_tasks(tasks_file, "jugs")[0], horizon=2)
    *_, first, last = await play(env, task, Action.of("fill", jug=0), Action.of("drain", jug=0))
    assert (first.truncated, first.reward) == (False, 0.0)
    assert (last.truncated, last.terminated, last.reward) == (True, False, 3.0)


async def test_an_invalid_action_leaves_no_turn_in_the_history(tasks_file: Path) -> None:
    env: Any = await custom_suite("jugs", tasks_file, "readme_env:Jugs", short).open()
    await env.reset(load_tasks(tasks_file, "jugs")[0], 0)
    with pytest.raises(InvalidAction):
        await env.step(Action.of("dance"), 0)
    assert len(env.history) == 1


@pytest.mark.parametrize("value", [float("nan"), None, "1", float("inf")])
async def test_a_reward_that_is_no_finite_number_is_an_error(tasks_file: Path, value: float | str | None) -> None:
    reward: Any = lambda task, history: value  # noqa: E731
    env = await custom_suite("mine", tasks_file, "maze", reward).open()
    with pytest.raises(TreewrightError, match="it must give a finite number"):
        await play(env, ROWS_TASK, Action.of("stop"))


async def test_a_failing_reward_function_names_its_suite_and_task(tasks_file: Path) -> None:
    env = await custom_suite("mine", tasks_file, "maze", lambda task, history: 1 / 0).open()
    with pytest.raises(TreewrightError, match="reward function of 'mine' failed on task 't': ZeroDivision"):
        await play(env, ROWS_TASK, Action.of("stop"))


class Gossip(Maze):
    """Shows whatever it was told, and keeps pictures in its observations."""

    async def reset(self, task: Task, key: int) -> Observation:
        seen = await super().reset(task, key)
        return replace(seen, text=f"{seen.text} {dict(task.truth)}", parts=({"type": "image", "png": b"\x89PNG"},))


async def test_a_world_of_ones_own_never_receives_the_truth(tasks_file: Path) -> None:
    async def opened() -> Gossip:
        return Gossip()

    env = await custom_suite("mine", tasks_file, opened, lambda task, history: task.truth["canary"] == "s3cret").open()
    seen, end = await play(env, ROWS_TASK, Action.of("stop"))
    assert "s3cret" not in repr(seen) + repr(end)
    assert end.reward == 1.0


# -- coming back ----------------------------------------------------------------------------------------------------


async def test_state_snapshots_are_json_and_carry_the_history_to_another_session(tasks_file: Path) -> None:
    async def opened() -> Gossip:
        return Gossip()

    suite = custom_suite("mine", tasks_file, opened, lambda task, history: len(history))
    other: Any
    one: Any
    one, other = await suite.open(), await suite.open()
    await play(one, replace(ROWS_TASK, horizon=9), Action.of("press"), Action.of("press"))
    taken = await one.snapshot()
    assert taken.kind is Restore.STATE and taken.size == len(taken.data) and json.loads(taken.data)
    await one.step(Action.of("press"), 0)
    seen = await other.restore(taken)
    assert seen.fingerprint == taken.fingerprint
    assert other.history == one.history[:3] and other.history[0].observation.parts[0]["png"] == b"\x89PNG"
    assert (await other.step(Action.of("stop"), 0)).reward == 4.0


async def test_fork_snapshots_hold_the_history(tasks_file: Path) -> None:
    class Forking(Maze):
        async def snapshot(self) -> Snapshot:
            return Snapshot(Restore.FORK, self.at, self._seen().fingerprint, size=8)

        async def restore(self, snapshot: Snapshot) -> Observation:
            self.at = snapshot.data
            return self._seen()

    async def opened() -> Any:
        return Forking()

    env = await custom_suite("mine", tasks_file, opened, lambda task, history: len(history)).open()
    await play(env, replace(ROWS_TASK, horizon=9), Action.of("press"))
    taken = await env.snapshot()
    await env.step(Action.of("press"), 0)
    await env.restore(taken)
    assert (await env.step(Action.of("stop"), 0)).reward == 3.0


@pytest.mark.parametrize("data", [b"", b"[]", b'{"task": {}}', b"\xff", b'{"turns": 3}'])
async def test_a_damaged_snapshot_is_refused(tasks_file: Path, data: bytes) -> None:
    env = await custom_suite("mine", tasks_file, "maze", short).open()
    with pytest.raises(RestoreUnsupported, match="damaged"):
        await env.restore(Snapshot(Restore.STATE, data, "f"))
    with pytest.raises(RestoreUnsupported):
        await env.restore(Snapshot(Restore.FORK, object(), "f"))


@pytest.mark.parametrize("eager", [True, False])
async def test_a_search_gets_the_same_rewards_by_snapshots_and_by_replay(tasks_file: Path, eager: bool) -> None:
    suite = custom_suite("mine", tasks_file, "maze", lambda task, history: 1.0 / len(history))
    task = replace(ROWS_TASK, horizon=6)

    def walk(task: Task, turns: Any, tools: Any, rng: Random) -> Any:
        return rng.choice(['move {"to": "east"}', 'move {"to": "south"}', "stop {}", "press {}"])

    async def replaying() -> Environment:
        env = await suite.open()
        env.restore_ways = frozenset({Restore.REPLAY})
        return env

    trees = [
        await search(
            task, Pool(open), ScriptedPolicy(walk), rule=best_first(eager=eager), settings=Settings(close=True)
        )
        for open in (suite.open, replaying)
    ]
    assert trees[0].digest() == trees[1].digest()
    assert len({round(trees[0].outcome_of(leaf), 3) for leaf in trees[0].leaves()}) > 2


async def test_the_wrapped_world_keeps_the_contract(tasks_file: Path) -> None:
    suite = custom_suite("jugs", tasks_file, "readme_env:Jugs", short)
    (await check_env(suite.open, suite.tasks("train", 1), steps=6, oracle=expert)).raise_if_failed()


# -- the environment of the README ----------------------------------------------------------------------------------


def test_the_environment_of_the_readme_has_at_most_30_lines() -> None:
    assert len(README.read_text().splitlines()) <= 30


async def test_the_environment_of_the_readme_keeps_the_contract(tasks_file: Path) -> None:
    async def opened() -> Any:
        return readme_env.Jugs()

    tasks = load_tasks(tasks_file, "jugs")[:1]
    (await check_env(opened, tasks, steps=6, oracle=expert)).raise_if_failed()


async def test_a_search_measures_four_litres_with_the_environment_of_the_readme(tasks_file: Path) -> None:
    task = load_tasks(tasks_file, "jugs")[0]
    task = replace(task, horizon=12)
    budget, settings = Budget(expansions=40), Settings(close=True)
    tree = await search(task, readme_env.Jugs(), ScriptedPolicy(jug), budget=budget, settings=settings)
    solved = [leaf for leaf in tree.leaves() if tree.reward(leaf) == 1.0]
    assert solved and tree.chosen in solved
    assert not_none(tree.observation[tree.chosen]).text.endswith(" 4 litres")
