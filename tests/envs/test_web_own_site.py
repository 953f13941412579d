"""Any site as a suite: its file, rewards without code, logins, and the command line."""

from __future__ import annotations

# ruff: noqa: E501
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import forked
import pytest
import pytest_asyncio

from treewright.envs.types import Suite, Task

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs import Action, Effect, TreewrightError
from treewright.envs.registry import suite
from treewright.envs.web.browser import close_browser, find_chromium
from treewright.envs.web.effects import Target, judge
from treewright.envs.web.outcome import Check, Ending, StateCheck, holds
from treewright.envs.web.own_site import EffectRule, SiteFile, web_suite

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from local_site import serve_pages

pytestmark = pytest.mark.asyncio(loop_scope="module")
needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)
HELPERS = Path(__file__).parents[1] / "helpers"
PAGES = {
    "/": "<title>shop</title><h1>Shop</h1><p>COUNT people looked at this shop</p><a href=/lamps>lamps</a><a href=/rugs>rugs</a>",
    "/lamps": "<title>lamps</title><p>COUNT are here</p><a href=/red>red lamp</a><a href=/blue>blue lamp</a>",
    "/red": "<title>red</title><h1>Red lamp</h1><p>It costs 42 coins.</p><button id=pay onclick=\"fetch('/pay', {method: 'POST'})\">Pay now</button>",
    "/login": "<title>login</title><form method=post action=/enter><label>Name <input name=n></label><label>Keep <input type=checkbox name=k></label><button>Log in</button></form>",
    "/me": "<title>me</title><p>Hello WHO</p>",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shop() -> AsyncIterator[Any]:
    count = [30]

    def answer(method: str, path: Any, head: Any) -> tuple[str, str] | None:
        count[0] += 1
        who = "Ann" if "who=ann" in head else "nobody"
        if path == "/enter":
            return PAGES["/me"].replace("WHO", "Ann"), "Set-Cookie: who=ann\r\n"
        if path == "/api/cart":
            return json.dumps(
                {"of": who, "items": [{"name": "lamp", "price": 42}]}
            ), "Content-Type: application/json\r\n"
        if path in PAGES:
            return PAGES[path].replace("COUNT", str(count[0])).replace("WHO", who), ""
        return None

    server = await serve_pages(PAGES, answer)
    yield server
    server.close()
    await close_browser()


def written(folder: Path, url: str, tasks: list[Any] | None = None, more: str = "") -> str:
    rows = [{"id": "one", "goal": "look", "reward": {"url": "/red"}, "split": "test"}] if tasks is None else tasks
    (folder / "tasks.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    (folder / "shop.toml").write_text(f'url = "{url}"\ntasks = "tasks.jsonl"\n{more}')
    return str(folder / "shop.toml")


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("calms = []", r"shop.toml: no field 'calms'; did you mean 'calm'\?"),
        ("calm = ['(']", r"field 'calm': '\(' is no regular expression"),
        ("same_page = 'near'", r"it is exact, target or distance:SHARE"),
        ("part = 3", r"field 'part' = 3: Input should be greater than or equal to 200"),
        ("storage = 'no.json'", r"field 'storage': there is no file"),
        ("[[effects]]\neffect = 'maybe'", r"field 'effects.0.effect' = 'maybe'"),
        ("[[login]]\ngoto = '/'\nclick = 'x'", r"a step says one of goto, fill, select, check, click"),
        ("hosts = 'shop'", r"field 'hosts' = 'shop'"),
        ("url = 2", r"shop.toml"),
    ],
)
async def test_a_site_file_that_is_wrong_is_named_with_its_field(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(TreewrightError, match=message):
        web_suite(written(tmp_path, "http://127.0.0.1:9/", more=more))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "a", "goal"', r"line 1: not valid JSON"),
        ("[]", r"line 1: a task is an object"),
        ({"id": "a"}, r"line 1: field 'goal': Field required"),
        ({"id": "a", "goal": "g"}, r"field 'reward' is missing; say what must hold at the end"),
        ({"id": "a", "goal": "g", "rewards": {}}, r"no field 'rewards'; did you mean 'reward'\?"),
        ({"id": "a", "goal": "g", "reward": {}}, r"field 'reward' = {}: .*is empty; it takes url, text"),
        ({"id": "a", "goal": "g", "reward": {"words": "x"}}, r"field 'reward.words' = 'x'"),
        (
            {"id": "a", "goal": "g", "reward": {"state": {"get": "/a"}}},
            r"say what must hold: 'equals', 'includes' or 'exists'",
        ),
        ({"id": "a", "goal": "g", "reward": {"state": {"equals": 1}}}, r"give either 'get', an address, or 'script'"),
        ({"id": "a", "goal": "g", "reward": {"url": "/"}, "horizon": 0}, r"field 'horizon' = 0"),
    ],
)
async def test_a_task_that_is_wrong_is_named_with_its_line_and_field(
    tmp_path: Path, row: str | dict[str, Any], message: str
) -> None:
    with pytest.raises(TreewrightError, match=message):
        web_suite(written(tmp_path, "http://127.0.0.1:9/", [row]))


