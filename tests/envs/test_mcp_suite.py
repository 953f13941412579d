"""MCP servers by one line, other people's servers explored over stdio, and what a wrong line or file is told."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import mcp_scripts
import pytest
from not_none import not_none
from raw_server import RAW
from small_policies import script_policy

from treewright.envs import Action, Effect, Restore, Task, TreewrightError, suite
from treewright.envs.check import check_env
from treewright.envs.errors import SessionDied
from treewright.envs.tools.mcp_suite import mcp_suite, read_server
from treewright.envs.types import Suite, Turn
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus

if TYPE_CHECKING:
    from treewright.agent.policies.scripted import ScriptedPolicy


SERVERS = Path(os.environ.get("TREEWRIGHT_SERVERS", Path(__file__).parents[2] / ".venv-servers")) / "bin"
foreign = pytest.mark.skipif(
    not (SERVERS / "mcp-server-git").exists(),
    reason=f"no third-party MCP servers in {SERVERS}; type: make .venv-servers/.ready",
)

# A server of a few lines, which starts ten times faster than one made with the mcp library.
COUNTER = (
    RAW
    + """
log, total = open(sys.argv[1], "a"), 0

def call(name, arguments):
    global total
    n = arguments.get("n", 0)
    if n == 7 and not os.path.exists(sys.argv[1] + ".died"):
        open(sys.argv[1] + ".died", "w").close()
        print("died", file=log, flush=True)
        os._exit(1)
    total += n
    print(name, n, file=log, flush=True)
    return f"total {total}"

