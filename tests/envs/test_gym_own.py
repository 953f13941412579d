"""Gymnasium environments of one's own: registered by a module, with arguments, masks, errors and prices."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from random import Random
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from jsonschema import Draft202012Validator
from not_none import not_none

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import Action, Effect, InvalidAction, Restore, RestoreUnsupported, TreewrightError, suite
from treewright.envs.check import check_env
from treewright.envs.tools.gym import action_schema, gym_suite
from treewright.envs.tools.gym_spaces import as_member
from treewright.envs.types import Suite, Task
from treewright.search import Budget, best_first, search
from treewright.search.engine import Settings
from treewright.search.restore import Pool
from treewright.search.tree import Tree

GAME = """
import gymnasium as gym
from gymnasium import spaces
from hall import Hall

class Count(gym.Env):
    observation_space = spaces.Discrete(9)
    action_space = spaces.Discrete(2)
    def __init__(self, goal=3, word="n", render_mode=None):
        self.goal, self.word = goal, word
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return self.n, {}
    def step(self, action):
        self.n += 1
        return self.n, float(self.n == self.goal), self.n == self.goal, False, {}

gym.register(id="my/Count-v0", entry_point="mygame:Count")
gym.register(id="my/Count-v2", entry_point="mygame:Count")
gym.register(id="my/Hall-v0", entry_point="hall:Hall")

def act(task, turns, tools, rng):
    return 'act {"action": 1}'
