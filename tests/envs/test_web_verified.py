"""WebArena-Verified: the trace that the gate writes, the benchmark's tasks from a file, and its own evaluators."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tomllib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from speed import slowness
from verified_tasks import TASKS

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.episode import run_episode
from treewright.envs import Action, TreewrightError
from treewright.envs.errors import EnvFault
from treewright.envs.registry import suite
from treewright.envs.types import Environment, Observation, Suite, Task, ToolSpec
from treewright.envs.web.bazaar import SITE, close_bazaar
from treewright.envs.web.bazaar_world import World
from treewright.envs.web.browser import find_chromium
from treewright.envs.web.market_site import TOKEN_HEADER
from treewright.envs.web.trace import Requested
from treewright.envs.web.verified import Judge, SiteAt, VerifiedEnvironment, VerifiedFile
from treewright.envs.web.webarena import SEED
from treewright.search.engine import Settings
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget, Exchange

pytestmark = pytest.mark.asyncio(loop_scope="module")
needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)
REAL = os.environ.get("TREEWRIGHT_WEBARENA_VERIFIED", "")
needs_package = pytest.mark.skipif(not REAL, reason="the package has versions of its own: make test-webarena-verified")
TOKEN = "b6f1c0ffee"
STEPS: dict[int, list[tuple[str, str]]] = {
    0: [],
    1: [("click", "orders")],
    2: [("colour", "red"), ("click", "show")],
    3: [("click", "approve")],
    4: [("pieces", "2"), ("click", "add to cart")],
}
WRONG: dict[int, list[tuple[str, str]]] = {
    0: [],
    1: [("click", "orders"), ("click", "desk")],
    2: [("colour", "blue"), ("click", "show")],
    3: [("click", "reject")],
    4: [("pieces", "3"), ("click", "add to cart")],
}
# What answers as the package's process does, with as much of it as the form of an answer.
STAND_IN = """
import json, sys
rows = json.load(open(json.loads(sys.argv[-1])["test_data_file"]))
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["op"] == "tasks":
        told = [{"task_id": r["task_id"], "sites": [s.upper() for s in r["sites"]], "start_urls": r["start_urls"],
                 "intent": r["intent"]} for r in rows]
        answer = {"tasks": told}
    elif asked["response"] == "die":
        sys.exit(1)
    elif asked["response"] == "raise":
        answer = {"error": "KeyError: 'url'"}
    else:
        open("asked.json", "w").write(line)
        answer = {"score": 1.0, "status": "error" if asked["response"] == "break" else "success", "why": "so"}
    print(json.dumps(answer), flush=True)
