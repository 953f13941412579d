"""The bazaar: its tasks and their families, its pages, what cannot be taken back, and the ledger."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none

from treewright.envs.types import Environment, Task

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.benchmarks.web_trials import back_vs_replay, compare_live, fingerprints
from treewright.envs import Action, Effect, Turn
from treewright.envs.web.bazaar import SITE, SUITE, open_live
from treewright.envs.web.bazaar_tasks import FAMILIES, KINDS, graded, make_tasks, wanted
from treewright.envs.web.bazaar_world import World
from treewright.envs.web.browser import find_chromium
from treewright.envs.web.market_world import Refused

pytestmark = pytest.mark.asyncio(loop_scope="module")
needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)
TASKS = make_tasks("test", 60)
KIND: dict[str, Any] = {}
for one in TASKS:
    KIND.setdefault(one.truth["kind"], one)


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def closing() -> AsyncIterator[None]:
    yield
    await not_none(SUITE.close)()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def env() -> AsyncIterator[Environment]:
    session = await SUITE.open()
    yield session
    await session.close()


def changed(task: Task) -> bool:
    """The state at the end differs from the one at the beginning by an order, a post or a decision."""
    return wanted(task).to_json() != World.build(task.seed, task.split).to_json()


async def test_a_third_of_sixty_tasks_needs_a_final_step_and_in_a_third_a_wrong_one_is_near() -> None:
    families = [task.truth["family"] for task in TASKS]
    assert len(TASKS) == 60 and families.count("trap") == families.count("do") == families.count("look") == 20
    assert sum(map(changed, TASKS)) >= 20
    assert not any(changed(t) for t in TASKS if t.truth["family"] == "look")
    assert set(KINDS) == {kind for kinds in FAMILIES.values() for kind in kinds}


def wrong_steps(task: Task, world: World) -> None:
    """A final step that is near and wrong, for a task of the family 'trap'."""
    match task.truth["kind"]:
        case "variant":
            item = task.truth["item"]
            other = next(i for i in world.products if i != item and i.rsplit("-", 1)[0] == item.rsplit("-", 1)[0])
            world.put_in_cart(other, int(task.truth["pieces"]))
            world.order(task.truth["to"])
        case "older":
            title = World.build(task.seed, task.split).posts[task.truth["number"]].title
            world.delete_post(next(n for n, p in world.posts.items() if p.title == title and n != task.truth["number"]))
        case "limit":
            world.decide(next(n for n, r in world.requests.items() if r.coins > task.truth["most"]), True)
        case "unless":
            open_ones = [n for n, o in world.orders.items() if o.status == "open" and n != task.truth["number"]]
            world.cancel(open_ones[0])


async def test_a_wrong_final_step_fails_the_task_whatever_follows() -> None:
    for task in (t for t in TASKS if t.truth["family"] == "trap"):
        assert graded(task, task.truth["answer"], wanted(task).to_json()) == 1.0
        world = wanted(task)
        wrong_steps(task, world)
        assert graded(task, task.truth["answer"], world.to_json()) == 0.0
        before = World.build(task.seed, task.split)
        wrong_steps(task, before)
        assert graded(task, task.truth["answer"], before.to_json()) == 0.0


async def test_worlds_come_back_from_json_and_splits_share_none() -> None:
    for task in TASKS[:12]:
        world = wanted(task)
        assert World.from_json(world.to_json()) == world
        assert json.loads(json.dumps(dict(task.truth))) == task.truth
    train = make_tasks("train", 60)
    assert not {t.seed for t in train} & {t.seed for t in TASKS}
    with pytest.raises(ValueError, match="no split 'dev'"):
        make_tasks("dev", 1)


async def test_what_the_bazaar_refuses_changes_nothing() -> None:
    world = World.build(1, "test")
    state = world.to_json()
    shipped = next(n for n, order in world.orders.items() if order.status == "shipped")
    foreign = next(n for n, post in world.posts.items() if post.author != "you")
    for refused in (
        lambda: world.cancel(shipped),
        lambda: world.delete_post(foreign),
        lambda: world.order("home"),
        lambda: world.decide("99", True),
        lambda: world.reply(foreign, "  "),
        lambda: world.put_in_cart("red-cheese-small", 1),
        lambda: world.put_in_cart(next(iter(world.products)), 99),
    ):
        with pytest.raises(Refused):
            refused()
    assert world.to_json() == state


@needs_browser
@pytest.mark.parametrize("kind", list(KINDS))
async def test_the_expert_solves_every_kind_within_its_horizon(env: Any, kind: Any) -> None:
    task = KIND[kind]
    history = [Turn(None, await env.reset(task, 0))]
    for _ in range(task.horizon):
        action = not_none(SUITE.oracle)(task, history, env.tools)
        result = await env.step(action, 0)
        history.append(Turn(action, result.observation))
        if result.terminated:
            break
    assert result.terminated and result.reward == 1.0
    assert max(len(turn.observation.text) for turn in history) <= 1500


@needs_browser
async def test_facets_and_pages_of_the_catalogue(env: Any) -> None:
    await env.reset(TASKS[0], 0)
    seen = (await env.step(Action.of("goto", path="/shop"), 0)).observation
    world = World.build(TASKS[0].seed, "test")
    assert f'text "found {len(world.products)}"' in seen.text and 'link "more"' in seen.text
    more = next(e.ref for e in env._view.elements.values() if e.name == "more")
    second = (await env.step(Action.of("click", ref=more), 0)).observation
    items = [e.name for e in env._view.elements.values() if e.url.find("/p/") > 0]
    assert items == [p.name for p in world.products.values()][8:16] and "page=2" in second.text.splitlines()[0]


@needs_browser
async def test_live_final_steps_are_known_before_they_are_made_and_stand_in_the_ledger() -> None:
    session = await open_live()
    try:
        await session.reset(KIND["approve"], 0)
        number = KIND["approve"].truth["number"]
        await session.step(Action.of("goto", path=f"/r/{number}"), 0)
        named = {e.name: e.ref for e in session._view.elements.values()}
        for button in ("approve", "reject"):
            assert await session.effect(Action.of("click", ref=named[button])) is Effect.IRREVERSIBLE
        before = len(SITE.ledger)
        assert (await session.step(Action.of("click", ref=named["approve"]), 0)).effect is Effect.IRREVERSIBLE
        assert [(e.action, e.detail) for e in SITE.ledger[before:]] == [("approve", number)]
    finally:
        await session.close()
        SITE.forget_shared()


@needs_browser
async def test_live_search_by_the_rules_asks_before_each_final_step_and_without_them_does_not() -> None:
    tasks = [KIND["cancel"], KIND["approve"], KIND["status"]]
    found = await compare_live(tasks, expansions=8, noise=0.0)
    assert found["safe"].success == found["sandboxed"].success == 1.0
    assert found["safe"].irreversible == found["safe"].approved == 2 and found["safe"].unapproved == 0
    assert found["sandboxed"].irreversible == 0
    assert found["careless"].unapproved > 0


@needs_browser
async def test_going_back_is_cheaper_than_starting_anew(env: Environment) -> None:
    from treewright.envs.web import market

    try:
        found = await back_vs_replay(
            market.SUITE, [t for t in market.SUITE.tasks("test", 8) if t.truth["kind"] == "buy"], 3
        )
    finally:
        await market.SITE.stop()
    assert found["restore"] < found["replay"] / 2


@needs_browser
async def test_fingerprints_tell_visits_from_changes() -> None:
    found = await fingerprints(2, 3)
    assert found["same"] == 1.0 and found["other"] == 1.0 and found["strict"] == 0.0


@needs_browser
async def test_a_refusal_has_an_address_of_its_own_and_can_be_come_back_to(env: Any) -> None:
    await env.reset(KIND["reply"], 0)
    await env.step(Action.of("goto", path=f"/f/{KIND['reply'].truth['number']}"), 0)
    send = next(e.ref for e in env._view.elements.values() if e.name == "send")
    seen = (await env.step(Action.of("click", ref=send), 0)).observation
    assert 'text "write something first"' in seen.text
    snapshot = await env.snapshot()
    await env.step(Action.of("goto", path="/"), 0)
    assert await env.restore(snapshot) == seen
