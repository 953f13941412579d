"""The same page: distances of trees, regions that change by themselves, arrivals, and what trees say of them."""

from __future__ import annotations

# ruff: noqa: E501
import math
import random
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.agent.policies.prompt_text import observation_text
from treewright.agent.policies.scripted import scripted_choice
from treewright.benchmarks.web_same import arrivals, timed_distances
from treewright.envs import Action, Divergence, TreewrightError
from treewright.envs.web.browser import close_browser, find_chromium
from treewright.envs.web.distance import distance
from treewright.envs.web.environment import FullWebEnvironment
from treewright.envs.web.regions import Regions, Trail, paths_of
from treewright.envs.web.sameness import SameAs, SiteMemory, read_same_page
from treewright.envs.web.uses import look_for_uses
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool, Snapshots, Waypoint
from treewright.search.rules import rule as named_rule
from treewright.search.tree import DISTANT
from treewright.search.types import Budget, NodeStatus
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from local_site import TASK, Visit, serve_pages

if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")


# -- distances ------------------------------------------------------------------------------------------------------


def plain(a: list[tuple[Any | int, Any]], b: list[tuple[Any | int, Any]]) -> float:
    """Selkow's distance as he wrote it: slow, without any bound."""

    def built(rows: list[tuple[Any | int, Any]]) -> tuple[str, list[Any]]:
        root: tuple[str, list[Any]] = ("", [])
        open_nodes: list[Any] = [(-1, root)]
        for depth, label in rows:
            while open_nodes[-1][0] >= depth:
                open_nodes.pop()
            node: tuple[Any, list[Any]] = (label, [])
            open_nodes[-1][1][1].append(node)
            open_nodes.append((depth, node))
        return root

    def size(node: Any) -> Any:
        return 1 + sum(map(size, node[1]))

    def apart(x: tuple[str, list[Any]], y: tuple[str, list[Any]]) -> float:
        left, right = x[1], y[1]
        table = [[math.inf] * (len(right) + 1) for _ in range(len(left) + 1)]
        table[0][0] = 0
        for i in range(len(left) + 1):
            for j in range(len(right) + 1):
                if i:
                    table[i][j] = min(table[i][j], table[i - 1][j] + size(left[i - 1]))
                if j:
                    table[i][j] = min(table[i][j], table[i][j - 1] + size(right[j - 1]))
                if i and j:
                    table[i][j] = min(table[i][j], table[i - 1][j - 1] + apart(left[i - 1], right[j - 1]))
        return (x[0] != y[0]) + table[-1][-1]

    return apart(built(a), built(b))


def page(chance: random.Random, size: int) -> list[tuple[Any | int, Any]]:
    rows: list[Any] = []
    while len(rows) < size:
        depth = max(0, min(4, rows[-1][0] + chance.choice((-2, -1, 0, 1)))) if rows else 0
        rows.append((depth, chance.choice("abc")))
    return rows


async def test_the_bounded_distance_is_the_plain_one_up_to_the_bound() -> None:
    chance = random.Random(3)
    for _ in range(150):
        a, b = page(chance, chance.randint(0, 9)), page(chance, chance.randint(0, 9))
        found, bound = plain(a, b), chance.randint(0, 6)
        assert distance(a, b) == distance(b, a) == found
        assert distance(a, b, bound) == min(found, bound + 1)
        assert distance(a, a, bound) == 0


async def test_long_rows_and_large_pages_are_compared_without_a_table_of_all_pairs() -> None:
    rows = [(0, "page"), *((1, f"item {n}") for n in range(3000))]
    moved = [rows[0], *rows[1500:], *rows[1:1500]]
    assert distance(rows, rows[:1000] + rows[1003:], 100) == 3
    assert distance(rows, [*rows[:50], (1, "new"), *rows[50:]], 100) == 1
    assert distance(rows, moved, 100) == 101
    assert distance(rows, [(d, f"x{label}") for d, label in rows], 100) == 101
    assert len(timed_distances(4, 300)) == 4


# -- settings and regions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["distance:2", "distance:x", "near", "", "target:0.1", "distance:-1"])
async def test_a_way_to_compare_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(TreewrightError, match=r"it is exact, target or distance:SHARE"):
        read_same_page(text)