async def test_names_that_are_no_site_and_ids_that_repeat_are_refused(tmp_path: Path) -> None:
    for spec, message in (
        ("shop", "names no site"),
        ("no.toml", "cannot read the site file"),
        ("https://", "is no address"),
    ):
        with pytest.raises(TreewrightError, match=message):
            suite(f"web:{spec}")
    row = {"id": "a", "goal": "g", "reward": {"url": "/"}}
    with pytest.raises(TreewrightError, match=r"line 2: id 'a' was used before"):
        web_suite(written(tmp_path, "http://127.0.0.1:9/", [row, row]))
    with pytest.raises(TreewrightError, match="and not both"):
        web_suite(written(tmp_path, "http://127.0.0.1:9/", more="login = 'a:b'\nstorage = 'tasks.jsonl'"))


async def test_an_address_alone_is_a_suite_to_look_around_in() -> None:
    found = suite("web:http://127.0.0.1:9/start")
    (task,) = found.tasks("test", 5)
    assert task.goal.startswith("find out what this site offers") and found.name == "web:http://127.0.0.1:9/start"


# -- rewards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "held"),
    [
        ({"url": "/orders/7"}, True), ({"url": "/orders/*"}, True), ({"url": "/orders"}, False), ({"url": "http://h/orders/7/"}, True),
        ({"url": ["/a", "/orders/7"]}, True), ({"url": "http://other/orders/7"}, False),
        ({"text": "thank  YOU"}, True), ({"text": ["Thank you", "order 7"]}, True), ({"text": ["Thank you", "order 8"]}, False),
        ({"no_text": "error"}, True), ({"no_text": "thank you"}, False),
        ({"answer": " forty  two "}, True), ({"answer": ["42", "Forty two"]}, True), ({"answer": "forty"}, False),
        ({"answer_includes": "forty"}, True), ({"answer_includes": ["forty", "three"]}, False),
        ({"url": "/orders/7", "text": "error"}, False),
        ({"any": [{"url": "/a"}, {"text": "thank you"}]}, True), ({"any": [{"url": "/a"}, {"url": "/b"}]}, False),
    ],
)  # fmt: skip
async def test_what_must_hold_at_the_end(check: dict[str, Any], held: bool) -> None:
    end = Ending(url="http://h/orders/7", text="Thank you\nfor order 7", answer="Forty two")
    assert await holds(Check(**check), end, None) is held  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("check", "held"),
    [
        ({"at": "items.0.name", "equals": "lamp"}, True), ({"at": "items.-1.price", "equals": 42}, True),
        ({"at": "items.1", "exists": False}, True), ({"at": "items.1.name", "equals": "lamp"}, False),
        ({"at": "items", "includes": {"name": "lamp", "price": 42}}, True), ({"includes": "LAMP"}, True),
        ({"at": "tags", "includes": "new"}, True), ({"at": "tags", "includes": "ne"}, False),
        ({"at": "none", "exists": True}, False), ({"at": "none", "equals": None}, False),
    ],
)  # fmt: skip
async def test_what_must_hold_of_a_state(check: dict[str, Any], held: bool) -> None:
    found = {"items": [{"name": "lamp", "price": 42}], "tags": ["new"], "none": None}
    assert StateCheck(get="/api", **check).of(found) is held
    assert StateCheck(get="/api", exists=False).of(None)


@pytest.mark.parametrize(
    ("fields", "target", "effect"),
    [
        ({"effect": "reversible", "method": "POST", "path": "/cart/*"}, Target("click", "button", "Add", "POST", "http://h/cart/add"), Effect.REVERSIBLE),
        ({"effect": "reversible", "method": "POST", "path": "/cart/*"}, Target("click", "button", "Buy", "POST", "http://h/buy"), None),
        ({"effect": "read", "action": "click", "name": "show *"}, Target("click", "clickable", "Show  all"), Effect.READ),
        ({"effect": "irreversible", "role": "link"}, Target("click", "link", "x", url="http://h/x"), Effect.IRREVERSIBLE),
    ],
)  # fmt: skip
async def test_effect_rules_fit_by_pattern_and_come_first(
    fields: dict[str, Any], target: Target, effect: Effect | None
) -> None:
    assert EffectRule(**fields).rule(target) is effect
    if effect is not None:
        assert judge(target, [EffectRule(**fields).rule]) is effect


# -- in a browser ---------------------------------------------------------------------------------------------------


GIVEN = {"goto": "path", "answer": "text"}