"""


@pytest.fixture
def games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mygame.py").write_text(GAME)
    (tmp_path / "hall.py").write_text("import gymnasium\nclass Hall(gymnasium.Env): pass\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(folder: Path, *arguments: str) -> tuple[int, str]:
    """What the console script prints, in a process of its own."""
    code = "from treewright.agent.cli.main import main; import sys; sys.exit(main())"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return found.returncode, found.stdout + found.stderr


@pytest.mark.parametrize("spelt", ["mygame:my/Count-v0", "mygame:my/Count", "mygame:my/Count-v0?goal=2&word=steps"])
def test_the_command_line_takes_an_id_that_a_module_in_the_working_directory_registers(games: Path, spelt: str) -> None:
    status, told = lines(games, "collect", "-n", "g", "--tasks", "1", "--suites", f"gym:{spelt}",
                         "--policy", "scripted:mygame:act")  # fmt: skip
    assert status == 0 and "Traceback" not in told and "stored in" in told, told


@pytest.mark.parametrize(
    "spelt, says",
    [
        ("other/Count-v0", "name that one too: gym:MODULE:other/Count-v0"),
        ("mygame:my/Cuont-v0", "did you mean gym:my/Count-v0"),
        ("nowhere:my/Count-v0", "cannot import 'nowhere'"),
        ("mygame:my/Count-v2?goall=3", "did you mean 'goal'"),
        ("mygame:my/Count-v2?goal", "is no option"),
    ],
)
def test_what_is_wrong_with_an_id_is_said_with_what_to_type(games: Path, spelt: str, says: str) -> None:
    with pytest.raises(TreewrightError, match=says.replace("?", r"\?")):
        suite(f"gym:{spelt}")


async def test_arguments_reach_the_environment_as_json_or_text(games: Path) -> None:
    env: Any = await suite("gym:mygame:my/Count-v0?goal=2&word=steps").open()
    assert (env.object.goal, env.object.word) == (2, "steps")
    await env.close()
    env = await suite("gym:FrozenLake-v1?is_slippery=false&map_name=8x8").open()
    assert env.object.nrow == 8
    await env.close()


# -- schemas ----------------------------------------------------------------------------------------------------------

SPACES = [
    spaces.Box(np.array([-1, 0.5], np.float32), np.array([0.7, 2.1], np.float32)),
    spaces.Box(-0.3, 0.3, (2, 3), np.float32),
    spaces.Box(-np.inf, np.inf, (2,), np.float64),
    spaces.Box(0, 255, (3,), np.uint8),
    spaces.MultiDiscrete([3, 5], start=[1, -2]),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    spaces.MultiBinary((2, 2)),
    spaces.Text(5, charset="ab-]^ \\"),
    spaces.Text(3, min_length=0, charset="äöü0123456789"),
    spaces.Dict({"x": spaces.Discrete(3, start=-1), "y": spaces.Text(4)}),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, ())]),
    spaces.Sequence(spaces.Discrete(3)),
    spaces.OneOf([spaces.Discrete(2), spaces.Text(3)]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_member_of_a_space_fits_its_schema_and_comes_back_from_json(space: Any) -> None:
    schema = action_schema(space)
    Draft202012Validator.check_schema(schema)
    space.seed(3)
    for _ in range(50):
        given = plain(space.sample())
        assert Draft202012Validator(schema).is_valid(given), (schema, given)
        assert space.contains(as_member(space, given))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [plain(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize(
    "space, outside",
    [
        (SPACES[0], [0.8, 1.0]),
        (SPACES[1], [[0.31, 0, 0], [0, 0, 0]]),
        (SPACES[4], [0, 0]),
        (SPACES[6], [[2, 0], [0, 0]]),
        (SPACES[7], "abc"),
        (SPACES[8], "e"),
    ],
    ids=str,
)
def test_bounds_and_character_sets_are_in_the_schema(space: Any, outside: list[Any] | str) -> None:
    assert not Draft202012Validator(action_schema(space)).is_valid(outside)


def test_a_text_space_that_judges_by_itself_is_not_held_to_a_character_set() -> None:
    class Unicode(spaces.Text):  # type: ignore[misc]  # as BrowserGym has it
        def contains(self, x: Any) -> bool:
            return isinstance(x, str)

    schema = action_schema(Unicode(100, min_length=0))
    assert "pattern" not in schema and as_member(Unicode(100), 'click("12")') == 'click("12")'


# -- states that allow less -------------------------------------------------------------------------------------------


class Cave(gymnasium.Env):  # type: ignore[misc]
    """A text game: what can be said depends on the room; unknown words make it raise, as some parsers do."""

    action_space = spaces.Text(30, charset="abcdefghijklmnopqrstuvwxyz ")
    observation_space = spaces.Text(100)
    rooms = {"hall": {"go north": "cellar", "wait": "hall"}, "cellar": {"go south": "hall", "dig": "gold"}, "gold": {}}

    def __init__(self, tell: bool = True) -> None:
        self.tell = tell

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, list[str]]]:
        super().reset(seed=seed)
        self.at = (options or {}).get("room", "hall")
        return self.seen()

    def seen(self) -> tuple[str, dict[str, list[str]]]:
        return f"you are in the {self.at}", {"admissible_commands": list(self.rooms[self.at])} if self.tell else {}

    def step(self, said: Any) -> tuple[Any, float, Any, bool, Any]:
        if said == "shout":
            raise ConnectionResetError("the server is gone")
        if said not in self.rooms[self.at]:
            raise ValueError(f"I do not know how to {said}")
        self.at = self.rooms[self.at][said]
        seen, info = self.seen()
        return seen, float(self.at == "gold"), self.at == "gold", False, info


gymnasium.register(id="tests/Cave-v0", entry_point=Cave, disable_env_checker=True)


async def test_admissible_commands_reach_the_schema_and_the_text_of_each_state() -> None:
    env = await suite("gym:tests/Cave-v0").open()
    first = await env.reset(suite("gym:tests/Cave-v0").tasks("train", 1)[0], 0)
    assert first.text == "you are in the hall\nallowed now: go north | wait"
    at_hall = await env.snapshot()
    assert (await env.actions())[0].parameters["properties"]["action"]["enum"] == ["go north", "wait"]
    with pytest.raises(InvalidAction, match="'dig' is not one of"):
        await env.step(Action.of("act", action="dig"), 0)
    await env.step(Action.of("act", action="go north"), 0)
    assert (await env.actions())[0].parameters["properties"]["action"]["enum"] == ["go south", "dig"]
    await env.restore(at_hall)
    assert (await env.actions())[0].parameters["properties"]["action"]["enum"] == ["go north", "wait"]
    await env.close()


async def test_a_mask_reaches_the_schema() -> None:
    env = await suite("gym:Taxi-v4").open()
    await env.reset(suite("gym:Taxi-v4").tasks("train", 1)[0], 0)
    allowed = (await env.actions())[0].parameters["properties"]["action"]["enum"]
    assert set(allowed) < set(range(6))
    with pytest.raises(InvalidAction, match="is not one of"):
        await env.step(Action.of("act", action=min(set(range(6)) - set(allowed))), 0)
    await env.close()


async def test_a_command_that_makes_the_environment_raise_is_shown_and_the_search_goes_on() -> None:
    found = gym_suite("tests/Cave-v0", tell=False, horizon=4)
    said = ["go north", "sing", "dig", "wait"]
    tree = await search(
        found.tasks("train", 1)[0], found,
        ScriptedPolicy(lambda task, turns, tools, rng: f'act {{"action": "{rng.choice(said)}"}}'),
        rule=best_first(3, 3), budget=Budget(expansions=12), settings=Settings(close=True, max_tokens=99),
    )  # fmt: skip
    texts = [seen.text for seen in tree.observation if seen]
    assert "error: ValueError: I do not know how to sing" in texts
    assert tree.exact and all(f is None for f in tree.fault)
    assert max(tree.outcome_of(i) for i in tree.leaves()) == 1.0


async def test_a_connection_that_breaks_in_a_step_is_a_fault_and_no_answer() -> None:
    found = gym_suite("tests/Cave-v0", tell=False, horizon=4)
    tree = await search(
        found.tasks("train", 1)[0], found, ScriptedPolicy(lambda *_: 'act {"action": "shout"}'),
        budget=Budget(expansions=1), settings=Settings(max_tokens=99),
    )  # fmt: skip
    assert any("the server is gone" in fault for fault in tree.fault if fault)


# -- prices and sizes -------------------------------------------------------------------------------------------------


class Heavy(gymnasium.Env):  # type: ignore[misc]
    """Ten milliseconds a step, and a copy that takes far longer."""

    action_space, observation_space = spaces.Discrete(3), spaces.Discrete(1000)
    copies = steps = 0

    def __init__(self, copy_s: float = 0.3, step_s: float = 0.01, words: int = 0) -> None:
        self.kept: list[Any]
        self.copy_s, self.step_s, self.words, self.kept = copy_s, step_s, words, []

    def __deepcopy__(self, memo: Any) -> Heavy:
        Heavy.copies += 1
        time.sleep(self.copy_s)
        made = type(self)(self.copy_s, self.step_s, self.words)
        made.n, made.kept = self.n if hasattr(self, "n") else 0, [*map(np.copy, self.kept)]
        return made

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.n, self.kept = 0, []
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        Heavy.steps += 1
        time.sleep(self.step_s)
        self.n = 3 * self.n + int(action)
        self.kept.append(np.zeros(self.words))
        return self.n, 0.0, False, False, {}


gymnasium.register(id="tests/Heavy-v0", entry_point=Heavy, disable_env_checker=True)


def chooser(task: Task, turns: Any, tools: Any, rng: Random) -> str:
    return f'act {{"action": {rng.randrange(3)}}}'


async def tree_of(found: Suite, expansions: int = 6) -> Tree:
    pool = Pool(found.open, 1)
    tree = await search(
        found.tasks("train", 1)[0], pool, ScriptedPolicy(chooser), rule=best_first(2, 3),
        budget=Budget(expansions=expansions), settings=Settings(max_tokens=99),
    )  # fmt: skip
    await pool.close()
    return tree


def shape(tree: Tree) -> list[Any]:
    """What a tree is, but for the names of its nodes, which hold the suite's."""
    return [
        (tree.parent[i], tree.text[i], not_none(tree.observation[i]).text, tree.status[i]) for i in range(len(tree))
    ]