async def test_names_of_ways_to_compare_pages_are_parsed() -> None:
    assert [read_same_page(t) for t in ("exact", "target", "distance:0.05", "distance:.1", "distance")] == [
        SameAs("exact"), SameAs("target"), SameAs("distance", 0.05), SameAs("distance", 0.1), SameAs("distance", 0.05),
    ]  # fmt: skip


async def test_regions_are_named_as_style_sheets_do_and_numbers_in_names_are_not_counted_on() -> None:
    marks = {
        1: (0, "html"),
        2: (1, "body"),
        3: (2, "div#w83921.box"),
        4: (3, "p"),
        5: (3, "p"),
        6: (2, "ul#side"),
        7: (6, "li.ad.big"),
    }
    paths = paths_of(marks)
    assert paths[5].names == (
        "html > body > div.box > p",
        "html > body > div.box > p:nth(2)",
        "html:nth(1) > body:nth(1) > div.box:nth(1) > p:nth(2)",
    )
    assert paths[7].names[0] == "ul#side > li.ad.big"
    for name, held in (
        ("li.ad", {7}),
        (".box", {3, 4, 5}),
        ("div > p:nth(2)", {5}),
        ("#side", {6, 7}),
        ("ul > li", {7}),
        ("p.ad", set()),
    ):
        known: dict[Trail, bool] = {}
        regions = Regions([name])
        assert {node for node, path in paths.items() if regions.hold(path, known)} == held, name
    assert not Regions().hold(Trail("p"), {})


async def test_what_was_learned_is_kept_for_the_next_process_and_a_broken_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "shop.learned.json"
    path.write_text('{"h/a": ["p.counter"]}')
    memory = SiteMemory(["aside"], path)
    assert memory.regions("http://h/a").names == {"aside", "p.counter"} and memory.regions("http://h/b").names == {
        "aside"
    }
    assert memory.told() == ["*: aside", "h/a: p.counter"]
    path.write_text("[1]")
    with pytest.raises(TreewrightError, match=r"shop.learned.json holds no regions of a site.*delete it to learn anew"):
        SiteMemory((), path)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://h:1/item/17?page=2&q=x", "h:1/item/#?page&q"),
        ("http://h/", "h/"),
        ("http://h/a/3f2c-long-name-of-a-thing-one", "h/a/#"),
        ("http://h/about", "h/about"),
    ],
)
async def test_pages_of_one_kind_differ_in_numbers_and_long_names(url: str, kind: str) -> None:
    assert SiteMemory.kind(url) == kind


# -- in a browser ---------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def browser() -> AsyncIterator[None]:
    yield
    await close_browser()


async def test_restless_pages_are_come_back_to_and_those_that_look_alike_are_not_taken_for_them() -> None:
    found = await arrivals("distance:0.05", pages=4)
    assert (found.pairs, found.false) == (4, 0), found.lost
    assert found.found >= 0.95 * found.nodes, found.lost
    assert (await arrivals("exact", pages=1)).found == 0


async def served(body: Callable[[Any], Any]) -> Any:
    """A page whose body a function gives; it is called at every visit."""
    return await serve_pages({}, lambda method, path, head: (body(path), "") if path != "/favicon.ico" else None)


async def reached(visit: Visit, path: list[Any]) -> float:
    async def same() -> FullWebEnvironment:
        return visit.env

    pool = Pool(same)
    async with pool.lease("t") as session:
        session.at = None
        await pool.reach(session, "t", TASK, path, Snapshots(0))
        return session.distance


def waypoint(visit: Visit, seed: int = 1, action: Any = None) -> Waypoint:
    return Waypoint(seed, 0, action, visit.seen.fingerprint)


async def begin(visit: Visit) -> list[Any]:
    visit.seen = await visit.env.reset(TASK, 0)
    return [waypoint(visit)]


