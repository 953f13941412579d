"""Worlds of one's own from the command line: every kind of thing, one way for all commands, faults that stay small."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treewright.agent.cli import main as cli
from treewright.envs import TreewrightError
from treewright.search.store import TreeStore
from treewright.search.tree import Tree

ROOT = Path(__file__).parents[1]
TASKS = [
    {"id": name, "goal": "file every letter", "horizon": 4, "split": split,
     "data": {"letters": {"a": "a bill", "b": "love"}}, "truth": {"folders": {"a": "bills", "b": "love"}}}
    for name, split in (("first", "train"), ("second", "test"))
]  # fmt: skip
THINGS = """
import functools
import gymnasium
from gymnasium import spaces
from own_desk import Desk, reward
from treewright.envs import BaseEnvironment, Effect, Observation, StepResult, Task, ToolSpec
from treewright.envs.tools.world import ToolWorld
from treewright.envs.types import Suite

LETTERS = {"a": "a bill", "b": "love"}
TASK = Task("desk", "first", "file every letter", data={"letters": LETTERS})

class Plain:
    effects = {"read": "read"}
    def __init__(self, letters=LETTERS):
        self.letters, self.folders = letters, {}
    def read(self, letter: str) -> str:
        return self.letters[letter]
    def file(self, letter: str, folder: str):
        self.folders[letter] = folder
    @staticmethod
    def today() -> str:
        return "Monday"

class Env(BaseEnvironment):
    tools = [ToolSpec("file", "", {"type": "object", "properties": {"letter": {"type": "string"},
             "folder": {"type": "string"}}, "required": ["letter", "folder"]}, Effect.REVERSIBLE)]
    sandboxed = True
    async def reset(self, task, key):
        self.folders = {}
        return Observation("letters", fingerprint="0")
    async def step(self, action, key):
        self.folders[action.arguments["letter"]] = action.arguments["folder"]
        return StepResult(Observation("filed", fingerprint=str(self.folders)), float(len(self.folders) == 2),
                          len(self.folders) == 2,
                          effect=Effect.REVERSIBLE)

class Game(gymnasium.Env):
    action_space, observation_space = spaces.Discrete(2), spaces.Discrete(9)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.folders = {"a": "bills", "b": "love"}
        return 0, {}
    def step(self, action):
        return int(action), 1.0, True, False, {}

thing, env = Plain(), Env()
world = ToolWorld.of(Plain(), judge=lambda end: float(end.object.folders.get("a") == "bills"))
suite = Suite("desk", lambda split, count: [TASK], Env)
partial = functools.partial(Plain, LETTERS)
async def suite_open(): return Env()
suite = Suite("desk", lambda split, count: [TASK], suite_open)
async def opens(): return Env()
async def opens_object(): return Plain()
def makes(): return Plain()
def makes_suite(): return suite
def makes_world(): return world
def makes_env(): return Env()
def of_task(task): return Plain(task.data["letters"])
needs_two = lambda task, folder: Plain()
number = 3

FILES = ['file {"letter": "a", "folder": "bills"}', 'file {"letter": "b", "folder": "love"}',
         'done {"answer": "all are filed"}']
def clerk(task, turns, tools, rng):
    if tools[0].name == "act":
        return 'act {"action": 1}'
    return FILES[min(len(turns), 2)]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not in the search path, with modules that no other test has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    for name in ("own_desk", "own_things", "own_bad"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    shutil.copy(ROOT / "readme_world.py", "own_desk.py")
    Path("own_things.py").write_text(THINGS)
    write("tasks.jsonl", TASKS)
    return tmp_path


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("\n".join(map(json.dumps, rows)))


def call(*words: str, code: int = 0) -> str:
    done = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(cli.app, words)
    if code == 0 and done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def trees(name: str = "o") -> list[Tree]:
    store = TreeStore.open(Path("runs") / name / "trees.sqlite", read_only=True)
    found = [store.load(row.tree_id) for row in store.trees()]
    store.close()
    return found


def best(tree: Tree) -> float:
    return max(tree.outcome_of(leaf) for leaf in tree.leaves())


OWN = ("--tasks-file", "tasks.jsonl", "--reward", "own_desk:reward")
CLERK = ("--policy", "scripted:own_things:clerk")


# -- every kind of thing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thing",
    [
        "own_desk:Desk", "own_things:Plain", "own_things:thing", "own_things:world", "own_things:Env",
        "own_things:env", "own_things:suite", "own_things:opens", "own_things:opens_object", "own_things:makes",
        "own_things:makes_suite", "own_things:makes_world", "own_things:makes_env", "own_things:of_task",
        "own_things:partial", "own_things:Game",
    ],
)  # fmt: skip
def test_a_class_an_object_a_suite_or_whatever_opens_one_is_collected_with_its_reward(here: Path, thing: str) -> None:
    told = call("collect", "-n", "o", "--suites", thing, *OWN, *CLERK, "--set", "search.expansions=2")
    assert "stored in" in told
    (tree,) = trees()
    assert best(tree) == 1.0 and tree.exact, (tree.reasons, [f for f in tree.fault if f])