async def played(found: Suite, task: Task, *actions: tuple[str, str]) -> Any:
    env: Any = await found.open()
    try:
        await env.reset(task, 0)
        for tool, *given in actions:
            if tool == "click":
                ref = next(e.ref for e in env._view.elements.values() if e.name == given[0])
                result = await env.step(Action.of("click", ref=ref), 0)
            else:
                result = await env.step(Action.of(tool, **{GIVEN[tool]: given[0]}), 0)
        return result
    finally:
        await env.close()


@needs_browser
@pytest.mark.parametrize(
    ("reward", "path", "answer", "value"),
    [
        ({"url": "/red", "answer": "42"}, "/red", "42", 1.0),
        ({"url": "/red", "answer": "42"}, "/lamps", "42", 0.0),
        ({"text": "It costs 42 coins."}, "/red", "x", 1.0),
        ({"state": {"get": "/api/cart", "at": "items.0.name", "equals": "lamp"}}, "/", "x", 1.0),
        ({"state": {"get": "/api/none", "at": "items", "exists": True}}, "/", "x", 0.0),
        ({"state": {"script": "document.querySelectorAll('a').length", "equals": 2}}, "/lamps", "x", 1.0),
        ({"state": {"script": "no.such.thing", "exists": False}}, "/", "x", 1.0),
    ],
)
async def test_tasks_are_judged_by_address_text_answer_and_state(
    shop: Any, tmp_path: Path, reward: dict[str, Any], path: str, answer: str, value: float
) -> None:
    found = web_suite(written(tmp_path, shop.url, [{"id": "t", "goal": "g", "reward": reward}]))
    result = await played(found, found.tasks("test", 1)[0], ("goto", path), ("answer", answer))
    assert result.terminated and result.reward == value


@needs_browser
async def test_an_episode_that_runs_out_of_turns_is_judged_where_it_stands(shop: Any, tmp_path: Path) -> None:
    task = {"id": "t", "goal": "g", "reward": {"url": "/red"}, "start": "/lamps", "horizon": 1}
    found = web_suite(written(tmp_path, shop.url, [task]))
    result = await played(found, found.tasks("test", 1)[0], ("click", "red lamp"))
    assert result.truncated and result.reward == 1.0


@needs_browser
async def test_a_function_may_judge_instead(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judged_shop.py").write_text("def judge(task, history):\n    return len(history) / 10\n")
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "t", "goal": "g"}]
    found = web_suite(written(tmp_path, shop.url, rows, "reward = 'judged_shop:judge'"))
    env = await found.open()
    await env.reset(found.tasks("test", 1)[0], 0)
    result = await env.step(Action.of("answer", text="x"), 0)
    await env.close()
    assert result.reward == pytest.approx(0.2)
    with pytest.raises(TreewrightError, match="drop one of them"):
        web_suite(written(tmp_path, shop.url, [{**rows[0], "reward": {"url": "/"}}], "reward = 'judged_shop:judge'"))


LOGIN = """
[[login]]
goto = "/login"
[[login]]
fill = "Name"
text = "$SHOP_USER"
[[login]]
check = "Keep"
[[login]]
click = "Log in"
"""


@needs_browser
async def test_a_login_is_made_once_and_every_session_begins_with_it(
    shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "id": "t",
        "goal": "g",
        "start": "/me",
        "reward": {"text": "Hello Ann", "state": {"get": "/api/cart", "at": "of", "equals": "Ann"}},
    }
    found = web_suite(written(tmp_path, shop.url, [row], LOGIN))
    task = found.tasks("test", 1)[0]
    monkeypatch.delenv("SHOP_USER", raising=False)
    with pytest.raises(TreewrightError, match=r"login, step 2: the environment variable 'SHOP_USER' is not set"):
        await played(found, task, ("answer", "x"))
    monkeypatch.setenv("SHOP_USER", "ann")
    shop.asked.clear()
    for _ in range(2):
        assert (await played(found, task, ("answer", "x"))).reward == 1.0
    assert shop.asked.count("POST /enter") == 1
    wrong = web_suite(written(tmp_path, shop.url, [row], LOGIN.replace('"Log in"', '"Enter"')))
    with pytest.raises(
        TreewrightError, match=r"step 4: nothing is called 'Enter' on /login; there are: Keep, Log in, Name"
    ):
        await played(wrong, task, ("answer", "x"))


@needs_browser
async def test_a_login_may_be_a_script_or_a_saved_state(
    shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "entering.py").write_text(
        "async def enter(page):\n    await page.goto(page.url + 'login')\n    await page.fill('[name=n]', 'ann')\n"
        "    await page.click('button')\n    await page.context.storage_state(path='state.json')\n"
    )
    monkeypatch.chdir(tmp_path)
    row = {"id": "t", "goal": "g", "start": "/me", "reward": {"text": "Hello Ann"}}
    for more in ("login = 'entering:enter'", "storage = 'state.json'"):
        found = web_suite(written(tmp_path, shop.url, [row], more))
        assert (await played(found, found.tasks("test", 1)[0], ("answer", "x"))).reward == 1.0