@pytest.mark.parametrize("way", ["exact", "distance:0.05"])
async def test_a_page_that_changes_while_it_is_read_is_read_again(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accessibility tree and the document are asked for one after the other: what a page draws in between must not
    be recorded as half of each."""
    late = "<div id=late>Loading</div><p class=''>kept</p><textarea aria-label=note>mine</textarea>"
    site = await served(lambda path: f"<title>t</title>{late}")
    reads = 0

    async def between(session: Any, marks: bool = False) -> Any:
        nonlocal reads
        reads += 1
        if reads == 1:
            await session.send("Runtime.evaluate", {"expression": "late.innerHTML = '<p>Delivered</p>'"})
        return await look_for_uses(session, marks)

    monkeypatch.setattr("treewright.envs.web.tab.look_for_uses", between)
    visit = Visit(site.url, same_page=way)
    try:
        await begin(visit)
        assert "Delivered" in visit.seen.text and "Loading" not in visit.seen.text
        before = reads
        await visit.do("hover", "note")
        assert reads == before + 1, "what a browser draws inside of a field is no change of the page"
    finally:
        await visit.env.close()
        site.close()


async def test_an_attribute_without_a_value_has_none_that_stood_elsewhere() -> None:
    site = await served(lambda path: "<title>t</title><p class='' id=one>words</p><iframe srcdoc='last'></iframe>")
    visit = Visit(site.url, same_page="distance:0.05")
    try:
        await begin(visit)
        marks = [mark for _, mark in visit.env._live().seen.marks.values() if mark.startswith("p")]
        assert marks == ["p#one"]
    finally:
        await visit.env.close()
        site.close()


@pytest.mark.parametrize("way", ["target", "distance:0.05"])
async def test_a_reference_means_the_same_element_after_others_came_before_it(way: str) -> None:
    top: list[Any] = []
    site = await served(
        lambda path: f"<title>t</title>{''.join(top)}<nav><a href=/one>one</a><a href=/two>two</a></nav>{'<p>words</p>' * 30}"
        if path == "/" else f"<title>{path}</title>"
    )  # fmt: skip
    visit = Visit(site.url, same_page=way)
    try:
        path = await begin(visit)
        two = Action.of("click", ref=visit.ref("two"))
        await visit.env.step(two, 0)
        top.append("<aside class=ad><a href=/ad>offer</a></aside>" if way == "target" else "<div role=note></div>")
        assert await reached(visit, path) > 0 if way == "target" else await reached(visit, path) >= 0
        assert 'page "/two"' in (await visit.env.step(two, 0)).observation.text
    finally:
        await visit.env.close()
        site.close()


async def test_a_target_that_stands_elsewhere_or_is_gone_is_a_divergence_and_no_mistake_of_the_policy() -> None:
    box = ["<section aria-label=mine><h2>Mine</h2><button>Buy</button></section>"]
    site = await served(lambda path: f"<title>t</title>{box[0]}<p>words</p><a href=/other>other</a>")
    visit = Visit(site.url, same_page="target")
    try:
        path = await begin(visit)
        buy, other = Action.of("click", ref=visit.ref("Buy")), Action.of("click", ref=visit.ref("other"))
        for changed in (
            "<section aria-label=yours><h2>Yours</h2><button>Buy</button></section>",
            "",
            "<button disabled>Buy</button>",
        ):
            box[0] = changed
            await reached(visit, path)
            with pytest.raises(Divergence, match="does not stand where it stood"):
                await visit.env.step(buy, 0)
            with pytest.raises(Divergence, match="replay diverged at step 0"):
                await visit.env.effect(buy)
            assert (await visit.env.step(other, 0)).observation.text
    finally:
        await visit.env.close()
        site.close()


async def test_what_was_learned_gets_references_of_its_own_and_is_no_state() -> None:
    count = [0]

    def body(path: Any) -> str:
        count[0] += 1
        links = "".join(f"<a href=/x{count[0]}{n}>offer {count[0]} {n}</a>" for n in range(1 + count[0] % 2))
        return f"<title>t</title><div class=promo>{links}</div><a href=/one>one</a><p>kept</p>"

    site = await served(body)
    visit = Visit(site.url, same_page="distance:0.05")
    try:
        path = await begin(visit)
        assert '"one" e1' in visit.seen.text and "a1" in visit.seen.text
        first = visit.seen.fingerprint
        visit.seen = await visit.env.reset(TASK, 0)
        assert visit.seen.fingerprint == first and await reached(visit, path) == 0.0
        assert visit.env.memory.told() == [f"{site.url.removeprefix('http://')}/: html > body > div.promo"]
    finally:
        await visit.env.close()
        site.close()


async def test_a_page_that_never_rests_is_learned_and_one_that_cannot_be_loaded_twice_is_shown_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moving = "<title>t</title><p class=now></p><a href=/one>one</a><script>setInterval(() => { document.querySelector('p').textContent = Math.random() }, 5)</script>"
    asked = []

    def answer(method: str, path: Any, head: Any) -> tuple[str, str]:
        asked.append(path)
        if path == "/once" and asked.count(path) > 1:
            raise ConnectionError
        return (moving if path == "/" else "<title>once</title><h1>Once</h1>"), ""

    site = await serve_pages({}, answer)
    visit = Visit(site.url, same_page="distance:0.05", deadline=0.5)
    try:
        path = await begin(visit)
        assert await reached(visit, path) == 0.0
        assert 'heading "Once"' in await visit.do("goto", path="/once") and asked.count("/once") >= 2
        assert "cannot load" in caplog.text
    finally:
        await visit.env.close()
        site.close()


async def test_a_page_that_was_merely_written_to_is_not_loaded_beside() -> None:
    """A second load of an address that a form was sent to could send it again."""
    site = await served(
        lambda path: (
            f"<title>{path}</title><form action=/sent method=post><button>send</button></form><a href=/gone/delete>delete</a>"
        )
    )
    visit = Visit(site.url, same_page="distance:0.05")
    try:
        await begin(visit)
        assert site.asked.count("GET /") == 3
        await visit.do("click", "send")
        await visit.do("click", "delete")
        assert (site.asked.count("POST /sent"), site.asked.count("GET /sent")) == (1, 0)
        assert site.asked.count("GET /gone/delete") == 1
    finally:
        await visit.env.close()
        site.close()


async def test_a_tree_with_an_accepted_difference_says_so_and_credit_refuses_it() -> None:
    count = [0]

    def body(path: Any) -> str:
        count[0] += 1
        shown = 7 + count[0] // 8  # the same at visits that follow each other: nothing to learn
        return (
            f"<title>{path}</title><p>{shown} in stock</p>{'<p>words</p>' * 40}<a href=/one>one</a><a href=/two>two</a>"
        )

    site = await served(body)
    policy = scripted_choice(
        [('click {"ref": "e1"}', 0.4), ('click {"ref": "e2"}', 0.4), ('answer {"text": "done"}', 0.2)]
    )
    trees = {}
    for way in ("exact", "distance:0.05"):
        count[0] = 0
        memory = SiteMemory()

        async def opened(way: str = way, memory: SiteMemory = memory) -> FullWebEnvironment:
            return FullWebEnvironment(site.url, part=9000, same_page=way, memory=memory)

        pool = Pool(opened)
        trees[way] = await search(
            TASK, pool, policy, rule=named_rule("best_first", draws=2, root_draws=3, eager=False),
            budget=Budget(expansions=6), settings=Settings(run=way, close=True, repairs=0),
        )  # fmt: skip
        await pool.close()
    site.close()
    assert (
        NodeStatus.UNREACHABLE in trees["exact"].status and NodeStatus.UNREACHABLE not in trees["distance:0.05"].status
    )
    tree = trees["distance:0.05"]
    far = [seen.distance for seen in tree.observation if seen is not None]
    assert 0 < max(far) <= 0.05 and DISTANT in tree.reasons
    arrays = tree_arrays([tree])
    with pytest.raises(TreewrightError, match=DISTANT):
        estimate("split_loo", arrays)
    assert len(estimate("split_loo", arrays, allow_biased=True).value) == len(tree)
    assert all(observation_text(seen) for seen in tree.observation if seen is not None)  # an arrival is no content


async def test_a_tree_whose_pages_differ_only_in_what_changes_by_itself_stays_exact() -> None:
    count = [0]

    def body(path: Any) -> str:
        count[0] += 1
        return (
            f"<title>{path}</title><p class=seen>{count[0]} people looked</p><a href=/one>one</a><a href=/two>two</a>"
        )

    site, memory = await served(body), SiteMemory()

    async def opened() -> FullWebEnvironment:
        return FullWebEnvironment(site.url, same_page="distance:0.05", memory=memory)

    pool = Pool(opened, 2)
    policy = scripted_choice(
        [('click {"ref": "e1"}', 0.4), ('click {"ref": "e2"}', 0.3), ('answer {"text": "done"}', 0.3)]
    )
    tree = await search(
        TASK, pool, policy, rule=named_rule("best_first", eager=False), budget=Budget(expansions=6),
        settings=Settings(close=True),
    )  # fmt: skip
    await pool.close()
    site.close()
    assert tree.reasons == [] and {s.value for s in tree.status} <= {"expanded", "terminal", "truncated"}