async def test_a_copy_that_costs_more_than_the_steps_again_is_not_made() -> None:
    Heavy.copies = 0
    dear = await tree_of(gym_suite("tests/Heavy-v0", horizon=5))
    assert Heavy.copies == 1  # the one that is made to learn its price
    Heavy.copies = 0
    cheap = await tree_of(gym_suite("tests/Heavy-v0", horizon=5, copy_s=0.0, step_s=0.02))
    assert Heavy.copies > 5
    assert shape(dear) == shape(cheap)  # no price shows in a tree


async def test_a_deep_state_is_copied_once_its_steps_cost_more_than_the_copy() -> None:
    Heavy.copies = Heavy.steps = 0
    found = gym_suite("tests/Heavy-v0", horizon=99, copy_s=0.03, step_s=0.01)
    env = await found.open()
    await env.reset(found.tasks("train", 1)[0], 0)
    held = []
    for i in range(20):
        shown = (await env.step(Action.of("act", action=i % 3), i)).observation
        held.append((await env.snapshot(), shown))
    assert 1 < Heavy.copies < 12
    before = Heavy.steps
    for snapshot, shown in reversed(held):
        assert await env.restore(snapshot) == shown
    assert Heavy.steps - before < 20 * 8  # from the nearest copy, not from the start
    await env.close()


