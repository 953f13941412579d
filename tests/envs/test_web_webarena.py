"""Task files in WebArena's format: what is malformed is named, and each evaluator tells right from wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none

from treewright.envs.types import Environment, Task

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs import Action, TreewrightError
from treewright.envs.web.browser import find_chromium
from treewright.envs.web.webarena import OWN, SUITE, evaluate, fuzzy, load_tasks, webarena_suite

pytestmark = pytest.mark.asyncio(loop_scope="module")
needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)
# What solves each task: paths to open, names to click, ("field", text) to fill or choose; then the answer.
SOLVED = {
    0: ([], "50"),
    1: ([], "It was dan, and ivo too."),
    2: ([], "It has shipped."),
    3: ([], " Anna"),
    4: ([], "N/A"),
    5: (["/shop?kind=bag&colour=&size=medium"], "done"),
    6: (["/forum", "black cats"], "done"),
    7: (["/shop?colour=red&page=2"], "done"),
    8: (["/p/white-bag-medium", ("pieces", "2"), "add to cart"], "done"),
    9: (["/o/2", "cancel"], "done"),
    10: (["/r/14", "approve"], "done"),
    11: (["/f/7", ("reply", "thank you"), "send"], "done"),
    12: (["/p/green-book-small", "add to cart", "checkout", ("to", "office"), "place order"], "done"),
}
WRONG = {
    **{n: ([], "51") for n in range(5)},
    5: (["/shop?kind=bag"], "done"),
    6: (["/f/10"], "done"),
    7: (["/shop?colour=blue"], "done"),
    8: (["/p/white-bag-medium", "add to cart"], "done"),
    9: (["/o/5", "cancel"], "done"),
    10: (["/r/14", "reject"], "done"),
    11: (["/f/9", ("reply", "thank you"), "send"], "done"),
    12: (["/p/green-book-small", "add to cart", "checkout", "place order"], "done"),
}


def broken(change: Callable[[Any], Any]) -> Any:
    task = json.loads(OWN.read_text())[10]
    change(task)
    return task


def remove(*path: str) -> Callable[[Any], Any]:
    def change(task: Any) -> None:
        for key in path[:-1]:
            task = task[key]
        del task[path[-1]]

    return change


def put(value: Any, *path: str | int) -> Callable[[Any], Any]:
    def change(task: Any) -> None:
        for key in path[:-1]:
            task = task[key]
        task[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("intent"), "task 1: key 'intent': is missing"),
        (put(3, "intent"), "key 'intent': must be str, not int"),
        (put("__MAP__/x", "start_url"), "key 'start_url': no address for __MAP__; sites are given for: BAZAAR"),
        (
            put(["url_mach"], "eval", "eval_types"),
            "key 'eval.eval_types': no evaluator 'url_mach'; known: string_match",
        ),
        (put([], "eval", "eval_types"), "key 'eval.eval_types': names no evaluator"),
        (put(["string_match"], "eval", "eval_types"), "key 'eval.reference_answers': is missing"),
        (put("ALL", "eval", "url_note"), "key 'eval.url_note': no rule 'ALL'"),
        (put({}, "eval", "program_html", 0, "required_contents"), "[0].required_contents': is empty"),
        (put({"almost": "x"}, "eval", "program_html", 0, "required_contents"), "required_contents.almost': not known"),
        (put({"must_include": 3}, "eval", "program_html", 0, "required_contents"), "must be a text or a list of texts"),
        (put("x", "eval", "program_html"), "key 'eval.program_html': must be list, not str"),
    ],
)
async def test_a_malformed_task_is_named_by_file_index_and_key(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    good = json.loads(OWN.read_text())[0]
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([good, broken(change)]))
    with pytest.raises(TreewrightError) as caught:
        load_tasks(path, {"BAZAAR": ""})
    assert str(path) in str(caught.value) and "task 1" in str(caught.value) and message in str(caught.value)


async def test_tasks_that_cannot_be_run_are_left_out_and_counted_and_logins_are_found_beside_the_file(
    tmp_path: Path,
) -> None:
    one, coded, located, away, known = (broken(put(n, "task_id")) for n in range(5))
    put("func:last_order()", "eval", "program_html", 0, "url")(coded)
    put("func:text(__page__)", "eval", "program_html", 0, "locator")(located)
    away["storage_state"], known["storage_state"] = "./.auth/nobody.json", "ann.json"
    (tmp_path / "ann.json").write_text('{"cookies": [], "origins": []}')
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([one, coded, located, away, known]))
    with pytest.warns(
        UserWarning, match=r"2 of 5 use helpers in Python.*; 1 of 5 begin with a login that is not there"
    ):
        found = load_tasks(path, {"BAZAAR": ""})
    assert [task.id for task in found] == ["webarena-0", "webarena-4"]
    assert found[1].data["storage_state"] == str(tmp_path / "ann.json")
    path.write_text(json.dumps([coded]))
    with pytest.raises(TreewrightError, match="no task can be run: 1 of 1 use helpers"):
        load_tasks(path, {"BAZAAR": ""})
    (tmp_path / "ann.json").write_text("[]")
    path.write_text(json.dumps([known]))
    with pytest.raises(TreewrightError, match=r"ann.json holds no storage state: .*; save one with"):
        load_tasks(path, {"BAZAAR": ""})


async def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    with pytest.raises(TreewrightError, match=r"tasks.json: cannot be read"):
        load_tasks(path, {})
    path.write_text("[\n{]")
    with pytest.raises(TreewrightError, match=r"tasks.json: line 2: not JSON"):
        load_tasks(path, {})


async def test_a_single_task_on_other_sites_makes_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    task = json.loads(OWN.read_text())[6]
    task["start_url"] = task["start_url"].replace("BAZAAR", "SHOPPING_ADMIN")
    task["eval"]["reference_url"] = "__SHOPPING_ADMIN__/f/9"
    path.write_text(json.dumps(task))
    suite = webarena_suite(path, {"SHOPPING_ADMIN": "http://shop.example:7780/admin"})
    (found,) = suite.tasks("test", 5)
    assert found.data["start"] == "http://shop.example:7780/admin"
    assert found.truth["eval"]["reference_url"] == ["http://shop.example:7780/admin/f/9"]
    session: Any = await suite.open()
    assert session.allow.allows_url("http://shop.example:7780/") and not session.sandboxed


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("the 1,200 coins", "It costs 1200.00 coins", True),
        ("$12.50", "12.50", True),
        ("Red Lamp", "a lamp that is red", True),
        ("red lamp", "a lamp", False),
        ("N/A", "n/a", True),
        ("N/A", "there are three", False),
        ("", "anything", False),
    ],
)
async def test_fuzzy_matching_folds_case_articles_and_numbers(reference: str, answer: str, same: bool) -> None:
    assert fuzzy(reference, answer) is same


@pytest.mark.parametrize(
    ("wanted", "found", "note", "score"),
    [
        ("http://h/a?x=1", "http://h/a?y=2&x=1", "GOLD in PRED", 1.0),
        ("http://h/a?x=1", "http://h/a?x=2", "GOLD in PRED", 0.0),
        ("http://h/a/", "http://h/a/b", "GOLD in PRED", 1.0),
        ("http://h/a/", "http://h/a/b", "EXACT", 0.0),
        ("http://h/a/", "http://h/a", "EXACT", 1.0),
        ("/a", "http://h:1/a", "EXACT", 1.0),
    ],
)
async def test_addresses_are_compared_as_the_task_says(wanted: str, found: str, note: str, score: float) -> None:
    spec = {"eval_types": ["url_match"], "reference_url": [wanted], "url_note": note}
    assert await evaluate(spec, "", found, None) == score  # type: ignore[arg-type]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def env() -> AsyncIterator[Environment]:
    session = await SUITE.open()
    yield session
    await session.close()
    await not_none(SUITE.close)()


async def played(env: Any, task: Task, steps: Any | str, answer: Any | str) -> float:
    await env.reset(task, 0)
    for step in steps:
        named = {element.name: element.ref for element in env._view.elements.values()}
        if isinstance(step, tuple):
            tool, key = ("fill", "text") if step[0] == "reply" else ("select", "option")
            action = Action.of(tool, ref=named[step[0]], **{key: step[1]})
        else:
            action = Action.of("goto", path=step) if step[0] == "/" else Action.of("click", ref=named[step])
        await env.step(action, 0)
    return float((await env.step(Action.of("answer", text=answer), 0)).reward)


@needs_browser
@pytest.mark.parametrize("number", range(13))
async def test_every_task_of_the_own_file_tells_right_from_wrong(env: Environment, number: int) -> None:
    task = SUITE.tasks("test", 13)[number]
    assert await played(env, task, *SOLVED[number]) == 1.0
    assert await played(env, task, *WRONG[number]) == 0.0