print("started", file=log, flush=True)
number = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
serve([
    {"name": "get", "inputSchema": {"type": "object", "properties": {}}, "annotations": {"readOnlyHint": True}},
    {"name": "add", "inputSchema": number, "annotations": {"readOnlyHint": False, "destructiveHint": False}},
], call)
"""
)


def toml(folder: Path, text: str) -> str:
    path = folder / "server.toml"
    path.write_text(text)
    return f"mcp:{path}"


@pytest.fixture
def counter(tmp_path: Path) -> str:
    (tmp_path / "counter.py").write_text(COUNTER)
    return shlex.join(mcp_scripts.command(tmp_path / "counter.py", tmp_path / "log"))


async def run(
    found: Suite, policy: ScriptedPolicy, task: Task, expansions: int, sessions: int = 1, draws: int = 3, **options: Any
) -> Tree:
    from treewright.search.restore import Pool

    pool = Pool(found.open, sessions)
    try:
        return await search(
            task, pool, policy, rule=best_first(2, draws), budget=Budget(expansions=expansions),
            settings=Settings(max_tokens=400, **options),
        )  # fmt: skip
    finally:
        await pool.close()


def healthy(tree: Tree) -> bool:
    bad = {NodeStatus.FAULT, NodeStatus.UNREACHABLE}
    return [i for i in range(len(tree)) if tree.status[i] in bad] == []


# -- one line ---------------------------------------------------------------------------------------------------------


async def test_one_line_is_a_suite_whose_hints_are_believed_only_when_the_line_says_so(counter: str) -> None:
    for flags, effects in [("", "unknown"), ("--trust-hints --sandboxed ", "read")]:
        found = suite(f"mcp:{flags}{counter}")
        (task,) = found.tasks("train", 5)
        assert (found.name, task.suite) == (f"mcp:{flags}{counter}",) * 2
        env = await found.open()
        await env.reset(task, 0)
        assert {s.name: s.effect for s in await env.actions()}["get"] is Effect(effects)
        assert env.sandboxed is bool(flags)
        await env.close()


async def test_the_journal_world_keeps_the_whole_contract(counter: str) -> None:
    plan = [Action.of("add", n=1), Action.of("get"), Action.of("done", answer="1")]
    await kept(mcp_suite(f"--trust-hints --sandboxed {counter}"), plan, None)


async def test_a_server_that_dies_in_a_search_is_restarted_and_the_node_restored_by_its_state_changing_calls(
    counter: str, tmp_path: Path
) -> None:
    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        return ['add {"n": 1}', "get {}", 'add {"n": 7}', 'done {"answer": ""}'][len(turns)]

    found = mcp_suite(f"--trust-hints --sandboxed {counter}")
    tree = await run(found, script_policy(script), found.tasks("train", 1)[0], 6)
    assert healthy(tree)
    path = [not_none(tree.observation[i]).text for i in tree.path(tree.leaves()[0])]
    assert path == ["ready", "total 1", "total 1", "total 8", "done"]
    log = (tmp_path / "log").read_text().split("\n")
    # After the death: a start, the probe's look at the first state, the one addition again, the addition that was cut.
    assert log[log.index("died") + 1 :][:4] == ["started", "get 0", "add 1", "add 7"]


async def test_tasks_and_a_reward_function_make_it_a_suite_to_train_on(
    counter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"id": "three", "goal": "reach 3", "truth": {"total": 3}}\n')
    (tmp_path / "judge_counter.py").write_text(
        "def reward(task, history):\n    return history[-2].observation.text == f'total {task.truth[\"total\"]}'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = f'command = "{counter}"\neffects = {{add = "reversible", get = "read"}}\nsandboxed = true\n'
    text += 'tasks = "tasks.jsonl"\nreward = "judge_counter:reward"\nend = "finish"\n'

    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        return str(Action.of("add", n=rng.randrange(1, 4))) if not turns else 'finish {"answer": ""}'

    found = suite(toml(tmp_path, text))
    tree = await run(found, script_policy(script), found.tasks("train", 1)[0], 8, draws=12)  # seeds differ by folder
    assert healthy(tree)
    outcomes = {not_none(tree.observation[tree.parent[i]]).text: tree.outcome_of(i) for i in tree.leaves()}
    assert len(outcomes) > 1 and all(reward == float(seen == "total 3") for seen, reward in outcomes.items())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mcp:", "names no server"),
        ("mcp:--trust-hint x", "no option --trust-hint; did you mean --trust-hints"),
        ("mcp:x 'y", "No closing quotation"),
        ("mcp:no-such-program --fast", "no program 'no-such-program'; install it"),
        ("mcp:/nowhere/uvx mcp-server-time", "no program '/nowhere/uvx'; it comes with uv, type: pip install uv"),
        ("mcp:/nowhere/npx -y thing", "no program '/nowhere/npx'; it comes with Node.js"),
        ("mcp:/nowhere/docker run x", "no program '/nowhere/docker'; install Docker"),
        ("mcp:nowhere.toml", "cannot read the server file nowhere.toml"),
        ("mpc:x", "did you mean 'mcp:'"),
    ],
)
def test_a_wrong_line_is_told_what_to_write(spec: str, message: str) -> None:
    with pytest.raises(TreewrightError, match=message):
        suite(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("comand = 'x'", "no field 'comand'; did you mean 'command'"),
        ("command = ", "server.toml is not TOML: Invalid value"),
        ("command = 'x'\nurl = 'http://y'", "either 'command' or 'url'"),
        ("trust_hints = true", "either 'command' or 'url'"),
        ("command = ''", "field 'command' is empty"),
        ("command = 3", "field 'command' = 3: Input should be a valid string"),
        ("command = 'x'\ndeadline = 0", "field 'deadline' = 0"),
        ("command = 'x'\neffects = {a = 'reads'}", "effects.a = 'reads' is no effect; did you mean 'read'"),
        ("command = 'x'\ntasks = 't.jsonl'", "field 'reward' is missing"),
        ("command = 'x'\nfolder = 'none'", "field 'folder' = 'none' is not a folder"),
        ("command = 'x'\nfolder = '.'", "{folder} stands in none of"),
        ("command = 'x'\ntasks = 'none.jsonl'\nreward = 'm:f'", "cannot read tasks from .*none.jsonl"),
    ],
)
def test_a_wrong_server_file_is_told_the_field(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match=message):
        suite(toml(tmp_path, text))


def test_paths_in_a_server_file_are_beside_it_and_urls_need_no_file(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    spec = toml(tmp_path, 'command = "x {folder}"\nfolder = "start"')
    assert read_server(spec.removeprefix("mcp:")).folder == tmp_path / "start"
    assert read_server("http://localhost:1/mcp").url == "http://localhost:1/mcp"


async def test_a_tool_that_is_named_as_the_ending_is_told_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "raw.py").write_text(RAW + "serve(json.loads(sys.argv[1]))")
    tools = '[{"name": "done", "inputSchema": {"type": "object"}}]'
    env = await mcp_suite(shlex.join([sys.executable, str(tmp_path / "raw.py"), tools])).open()
    with pytest.raises(TreewrightError, match="has a tool 'done', which ends the task here; give end = 'finish'"):
        await env.reset(Task("raw", "t", "go"), 0)
    await env.close()


async def test_a_program_that_speaks_no_mcp_is_named_with_what_it_said() -> None:
    env = await mcp_suite(shlex.join([sys.executable, "-c", "raise SystemExit('usage: demo FILE')"])).open()
    with pytest.raises(SessionDied, match="usage: demo FILE"):
        await env.reset(Task("x", "t", "go"), 0)
    await env.close()


# -- servers of other people ------------------------------------------------------------------------------------------

CLAUSES = ["restore_exact", "state_round_trip", "invalid_raises", "schemas"]  # a server starts in half a second or more


async def kept(found: Suite, plan: list[Action], clauses: list[str] | None = CLAUSES) -> None:
    def oracle(task: Task, history: Sequence[Turn], tools: Any) -> Action:
        return plan[min(len(history), len(plan)) - 1]

    report = await check_env(found.open, found.tasks("train", 1), oracle=oracle, clauses=clauses)
    report.raise_if_failed()


@foreign
async def test_mcp_server_time_is_explored_without_a_single_restart() -> None:
    found = mcp_suite(f"--trust-hints --sandboxed {SERVERS}/mcp-server-time")
    convert = {"source_timezone": "Asia/Tokyo", "target_timezone": "Etc/UTC"}
    await kept(found, [Action.of("convert_time", time="12:00", **convert)] * 2)
    hours = []

    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        if len(turns) == 2:
            return 'done {"answer": "x"}'
        hours.append(rng.randrange(10, 24))
        return str(Action.of("convert_time", time=f"{hours[-1]}:00", **convert))

    tree = await run(found, script_policy(script), found.tasks("train", 1)[0], 6)
    assert healthy(tree) and len(tree) > 8 and len(set(hours)) > 3
    for i in range(1, len(tree)):
        if not_none(tree.action[i]).name == "convert_time":
            assert '"time_difference": "-9.0h"' in not_none(tree.observation[i]).text
    wrong = await found.open()
    await wrong.reset(found.tasks("train", 1)[0], 0)
    refused = await wrong.step(Action.of("get_current_time", timezone="Nowhere/None"), 0)
    assert refused.observation.provenance == "error" and "Nowhere" in refused.observation.text
    await wrong.close()


@foreign
async def test_mcp_server_sqlite_is_explored_and_every_node_sees_the_rows_of_its_own_path_only(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "start").mkdir()
    base = sqlite3.connect(tmp_path / "start" / "shop.db")
    base.execute("create table item (name text)")
    base.commit()
    base.close()
    found = suite(
        toml(
            tmp_path,
            f'command = "{SERVERS}/mcp-server-sqlite --db-path {{folder}}/shop.db"\nfolder = "start"\n'
            'sandboxed = true\neffects = {read_query = "read", write_query = "reversible"}\n',
        )
    )
    insert = Action.of("write_query", query="insert into item values ('x')")
    select = Action.of("read_query", query="select name from item order by name")
    await kept(found, [insert, select, insert])

    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        if len(turns) % 2:
            return str(select)
        return str(Action.of("write_query", query=f"insert into item values ('{rng.choice('abcdefgh')}')"))

    tree = await run(found, script_policy(script), found.tasks("train", 1)[0], 14, sessions=2, in_flight=2)
    assert healthy(tree)
    looks = 0
    for i in range(1, len(tree)):
        if not_none(tree.action[i]).name == "read_query":
            above = [tree.action[j] for j in tree.path(i)[1:] if not_none(tree.action[j]).name == "write_query"]
            rows = sorted(not_none(a).arguments["query"].split("'")[1] for a in above)
            assert not_none(tree.observation[i]).text == str([{"name": row} for row in rows])
            looks += 1
    assert looks > 4


def repository(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "a.txt"], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True, env=env)
    return folder


@foreign
async def test_mcp_server_git_is_explored_in_copies_of_a_repository(tmp_path: Path) -> None:
    start = repository(tmp_path / "start")
    found = suite(
        toml(
            tmp_path,
            f'command = "{SERVERS}/mcp-server-git"\ncwd = "{{folder}}"\nfolder = "start"\nsandboxed = true\n'
            'trust_hints = true\nignore = [".git/index"]\n[env]\nGIT_CONFIG_GLOBAL = "/dev/null"\n'
            'GIT_AUTHOR_NAME = "t"\nGIT_AUTHOR_EMAIL = "t@example.org"\nGIT_AUTHOR_DATE = "2026-01-01T00:00:00"\n'
            'GIT_COMMITTER_NAME = "t"\nGIT_COMMITTER_EMAIL = "t@example.org"\n'
            'GIT_COMMITTER_DATE = "2026-01-01T00:00:00"\n',
        )
    )
    branches = Action.of("git_branch", repo_path=".", branch_type="local")
    await kept(found, [Action.of("git_create_branch", repo_path=".", branch_name="b"), branches])

    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        if len(turns) % 2:
            return str(branches)
        return str(Action.of("git_create_branch", repo_path=".", branch_name=f"b-{rng.choice('rstuv')}{len(turns)}"))

    tree = await run(found, script_policy(script), found.tasks("train", 1)[0], 5)
    assert healthy(tree)
    looks = 0
    for i in range(1, len(tree)):
        if not_none(tree.action[i]).name == "git_branch":
            above = [
                not_none(tree.action[j]).arguments
                for j in tree.path(i)[1:]
                if not_none(tree.action[j]).name == "git_create_branch"
            ]
            expected = sorted(["main", *(a["branch_name"] for a in above)])
            assert sorted(not_none(tree.observation[i]).text.replace("*", " ").split()) == expected
            looks += 1
    assert looks > 1
    with pytest.raises(FileNotFoundError):
        (start / ".git" / "refs" / "heads" / "b").read_text()


async def test_the_ways_back_of_a_url_are_the_users_word(tmp_path: Path) -> None:
    plain = await suite("mcp:http://127.0.0.1:9/mcp").open()
    assert plain.restore_ways == {Restore.NONE}
    promised = await suite(toml(tmp_path, 'url = "http://127.0.0.1:9/mcp"\nfresh = true')).open()
    assert promised.restore_ways == {Restore.STATE, Restore.REPLAY}