async def test_the_steps_lead_back_after_the_copies_were_dropped() -> None:
    found = gym_suite("tests/Heavy-v0", horizon=99, copy_s=0.01, step_s=0.005)
    env, other = await found.open(), await found.open()
    await env.reset(found.tasks("train", 1)[0], 0)
    held = []
    for i in range(9):
        shown = (await env.step(Action.of("act", action=i % 3), i)).observation
        held.append((await env.snapshot(), shown))
    kept = [(s, shown) for s, shown in held if s.data.env is None]
    assert 0 < len(kept) < len(held)
    del held
    for snapshot, shown in kept:
        assert await other.restore(snapshot) == shown and await env.restore(snapshot) == shown
    await env.close()
    await other.close()


async def test_a_snapshot_counts_the_bytes_that_the_environment_holds() -> None:
    found = gym_suite("tests/Heavy-v0", copy_s=0.0, step_s=0.03, words=100_000)
    env = await found.open()
    await env.reset(found.tasks("train", 1)[0], 0)
    for i in range(1, 5):
        await env.step(Action.of("act", action=0), i)
        size = (await env.snapshot()).size
        assert i * 800_000 <= size < (i + 1) * 800_000
    await env.close()


class Brittle(Heavy):
    """Can be copied while it is new, and not any more once it has begun; as games with a server are."""

    def __deepcopy__(self, memo: Any) -> Brittle:
        if hasattr(self, "n"):
            raise TypeError("cannot pickle a socket")
        return copy.copy(self)


gymnasium.register(id="tests/Brittle-v0", entry_point=Brittle, disable_env_checker=True)


async def test_an_environment_that_can_be_copied_only_while_it_is_new_is_repeated_instead() -> None:
    found = gym_suite("tests/Brittle-v0", horizon=4, step_s=0.0)
    report = await check_env(found.open, found.tasks("train", 1))
    report.raise_if_failed()
    tree = await tree_of(found)
    assert not any(tree.fault) and (await found.open()).restore_ways == {Restore.FORK, Restore.REPLAY}


class Robot(Heavy):
    """Moves something real."""

    metadata = {"sandboxed": False}


gymnasium.register(id="tests/Robot-v0", entry_point=Robot, disable_env_checker=True)


async def test_a_live_environment_is_neither_copied_nor_repeated() -> None:
    found = gym_suite("tests/Robot-v0", step_s=0.0, copy_s=0.0)
    env = await found.open()
    await env.reset(found.tasks("train", 1)[0], 0)
    assert env.restore_ways == {Restore.REPLAY} and not env.sandboxed
    assert await env.effect(Action.of("act", action=1)) is Effect.UNKNOWN
    Heavy.steps = 0
    with pytest.raises(RestoreUnsupported):
        await env.snapshot()
    for i in range(3):
        await env.step(Action.of("act", action=1), i)
    assert Heavy.steps == 3
    tree = await tree_of(found)
    assert Heavy.steps == 3 and len(tree) > 1  # the search took none


async def test_worlds_with_masks_and_errors_keep_the_contract() -> None:
    for tell in (True, False):
        found = gym_suite("tests/Cave-v0", tell=tell, horizon=4)
        report = await check_env(found.open, found.tasks("train", 1))
        report.raise_if_failed()


def test_the_message_of_a_module_that_breaks_names_the_place(games: Path) -> None:
    (games / "broken.py").write_text(textwrap.dedent("x = 1\n\nboards = {}['chess']\n"))
    with pytest.raises(TreewrightError, match=r"KeyError: 'chess' \(broken.py, line 3\)"):
        suite("gym:broken:my/Count-v0")