@needs_browser
async def test_effects_hosts_and_patterns_of_the_file_are_used(shop: Any, tmp_path: Path) -> None:
    more = "hosts = ['cdn.example']\ncalm = ['\\d+ people looked']\n[[effects]]\neffect = 'read'\nname = 'pay *'\n"
    found = web_suite(written(tmp_path, shop.url, more=more))
    env: Any = await found.open()
    try:
        task = found.tasks("test", 1)[0]
        first = await env.reset(task, 0)
        assert (await env.reset(task, 0)).fingerprint == first.fingerprint
        assert env.allow.allows_url("http://cdn.example/x") and not env.allow.allows_url("http://other.example/")
        await env.step(Action.of("goto", path="/red"), 0)
        pay = next(e.ref for e in env._view.elements.values() if e.name == "Pay now")
        assert await env.effect(Action.of("click", ref=pay)) is Effect.READ
    finally:
        await env.close()


def call(*words: Any, cwd: Path | str | None) -> str:
    paths = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(cwd)])
    given = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "140", "NO_COLOR": "1"}
    done = forked.treewright(words, cwd, given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_browser
async def test_a_live_site_whose_every_page_counts_its_visitors_is_searched_from_the_command_line(
    shop: Any, tmp_path: Path
) -> None:
    """The search that finds the answer with every node unreachable, and the same one that may tell counters apart."""
    import asyncio

    written(
        tmp_path,
        f"{shop.url}/",
        [
            {
                "id": "price",
                "goal": "what does the red lamp cost?",
                "split": "test",
                "reward": {"answer": "42"},
                "horizon": 4,
            }
        ],
    )
    (tmp_path / "looking.py").write_text(
        "from treewright.agent.policies.scripted import scripted_choice\n\n\n"
        "def said(task, turns, tools):\n"
        "    shown = turns[-1].observation.text if turns else 'red'\n"
        "    if '42 coins' in shown:\n        return [('answer {\"text\": \"42\"}', 1.0)]\n"
        '    return [(\'click {"ref": "e1"}\', 0.5), (\'click {"ref": "e2"}\', 0.5)]\n\n\n'
        "looker = scripted_choice(said, name='looker')\n"
    )
    line = [
        "run",
        "web:shop.toml/price",
        "--policy",
        "scripted:looking:looker",
        "--expansions",
        "8",
        "--set",
        "search.rule=cascade",
    ]
    exact = await asyncio.to_thread(call, *line, cwd=tmp_path)
    assert "Divergence" in exact and "reward 1" not in exact
    assert "tell them apart with --set worlds.same_page=distance:0.05" in exact
    more = ["--set", "worlds.same_page=distance:0.05", "--name", "b"]
    near = await asyncio.to_thread(call, *line, *more, cwd=tmp_path)
    assert "Divergence" not in near and "reward 1" in near
    assert "changes by itself at" in near and "p:nth(1)" in near
    assert json.loads((tmp_path / "shop.learned.json").read_text())


async def test_the_docs_name_every_field_and_their_file_and_tasks_are_right(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "web.md").read_text()
    block = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0]
    tasks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0]
    (tmp_path / "shop.toml").write_text(block)
    (tmp_path / "tasks.jsonl").write_text(tasks)
    found = web_suite(str(tmp_path / "shop.toml"))
    assert [task.id for task in found.tasks("train", 9)] == ["price", "order", "cart", "rows"]
    assert all(f"`{name}" in text or re.search(rf"^\[*{name}\b", block, re.M) for name in SiteFile.model_fields)


def test_the_configuration_says_of_a_site_what_its_file_would(tmp_path: Path) -> None:
    from treewright.agent.config import load_config
    from treewright.agent.runs.collect import suites_of

    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"id": "one", "goal": "look", "reward": {"url": "/red"}}))
    told = ['worlds.suites=["web:http://127.0.0.1:9/"]', f"worlds.tasks_file={tasks}"]
    (suite,) = suites_of(load_config(None, [*told, 'worlds.web.calm=["add .*"]']))
    assert suite.tasks("train", 1)[0].goal == "look"
    with pytest.raises(TreewrightError, match=r"field 'calm': '\(' is no regular expression"):
        suites_of(load_config(None, [*told, 'worlds.web.calm=["("]']))
    with pytest.raises(TreewrightError, match=r"no field 'calms'; did you mean 'calm'"):
        suites_of(load_config(None, [*told, "worlds.web.calms=[]"]))