@pytest.mark.parametrize(
    "thing, says",
    [
        ("own_things:needs_two", "needs task, folder"),
        ("own_things:number", "is of type int"),
        ("own_things:Plan", "did you mean 'Plain'"),
        ("nowhere_at_all:Plain", "cannot import 'nowhere_at_all'"),
        ("gmy:CartPole-v1", "did you mean 'gym:'"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_one_sentence(here: Path, thing: str, says: str) -> None:
    with pytest.raises(TreewrightError, match=says):
        call("collect", "-n", "o", "--suites", thing, *OWN, *CLERK)


@pytest.mark.parametrize(
    "code, says", [("{}['x']", r"KeyError: 'x' \(own_bad.py, line 1\)"), ("def f(:", "SyntaxError")]
)
@pytest.mark.parametrize("where", ["suite", "reward", "policy"])
def test_a_module_that_breaks_while_it_is_imported_is_told_with_its_place(
    here: Path, code: str, says: str, where: str
) -> None:
    Path("own_bad.py").write_text(code)
    words = {"suite": "own_desk:Desk", "reward": "own_desk:reward", "policy": "scripted:own_things:clerk"}
    words[where] = "scripted:own_bad:f" if where == "policy" else "own_bad:f"
    with pytest.raises(TreewrightError, match=says):
        call("collect", "-n", "o", "--suites", words["suite"], "--tasks-file", "tasks.jsonl", "--reward",
             words["reward"], "--policy", words["policy"])  # fmt: skip


def test_a_class_without_tasks_says_how_tasks_are_given(here: Path) -> None:
    with pytest.raises(TreewrightError, match=r"--tasks-file FILE\.jsonl --reward MODULE:FUNCTION"):
        call("collect", "-n", "o", "--suites", "own_desk:Desk", *CLERK)


def test_an_object_without_a_reward_says_what_to_name(here: Path) -> None:
    with pytest.raises(TreewrightError, match="has no reward of its own"):
        call("collect", "-n", "o", "--suites", "own_things:Plain", "--tasks-file", "tasks.jsonl", *CLERK)


def test_a_suite_of_ones_own_needs_no_tasks_file(here: Path) -> None:
    assert "desk" in call("collect", "-n", "o", "--suites", "own_things:suite", *CLERK)
    assert best(trees()[0]) == 1.0


@pytest.mark.parametrize("thing", ["own_things:Env", "own_things:world", "own_things:Game"])
def test_a_world_that_rewards_needs_no_reward_function(here: Path, thing: str) -> None:
    call("collect", "-n", "o", "--suites", thing, "--tasks-file", "tasks.jsonl", *CLERK)
    assert best(trees()[0]) == 1.0


def test_static_methods_are_tools_and_what_the_class_prints_is_the_first_observation(here: Path) -> None:
    Path("own_bad.py").write_text(
        "def asks(task, turns, tools, rng, first):\n"
        "    assert first.text == '2 letters: a, b', first\n"
        '    return \'read {"letter": "a"}\'\n'
        "def day(task, turns, tools, rng):\n"
        "    return 'today {}' if not turns else 'done {\"answer\": \"%s\"}' % turns[-1].observation.text\n"
        "def monday(task, history):\n"
        "    return float(history[-1].action.arguments.get('answer') == 'Monday')\n"
    )
    call("collect", "-n", "o", "--suites", "own_desk:Desk", *OWN, "--policy", "scripted:own_bad:asks")
    assert not any(trees()[0].fault)
    call("collect", "-n", "d", "--suites", "own_things:Plain", "--tasks-file", "tasks.jsonl", "--reward",
         "own_bad:monday", "--policy", "scripted:own_bad:day")  # fmt: skip
    assert best(trees("d")[0]) == 1.0


def test_a_class_that_may_reach_out_says_what_to_write_in_it(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import numpy as np\n"
        "class Counts:\n"
        "    def __init__(self): self.counts = np.zeros(2)\n"
        "    def count(self, i: int): self.counts[i] += 1\n"
        'def says(task, turns, tools, rng): return \'count {"i": 1}\' if not turns else \'done {"answer": "x"}\'\n'
        "def reward(task, history, counts): return float(counts.counts[1])\n"
    )
    words = ("--suites", "own_bad:Counts", "--tasks-file", "tasks.jsonl", "--reward", "own_bad:reward", "--policy",
             "scripted:own_bad:says")  # fmt: skip
    Path("own_bad.py").write_text(code)
    call("collect", "-n", "o", *words)
    assert "uses numpy" in caplog.text and "say in its class sandboxed = True" in caplog.text
    Path("own_bad.py").write_text(code.replace("class Counts:", "class Counts:\n    sandboxed = True"))
    del sys.modules["own_bad"]
    caplog.clear()
    call("collect", "-n", "p", *words)
    assert not caplog.text and best(trees("p")[0]) == 1.0


# -- one way for every command ----------------------------------------------------------------------------------------

TOML = """
[worlds]
suites = ["own_desk:Desk"]
tasks_file = "tasks.jsonl"
reward = "own_desk:reward"
[policy]
spec = "scripted:own_things:clerk"
"""


def test_one_toml_serves_run_collect_and_eval(here: Path) -> None:
    Path("own.toml").write_text(TOML)
    assert "stored in" in call("collect", "-n", "o", "-c", "own.toml")
    assert "100.0 %" in call("eval", "-c", "own.toml")
    for name in ("own/first", "own/0", "own_desk:Desk/first"):
        assert "love" in call("run", name, "-c", "own.toml", "--split", "train")


def test_the_same_words_serve_run_collect_and_eval(here: Path) -> None:
    words = (*OWN, *CLERK)
    assert "100.0 %" in call("eval", "--suites", "own_desk:Desk", *words)
    assert "love" in call("run", "own_desk:Desk/0", "--split", "train", *words)
    assert "stored in" in call("collect", "-n", "o", "--suites", "own_desk:Desk", *words)


def test_run_finds_an_id_in_either_split_and_an_index_in_the_only_one(here: Path) -> None:
    write("tasks.jsonl", TASKS[:1])
    for name in ("own_desk:Desk/first", "own_desk:Desk/0", "own_desk:Desk"):
        assert "love" in call("run", name, *OWN, *CLERK)
    with pytest.raises(TreewrightError, match='"split": "test"'):
        call("run", "own_desk:Desk/0", "--split", "test", *OWN, *CLERK)
    with pytest.raises(TreewrightError, match="no tasks of its own"):
        call("run", "own_desk:Desk/first", *CLERK)


def test_run_takes_a_corpus_and_questions(here: Path) -> None:
    write("docs.jsonl", [{"id": "d1", "title": "Ada", "text": "Ada Lovelace was born in London."}])
    write("asked.jsonl", [{"question": "Where was Ada born?", "answers": ["London"], "split": "train"}])
    Path("own_bad.py").write_text('def says(task, turns, tools, rng):\n    return \'answer {"text": "London"}\'\n')
    told = call("run", "own/0", "--split", "train", "--corpus", "docs.jsonl", "--questions", "asked.jsonl",
                "--policy", "scripted:own_bad:says")  # fmt: skip
    assert "London" in told


def test_own_tasks_for_several_worlds_are_refused(here: Path) -> None:
    with pytest.raises(TreewrightError, match="exactly one world"):
        call("collect", "-n", "o", *OWN, *CLERK)


# -- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, says",
    [
        ("async def reward(task, history): return 1.0", "is async; write it as a plain function"),
        ("def reward(task): return 1.0", r"takes \(task\); it must take \(task, history\)"),
        ("class Judge:\n    async def __call__(self, task, history): return 1.0\nreward = Judge()", "is async"),
    ],
)
def test_a_reward_that_cannot_be_asked_is_refused_before_anything_is_opened(here: Path, code: str, says: str) -> None:
    Path("own_bad.py").write_text(code)
    with pytest.raises(TreewrightError, match=says):
        call("collect", "-n", "o", "--suites", "own_desk:Desk", "--tasks-file", "tasks.jsonl", "--reward",
             "own_bad:reward", *CLERK)  # fmt: skip
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "body",
    ["return task.truth['grade']", "return 'much'", "return async_reward()"],
    ids=["KeyError", "a text", "a coroutine"],
)
def test_a_reward_that_fails_on_one_task_costs_that_task_alone(here: Path, body: str) -> None:
    Path("own_bad.py").write_text(
        "async def async_reward(): return 1.0\n"
        f"def reward(task, history):\n    if task.id == 'bad':\n        {body}\n    return 1.0\n"
    )
    write("tasks.jsonl", [{**TASKS[0], "id": name} for name in ("one", "bad", "two")])
    told = call("collect", "-n", "o", "--suites", "own_desk:Desk", "--tasks-file", "tasks.jsonl", "--reward",
                "own_bad:reward", *CLERK)  # fmt: skip
    assert "in 1 of 3 trees failed and are masked" in told and "reward function of 'own'" in told
    found = {tree.task.id: tree for tree in trees()}
    assert [found[name].exact for name in ("one", "bad", "two")] == [True, False, True]
    assert best(found["one"]) == best(found["two"]) == 1.0
    assert "stored in" in call("collect", "-n", "o", "--suites", "own_desk:Desk", "--tasks-file", "tasks.jsonl",
                               "--reward", "own_bad:reward", *CLERK)  # fmt: skip


# -- worlds that raise ------------------------------------------------------------------------------------------------

BAD = """
from treewright.envs import BaseEnvironment, Effect, Observation, StepResult, ToolSpec
NO = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
class Env(BaseEnvironment):
    tools = [ToolSpec("act", "acts", NO, Effect.REVERSIBLE)]
    sandboxed = True
    async def reset(self, task, key):
        self.task, self.n = task, 0
        self.fail("reset")
        return Observation("start", fingerprint="0")
    async def step(self, action, key):
        self.n += 1
        if self.bad("type") and self.n == 2:
            return "three", 1.0
        self.fail("step")
        return StepResult(Observation(f"n {self.n}", fingerprint=f"{self.n}"), 0.0, self.n > 2,
                          effect=Effect.REVERSIBLE)
    async def actions(self):
        self.fail("actions")
        return self.tools
    def bad(self, where):
        return self.task.data.get("bad") == where
    def fail(self, where):
        if self.bad(where) and (self.n == 2 or where == "reset"):
            raise {"step": KeyError, "actions": ZeroDivisionError, "reset": OSError}[where]("row 7")
def reward(task, history): return float(len(history) > 3)
def pol(task, turns, tools, rng): return 'act {"n": %d}' % rng.randrange(3)
def lost(task, turns, tools, rng): return 'act {"n": %d}' % [1][len(turns) // 2]
"""


@pytest.mark.parametrize(
    "where, says",
    [
        ("step", "step raised KeyError: 'row 7' (own_bad.py, line "),
        ("actions", "actions raised ZeroDivisionError: row 7 (own_bad.py, line "),
        ("type", "step gave a tuple, not a treewright.envs.StepResult"),
        ("reset", "reset raised OSError: row 7 (own_bad.py, line "),
    ],
)
def test_what_a_world_raises_is_one_fault_counted_and_the_rest_is_collected(here: Path, where: str, says: str) -> None:
    Path("own_bad.py").write_text(BAD)
    rows = [{"id": f"t{i}", "goal": "go", "horizon": 4, "data": {"bad": where if i == 2 else ""}} for i in range(5)]
    write("tasks.jsonl", rows)
    line = ("collect", "-n", "o", "--suites", "own_bad:Env", "--tasks-file", "tasks.jsonl", "--reward",
            "own_bad:reward", "--policy", "scripted:own_bad:pol")  # fmt: skip
    for _ in range(2):
        told = call(*line)
        assert says in told and "1 of 5 trees" in told, told
    exact = [tree.exact for tree in sorted(trees(), key=lambda t: t.task.id)]
    assert exact == [True, True, False, False, True, True], "the lost one is grown anew, and lost again"


def test_an_effect_that_cannot_be_told_in_a_live_world_is_a_fault_and_nothing_is_executed(here: Path) -> None:
    Path("own_bad.py").write_text(
        BAD.replace("sandboxed = True", "sandboxed = False").replace(
            "    def bad(self", "    async def effect(self, action):\n        raise LookupError('?')\n    def bad(self"
        )
    )
    write("tasks.jsonl", [{"id": "t0", "goal": "go", "horizon": 4}])
    with pytest.raises(TreewrightError, match=r"effect raised LookupError: \? \(own_bad\.py, line "):
        call("collect", "-n", "o", "--suites", "own_bad:Env", "--tasks-file", "tasks.jsonl", "--reward",
             "own_bad:reward", "--policy", "scripted:own_bad:pol")  # fmt: skip
    assert trees()[0].spent.env_steps == 0


def test_a_script_that_raises_is_a_fault_of_the_policy_with_its_place(here: Path) -> None:
    Path("own_bad.py").write_text(BAD)
    write("tasks.jsonl", [{"id": "t0", "goal": "go", "horizon": 4}])
    with pytest.raises(TreewrightError, match=r"IndexError: list index out of range \(own_bad\.py, line 28\)"):
        call("collect", "-n", "o", "--suites", "own_bad:Env", "--tasks-file", "tasks.jsonl", "--reward",
             "own_bad:reward", "--policy", "scripted:own_bad:lost")  # fmt: skip


# -- tokens of a draw -------------------------------------------------------------------------------------------------

LONG = 'file {"letter": "a", "folder": "bills' + "x" * 200 + '"}'


def said_whole(name: str = "o") -> list[Any]:
    return [LONG in text for tree in trees(name) for text in tree.text[1:2]]


def test_a_long_action_is_drawn_whole_in_a_world_of_ones_own(here: Path) -> None:
    Path("own_bad.py").write_text(f"def says(task, turns, tools, rng):\n    return {LONG!r}\n")
    told = call("collect", "-n", "o", "--suites", "own_desk:Desk", *OWN, "--policy", "scripted:own_bad:says")
    assert said_whole() == [True] and "were cut" not in told


@pytest.mark.parametrize("command", ["collect", "eval", "run"])
def test_the_users_number_of_tokens_wins_and_draws_that_it_cuts_are_counted(here: Path, command: str) -> None:
    Path("own_bad.py").write_text(f"def says(task, turns, tools, rng):\n    return {LONG!r}\n")
    words = (*OWN, "--policy", "scripted:own_bad:says", "--set", "search.max_tokens=100")
    first = {"collect": ("collect", "-n", "o", "--suites", "own_desk:Desk"), "run": ("run", "own_desk:Desk/0"),
             "eval": ("eval", "--suites", "own_desk:Desk")}  # fmt: skip
    told = call(*first[command], *words)
    assert "draws were cut at 100 tokens" in told and "--set search.max_tokens=200" in told


def test_the_users_number_wins_over_that_of_a_built_in_suite_and_of_a_corpus(here: Path) -> None:
    Path("own_bad.py").write_text("def says(task, turns, tools, rng):\n    return 'x' * 300\n")
    policy = ("--policy", "scripted:own_bad:says")
    told = call("collect", "-n", "o", "--suites", "maze", "--tasks", "1", *policy)
    assert "were cut at 24 tokens" in told
    told = call("collect", "-n", "p", "--suites", "maze", "--tasks", "1", *policy, "--set", "search.max_tokens=400")
    assert "were cut" not in told
    write("docs.jsonl", [{"id": "d1", "title": "Ada", "text": "Ada Lovelace was born in London."}])
    write("asked.jsonl", [{"question": "Where was Ada born?", "answers": ["London"], "split": "train"}])
    told = call("collect", "-n", "q", "--corpus", "docs.jsonl", "--questions", "asked.jsonl", *policy)
    assert "were cut" not in told