"""


def said(kind: str, data: Any = None) -> str:
    return json.dumps({"task_type": kind, "status": "SUCCESS", "retrieved_data": data, "error_details": None})


def sites(folder: Path, python: str, **more: str) -> Path:
    """A file that names the bazaar as the benchmark's SHOPPING."""
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    given = {"tasks": "tasks.json", "python": python, **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
    lines += ["[sites.SHOPPING]", f'url = "{SITE.url.rstrip("/")}"', f'headers = {{"{TOKEN_HEADER}" = "{TOKEN}"}}']
    (folder / "sites.toml").write_text("\n".join(lines))
    return folder / "sites.toml"


def stand_in(folder: Path) -> str:
    """An interpreter that runs the stand-in, whatever script it is given."""
    (folder / "stand_in.py").write_text(STAND_IN)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncd {folder}\nexec {sys.executable} stand_in.py "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bazaar() -> AsyncIterator[None]:
    await SITE.start()
    yield
    await close_bazaar()


async def play(env: VerifiedEnvironment, number: int, steps: list[tuple[str, str]], tasks: Any) -> None:
    SITE.enter(TOKEN, World.build(SEED, "test"))
    await env.reset(tasks[number], 0)
    for what, name in steps:
        wanted = name if what == "click" else what
        ref = next(e.ref for e in env._view.elements.values() if e.name == wanted)
        await env.step(Action.of("click", ref=ref) if what == "click" else Action.of("select", ref=ref, option=name), 0)


async def opened(made: Suite) -> tuple[VerifiedEnvironment, Any]:
    env: Environment = await made.open()
    assert isinstance(env, VerifiedEnvironment)
    env.patience *= slowness()
    return env, made.tasks("test", 9)


@needs_browser
async def test_the_gate_writes_what_was_asked_posted_and_answered_and_a_node_keeps_its_own_trace(
    bazaar: None, tmp_path: Path
) -> None:
    made = suite(f"webarena-verified:{sites(tmp_path, stand_in(tmp_path))}")
    env, tasks = await opened(made)
    try:
        assert "Put two of these into the cart" in tasks[4].goal and '"task_type"' in tasks[4].goal
        await play(env, 4, STEPS[4], tasks)
        kept = await env.snapshot()
        assert (await env.step(Action.of("goto", path="/desk"), 0)).observation.text.startswith('page "bazaar" /desk')
        await env.restore(kept)
        assert (await env.step(Action.of("answer", text=said("mutate")), 0)).reward == 1.0
        asked = json.loads((tmp_path / "asked.json").read_text())
        assert asked["task_id"] == 4 and asked["response"] == said("mutate")
        seen = [e for e in asked["trace"] if not e["request"]["url"].endswith("favicon.ico")]
        told = [
            (e["request"]["method"], e["request"]["url"].removeprefix(SITE.url), e["response"]["status"]) for e in seen
        ]
        assert told == [("GET", "p/white-bag-medium", 200), ("POST", "cart/add", 303), ("GET", "cart", 200)]
        post = seen[1]
        assert post["request"]["postData"]["mimeType"] == "application/x-www-form-urlencoded"
        assert post["request"]["postData"]["text"] == "item=white-bag-medium&pieces=2"
        assert post["response"]["redirectURL"] == "/cart"
        await play(env, 1, [], tasks)
        assert len([e for e in env.trace.entries if "favicon" not in e["request"]["url"]]) == 1  # of this episode alone
        with pytest.raises(EnvFault, match="could not judge: so"):
            await env.step(Action.of("answer", text="break"), 0)
        with pytest.raises(EnvFault, match="ended or took more than 120 s"):
            await env.step(Action.of("answer", text="die"), 0)
        assert (await env.step(Action.of("answer", text="x"), 0)).reward == 1.0  # by a new process
    finally:
        await env.close()
        if made.close is not None:
            await made.close()


async def test_an_answer_is_read_as_it_was_sent_packed_in_pieces_or_not_at_all() -> None:
    asked = Requested(
        "GET", "http://h/a?b=1&b=2&c=", b"Referer: http://h/\r\nCookie: sid=secret\r\nAuthorization: x\r\n\r\n"
    )
    assert asked.entry()["response"]["status"] == 0
    assert [h["name"] for h in asked.entry()["request"]["headers"]] == ["Referer"]
    assert [(q["name"], q["value"]) for q in asked.entry()["request"]["queryString"]] == [
        ("b", "1"),
        ("b", "2"),
        ("c", ""),
    ]
    body = b'4\r\n{"a"\r\n4\r\n: 1}\r\n0\r\n\r\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: m=a%20b; Path=/\r\n"
    asked.answer += head + b"Transfer-Encoding: chunked\r\n\r\n" + body
    found = asked.entry()["response"]
    assert json.loads(found["content"]["text"]) == {"a": 1} and found["cookies"] == [{"name": "m", "value": ""}]
    import gzip

    packed = gzip.compress(b'{"a": 2}')
    again = Requested("GET", "http://h/", b"")
    again.answer += head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    assert json.loads(again.entry()["response"]["content"]["text"]) == {"a": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "field 'sites': Field required"),
        ('[sites.SHOPPING]\nurl = "https://h"', "cannot look into TLS; give an address that begins with http://"),
        ('[sites.SHOPPING]\nurl = "http://h"\nstorage = "no.json"', "sites.SHOPPING.storage: .*no.json"),
        ('tasks = "no.json"\n[sites.SHOPPING]\nurl = "http://h"', "field 'tasks': there is no file .*no.json"),
        ('[sites.SHOPPING]\nurl = "http://h"', r"pip install webarena-verified==1\.2\.3; then write python"),
        (
            'python = "none"\n[sites.SHOPPING]\nurl = "http://h"',
            "none cannot be run: No such file .* it needs the pack",
        ),
        (
            f'python = "{sys.executable}"\n[sites.SHOPPING]\nurl = "http://h"',
            "webarena_verified'; it needs the package",
        ),
    ],
)
async def test_what_is_wrong_with_the_file_is_named_with_what_to_write(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sites.toml").write_text(text)
    with pytest.raises(TreewrightError, match=message):
        suite(f"webarena-verified:{tmp_path / 'sites.toml'}")


async def test_the_docs_name_every_field_and_their_file_is_right() -> None:
    text = (Path(__file__).parents[2] / "docs" / "web.md").read_text()
    block = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    found = VerifiedFile.model_validate(tomllib.loads(block))
    assert found.sandboxed and found.sites["SHOPPING"].storage == Path("shopping.json")
    named = [*VerifiedFile.model_fields, *SiteAt.model_fields]
    assert [name for name in named if not re.search(rf"^\W*{name}\b", block, re.M)] == ["hosts"] and "`hosts`" in text


async def test_the_bare_name_says_that_a_file_belongs_behind_it() -> None:
    with pytest.raises(TreewrightError, match="behind a colon: webarena-verified:…"):
        suite("webarena-verified")


@needs_package
async def test_the_packages_own_tasks_are_counted_by_site_and_subset(tmp_path: Path) -> None:
    await SITE.start()
    path = sites(tmp_path, REAL)
    path.write_text(path.read_text().replace('tasks = "tasks.json"\n', ""))
    with pytest.warns(UserWarning, match=r"of 812 tasks left out: .* need GITLAB"):
        every = suite(f"webarena-verified:{path}").tasks("test", 812)
    path.write_text('subset = "hard"\n' + path.read_text())
    with pytest.warns(UserWarning, match=r"of 258 tasks left out"):
        hard = suite(f"webarena-verified:{path}").tasks("test", 812)
    assert len(every) > len(hard) > 0 and {t.id for t in hard} < {t.id for t in every}
    path.write_text(path.read_text().replace("hard", "easy"))
    with pytest.raises(TreewrightError, match="there is no subset 'easy'; known: hard, non-hard"):
        suite(f"webarena-verified:{path}")


@needs_package
@needs_browser
async def test_the_packages_evaluators_tell_right_from_wrong_on_the_bazaar(bazaar: None, tmp_path: Path) -> None:
    made = suite(f"webarena-verified:{sites(tmp_path, REAL)}")
    env, tasks = await opened(made)
    kinds = {0: "retrieve", 1: "navigate", 2: "navigate", 3: "mutate", 4: "mutate"}
    try:
        for number, kind in kinds.items():
            data = ["dan"] if number == 0 else None
            rewards = []
            for steps, answer in (
                (STEPS[number], said(kind, data)),
                (WRONG[number], said(kind, ["ivo"] if number == 0 else None)),
                (STEPS[number], said("retrieve" if number else "mutate", data)),
                (STEPS[number], "it is done"),
                (STEPS[number], '{"task_type": 1, "status": 2}'),
            ):
                await play(env, number, steps, tasks)
                rewards.append((await env.step(Action.of("answer", text=answer), 0)).reward)
            assert rewards == [1.0, 0.0, 0.0, 0.0, 0.0], number
    finally:
        await env.close()
        if made.close is not None:
            await made.close()


@needs_package
async def test_a_package_that_does_not_answer_is_a_fault_and_is_started_anew(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
    judge = Judge(Path(REAL), {"test_data_file": str(tmp_path / "tasks.json")}, patience=0.01)
    with pytest.raises(EnvFault, match="ended or took more than 0 s"):
        await asyncio.to_thread(judge.ask, op="tasks", subset="")
    judge.patience = 60.0
    assert len((await asyncio.to_thread(judge.ask, op="tasks", subset=""))["tasks"]) == len(TASKS)
    judge.close()


@pytest.mark.parametrize("answer", ["break", "raise", "die"])
async def test_a_package_that_fails_while_it_judges_is_a_fault_and_no_reward(answer: str, tmp_path: Path) -> None:
    python = stand_in(tmp_path)
    (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
    judge = Judge(Path(python), {"test_data_file": str(tmp_path / "tasks.json")})
    shop = {"SHOPPING": SiteAt(url="http://127.0.0.1:1")}
    env, task = VerifiedEnvironment(VerifiedFile(sites=shop), judge), Task("s", "t", "g", data={"number": 1})
    try:
        assert await env.score(task, said("RETRIEVE")) == 1.0
        with pytest.raises(EnvFault):
            await env.score(task, answer)
        assert await env.score(task, said("RETRIEVE")) == 1.0, "and it is there again"
    finally:
        judge.close()


def approving(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: Random, first: Observation) -> str:
    seen = turns[-1].observation.text if turns else first.text
    button = re.search(r'button "approve" (e\d+)', seen)
    return f'click {{"ref": "{button[1]}"}}' if button else f"answer {json.dumps({'text': said('mutate')})}"


@needs_browser
async def test_what_was_committed_is_in_the_trace_of_the_session_that_goes_on(bazaar: None, tmp_path: Path) -> None:
    made = suite(f"webarena-verified:{sites(tmp_path, stand_in(tmp_path))}")
    SITE.enter(TOKEN, World.build(SEED, "test"))
    pool, asked = Pool(made.open), list[str]()

    def approve(task: Task, action: Action) -> bool:
        asked.append(action.key)
        return True

    try:
        with TreeStore.open(tmp_path / "live.sqlite") as store:
            episode = await run_episode(
                made.tasks("test", 9)[3], pool, ScriptedPolicy(approving, trainable=False), store=store,
                journal=store.journal, approve=approve,
                rule=best_first(1, 1), budget=Budget(expansions=4), settings=Settings(max_tokens=300, answers=1),
                commits=3,
            )  # fmt: skip
    finally:
        await pool.close()
        if made.close is not None:
            await made.close()
    assert episode.reward == 1.0 and len(asked) == 1
    trace = json.loads((tmp_path / "asked.json").read_text())["trace"]
    posts = [e["request"]["url"].removeprefix(SITE.url) for e in trace if e["request"]["method"] == "POST"]
    assert posts == ["r/14/approve"]
