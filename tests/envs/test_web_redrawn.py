"""Pages that draw their elements anew while they are scrolled or clicked: what is meant is clicked, or it is told."""

from __future__ import annotations

# ruff: noqa: E501
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from not_none import not_none

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs.web.browser import close_browser, find_chromium

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from local_site import Visit, serve_pages

if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")
PAGES = {
    # Rows are drawn anew when the page hears that they were scrolled, at the latest when the mouse comes down on them.
    "/late": """<title>late</title><div id=l style="height:200px;overflow:auto"><div id=inner style="height:4000px;position:relative"></div></div><script>
        let at = -1; const draw = () => { if (at === l.scrollTop) return; at = l.scrollTop; inner.innerHTML = ''; for (let i = 0; i < 90; i++) { const b = document.createElement('button');
        b.style.cssText = 'position:absolute;height:30px;top:' + (i * 40 + (at ? 40 : 0)) + 'px'; b.textContent = 'row ' + i; b.onclick = () => document.title = 'chose ' + i; inner.append(b) } };
        draw(); l.onscroll = draw; addEventListener('mousedown', draw, true)</script>""",
    "/swallows": """<title>swallows</title><div id=host></div><script>const draw = (then) => {
        host.innerHTML = '<button>Buy</button><input type=checkbox aria-label=Gift>'; host.firstChild.onclick = () => { document.title = 'bought' } };
        draw(); host.addEventListener('mousedown', draw)</script>""",
    "/opens": """<title>opens</title><div id=host><button>Menu</button></div><script>
        host.onmousedown = () => { document.title = 'opened'; host.innerHTML = '<a href=/plain>Plain</a>' }</script>""",
    "/leaves": """<title>leaves</title><div id=host><button onclick="document.title = 'left'; this.remove()">Leave</button></div>""",
    "/restless": """<title>restless</title><div id=host></div><script>let left = 40; const draw = () => { host.innerHTML = '<button>Buy</button>';
        host.firstChild.onclick = () => { document.title = 'bought' } }; draw();
        window.start = () => { const real = Element.prototype.scrollIntoView; Element.prototype.scrollIntoView = function (how) { real.call(this, how); if (left-- > 36) draw() } }</script>""",
    "/plain": "<title>plain</title>",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def visit() -> AsyncIterator[Visit]:
    server = await serve_pages(PAGES)
    found = Visit(f"{server.url}/")
    yield found
    await found.env.close()
    server.close()
    await close_browser()


async def test_a_row_that_scrolling_moves_and_draws_anew_is_clicked_where_it_then_stands(visit: Visit) -> None:
    await visit.at("/late")
    for row in (30, 8, 60):
        assert f'page "chose {row}"' in await visit.do("click", f"row {row}")
        assert "note" not in visit.seen.text


async def test_a_click_that_a_redraw_swallowed_is_told_and_one_that_acted_is_not(visit: Visit) -> None:
    await visit.at("/swallows")
    before = visit.seen.fingerprint
    told = await visit.do("click", "Buy")
    assert 'page "swallows"' in told and 'note the click did not reach e1 "Buy": it was drawn anew meanwhile' in told
    assert visit.seen.fingerprint == before
    told = await visit.do("check", "Gift", on=True)
    assert 'note the click did not reach e2 "Gift"' in told and 'note e2 "Gift" is off all the same' in told
    await visit.at("/leaves")
    assert "note" not in await visit.do("click", "Leave") and 'page "left"' in visit.seen.text
    await visit.at("/opens")  # the mouse's going down was all that this page waits for: told too, beside what it did
    assert 'page "opened"' in await visit.do("click", "Menu") and "did not reach" in visit.seen.text


async def test_an_element_that_is_drawn_anew_while_the_mouse_comes_is_found_again_before_it_is_pressed(
    visit: Visit,
) -> None:
    await visit.at("/restless")
    await not_none(visit.env._tab).page.evaluate("start()")
    assert 'page "bought"' in await visit.do("click", "Buy")
    assert "note" not in visit.seen.text
