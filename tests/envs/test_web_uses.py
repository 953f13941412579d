"""What people click, fill and drag without a role that says so, and fields that are not simply typed into."""

from __future__ import annotations

# ruff: noqa: E501
import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none

from treewright.envs.types import Task

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs import Action, Effect, InvalidAction
from treewright.envs.web.browser import close_browser, find_chromium

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from local_site import Visit, serve_pages

if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")
PAGES = {
    "/": "<title>start</title>",
    "/plain": """<title>plain</title><div onclick="document.title='card'" style="cursor:pointer">Card</div>
        <span tabindex=0 onclick="1">Chip</span><li onclick="1">Entry</li><div draggable=true>Ticket</div>
        <svg width=20 height=20 role=img aria-label=Cross onclick="document.title='crossed'"><rect width=20 height=20 /></svg>
        <i class="icon trash" style="cursor:pointer;display:block;width:9px;height:9px"></i>
        <p>Only words</p><div onclick="1" hidden>Gone</div><div onclick="1"><a href=/>Home</a></div>""",
    "/calendar": """<title>calendar</title><div role=grid aria-label=May id=g></div><script>for (let d = 1; d < 4; d++) {
        const cell = document.createElement('div'); cell.setAttribute('role', 'gridcell'); cell.tabIndex = d === 1 ? 0 : -1;
        cell.textContent = d; cell.onclick = () => document.title = 'May ' + d; g.append(cell) }</script>""",
    "/delegated": """<title>delegated</title><ul id=u><li>First<li>Second<li>Third</ul>
        <div id=rows><div class=row style="cursor:pointer">Row one</div><div class=row style="cursor:pointer">Row two <button>x</button></div></div>
        <script>u.onclick = e => document.title = e.target.textContent.trim();
        rows.onclick = e => document.title = e.target.closest('.row').textContent.trim()</script>""",
    "/nested": """<title>nested</title><ul role=tree><li role=treeitem aria-expanded=true>Fruit<ul role=group><li role=treeitem>Apple</ul></ul>
        <div role=tablist><div role=tab aria-selected=true tabindex=0>One <span onclick="document.title='closed'">close</span></div></div>""",
    "/editor": """<title>editor</title><div contenteditable aria-label=Body><p>Hello <b>you</b></p></div><div contenteditable=plaintext-only>plain</div>
        <iframe srcdoc="<body contenteditable>rich</body>"></iframe>""",
    "/inputs": """<title>inputs</title><form><label>A <input type=date name=a></label><label>B <input type=time name=b></label>
        <label>C <input type=month name=c></label><label>D <input type=week name=d></label><label>F <input type=datetime-local name=f></label>
        <label>G <input type=color name=g></label><label>H <input type=range name=h max=10 step=2></label></form><p id=o></p>
        <script>document.forms[0].oninput = () => { o.textContent = new URLSearchParams(new FormData(document.forms[0])) }</script>""",
    # A slider that is controlled the way that frameworks do it: a change is only seen past the element's own setter.
    "/controlled": """<title>controlled</title><input type=range aria-label=Price value=10><p id=out>price 10</p><script>
        const input = document.querySelector('input'), real = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value');
        let known = '10', state = '10';
        Object.defineProperty(input, 'value', {configurable: true, get() { return real.get.call(this) }, set(v) { known = String(v); real.set.call(this, v) }});
        input.addEventListener('input', () => { const now = real.get.call(input); if (now !== known) { known = state = now }
          real.set.call(input, state); out.textContent = 'price ' + state });</script>""",
    "/aria-slider": """<title>aria slider</title><div role=slider tabindex=0 aria-label=Volume aria-valuenow=3 style="width:100px;height:20px"
        onkeydown="const d = {ArrowRight: 1, ArrowLeft: -1}[event.key] || 0; this.setAttribute('aria-valuenow', Math.min(8, +this.getAttribute('aria-valuenow') + d))"></div>""",
    "/boxes": """<title>boxes</title><style>.a{position:absolute;opacity:0;width:0;height:0}.b{position:absolute;left:-9999px}.c{display:none}</style>
        <label><input type=checkbox class=a><span>Newsletter</span></label><label><input type=checkbox class=b><span>Terms</span></label>
        <label><input type=checkbox class=c><span>Gift</span></label><label><input type=radio class=c name=r><span>Fast <a href=/>why</a></span></label>
        <input type=checkbox id=far class=c checked><label for=far>Far</label><button aria-pressed=false onclick="this.ariaPressed = this.ariaPressed !== 'true'">Bold</button><p id=o></p>
        <script>document.onchange = () => { o.textContent = [...document.querySelectorAll('input')].map(i => +i.checked).join('') }</script>""",
    "/stubborn": """<title>stubborn</title><input type=checkbox aria-label=Never onclick="event.preventDefault()">""",
    "/listbox": """<title>listbox</title><ul role=listbox aria-label=Colour><li role=option>Red<li role=option aria-selected=true>Green<li role=option>Blue</ul>
        <script>document.querySelectorAll('li').forEach(l => l.onclick = () => { document.title = 'chose ' + l.textContent.trim() })</script>""",
    "/popups": """<title>popups</title><div role=combobox tabindex=0 aria-expanded=false aria-label=Size id=c>Pick</div>
        <ul role=listbox id=l hidden><li role=option>S<li role=option>M</ul><button id=b aria-haspopup=listbox>Colour</button><div id=pop></div><script>
        c.onclick = () => { l.hidden = !l.hidden; c.ariaExpanded = !l.hidden }; l.onclick = e => { document.title = 'size ' + e.target.textContent.trim(); l.hidden = true };
        b.onclick = () => setTimeout(() => { pop.innerHTML = '<div>Red</div><div>Blue</div>'; pop.querySelectorAll('div').forEach(d => {
          d.style.cursor = 'pointer'; d.onclick = () => { document.title = 'colour ' + d.textContent; pop.innerHTML = '' } }) }, 10)</script>""",
    "/complete": """<title>complete</title><input role=combobox aria-label=City aria-expanded=false autocomplete=off id=c><ul role=listbox id=s></ul>
        <script>c.oninput = async () => { const all = await (await fetch('/cities?q=' + c.value)).json(); s.innerHTML = all.map(x => '<li role=option>' + x).join('');
        s.querySelectorAll('li').forEach(l => l.onclick = () => { c.value = l.textContent; s.innerHTML = ''; document.title = 'to ' + c.value }) }</script>""",
    "/multiple": """<title>multiple</title><label>Sizes <select multiple><option>small<option>medium<option>large</select></label>""",
    "/masked": """<title>masked</title><input aria-label=Card oninput="this.value = this.value.replace(/(\\d{4})(?=\\d)/g, '$1 ')">
        <input aria-label=Short maxlength=3><input type=password aria-label=Secret><input type=number aria-label=Count>""",
    "/leave": """<title>leave</title><input aria-label=name oninput="window.onbeforeunload = e => { e.preventDefault(); return 'x' }"><a href=/plain>away</a>""",
    "/redrawn": """<title>redrawn</title><button>Sell</button><div id=host></div><script>let n = 0; const draw = () => {
        host.innerHTML = '<button>Buy now</button>'; host.firstChild.onclick = () => { document.title = 'bought' } }; draw(); window.draw = draw</script>""",
    "/infinite": """<title>infinite</title><div id=l style="height:200px;overflow:auto" aria-label=Feed></div><script>let n = 0; const add = () => {
        for (let i = 0; i < 5; i++) { const p = document.createElement('p'); p.style.cssText = 'height:40px;margin:0'; p.textContent = 'item ' + n++; l.append(p) } }; add(); add();
        l.onscroll = () => { if (l.scrollTop + l.clientHeight > l.scrollHeight - 90) setTimeout(add, 5) }</script>""",
    "/virtual": """<title>virtual</title><div id=l style="height:200px;overflow:auto"><div id=inner style="height:4000px;position:relative"></div></div><script>
        const draw = () => { const first = Math.floor(l.scrollTop / 40); inner.innerHTML = ''; for (let i = first; i < first + 6; i++) { const b = document.createElement('button');
        b.style.cssText = 'position:absolute;height:30px;top:' + i * 40 + 'px'; b.textContent = 'row ' + i; b.onclick = () => document.title = 'chose ' + i; inner.append(b) } }; draw(); l.onscroll = draw</script>""",
    "/sticky": """<title>sticky</title><style>header{position:fixed;top:0;left:0;right:0;bottom:0;background:#fff}</style><button onclick="document.title='done'">Under</button>
        <header role=dialog aria-label="We use cookies" id=h><button onclick="h.remove()">Accept</button></header>""",
    "/bar": """<title>bar</title><div style="position:fixed;bottom:0;left:0;right:0;height:380px;background:#fff">bar</div><div style="height:300px"></div>
        <button style="height:200px" onclick="document.title='done'">Half</button>""",
    "/tooltip": """<title>tooltip</title><span tabindex=0 onmouseenter="t.hidden = false" onmouseleave="t.hidden = true">Info</span><div role=tooltip id=t hidden>secret words</div>""",
    "/drag": """<title>drag</title><div draggable=true ondragstart="event.dataTransfer.setData('text', 'x')" style="width:80px">Ticket</div>
        <div id=z style="height:80px;width:200px;margin-top:50px">Done</div><script>z.addEventListener('dragover', e => e.preventDefault());
        z.addEventListener('drop', e => { e.preventDefault(); z.textContent = 'Done: Ticket' })</script>""",
    "/menu": """<title>menu</title><div role=menubar tabindex=0 aria-label=Main id=m><div role=menuitem tabindex=-1>File</div><div role=menuitem tabindex=-1>Edit</div></div><script>
        let at = -1; m.onkeydown = e => { if (e.key === 'ArrowRight') m.children[at = (at + 1) % 2].focus(); else if (e.key === 'Enter') document.title = 'ran ' + m.children[at].textContent }</script>""",
    "/windows": """<title>windows</title><a href=/tooltip target=_blank>New</a><button onclick="window.open('/menu', '_blank', 'noopener')">Pop</button>""",
    "/download": "<title>download</title><a href=/file.bin download>Get it</a>",
    "/print": """<title>print</title><button onclick="print(); document.title = 'printed'">show print</button>""",
    "/app": """<title>app</title><nav><a href=/app/a>A</a><a href=/app/b>B</a></nav><main id=m>start</main><script>
        const show = () => { m.innerHTML = '<h1>' + location.pathname + '</h1>' }; onpopstate = show;
        document.querySelectorAll('a').forEach(a => a.onclick = e => { e.preventDefault(); history.pushState({}, '', a.getAttribute('href')); show() })</script>""",
    "/fetching": """<title>fetching</title><form id=f><input name=q aria-label=Name><button>Send</button></form><form action=/plain><button>Look</button></form><script>
        f.onsubmit = async e => { e.preventDefault(); await fetch('/save', {method: 'POST', body: 'x'}); document.title = 'saved' }</script>""",
    "/canvas": """<title>canvas</title><canvas width=100 height=50><button onclick="document.title = 'inside'">Inside</button></canvas>
        <canvas role=button tabindex=0 aria-label=Pad width=50 height=50 onclick="document.title = 'pad'"></canvas>""",
    "/files": """<title>files</title><input type=file id=up hidden onchange="document.title = this.files[0].name"><label for=up>Choose photo</label>
        <input type=file id=cv hidden name=cv onchange="document.title = 'cv ' + this.files[0].name"><button onclick="cv.click()">Attach</button>""",
}  # fmt: skip


def answer(method: str, path: Any, head: Any) -> tuple[str | bytes, str] | None:
    if path.startswith("/cities"):
        wanted = path.partition("q=")[2].lower()
        found = [city for city in ("Rome", "Rotterdam", "Oslo") if city.lower().startswith(wanted)]
        return str(found).replace("'", '"'), "Content-Type: application/json\r\n"
    if path == "/file.bin":
        return b"\0" * 9, "Content-Type: application/octet-stream\r\n"
    return None


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Any]:
    server = await serve_pages(PAGES, answer)
    yield server
    server.close()
    await close_browser()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def visit(site: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Visit]:
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "me.png").write_bytes(b"x")
    found = Visit(f"{site.url}/", uploads=folder)
    yield found
    await found.env.close()


def named(visit: Visit) -> set[Any]:
    return {(element.role, element.name) for element in visit.env._view.elements.values()}


async def test_what_listens_takes_the_focus_or_can_be_dragged_has_a_reference_and_nothing_else(visit: Visit) -> None:
    await visit.at("/plain")
    assert named(visit) == {
        ("clickable", "Card"), ("clickable", "Chip"), ("listitem", "Entry"), ("draggable", "Ticket"),
        ("image", "Cross"), ("clickable", "icon trash"), ("link", "Home"),
    }  # fmt: skip
    assert 'page "card"' in await visit.do("click", "Card")
    assert 'page "crossed"' in await visit.do("click", "Cross")


async def test_a_click_on_what_has_no_role_is_judged_by_its_words(visit: Visit) -> None:
    await visit.at("/plain")
    assert await visit.env.effect(Action.of("click", ref=visit.ref("Card"))) is Effect.UNKNOWN
    await visit.at("/calendar")
    assert await visit.env.effect(Action.of("click", ref=visit.ref("2"))) is Effect.REVERSIBLE


async def test_days_of_a_calendar_can_be_chosen(visit: Visit) -> None:
    await visit.at("/calendar")
    assert 'page "May 3"' in await visit.do("click", "3")


async def test_items_are_named_where_their_list_listens_for_them(visit: Visit) -> None:
    await visit.at("/delegated")
    assert 'page "Second"' in await visit.do("click", "Second")
    assert 'page "Row one"' in await visit.do("click", "Row one")
    assert 'page "Row two x"' in await visit.do("click", "Row two x")


async def test_what_is_used_inside_of_something_usable_is_named_too(visit: Visit) -> None:
    await visit.at("/nested")
    assert ("treeitem", "Apple") in named(visit)
    assert 'page "closed"' in await visit.do("click", "close")


async def test_editors_are_written_into_in_the_page_and_in_frames(visit: Visit) -> None:
    await visit.at("/editor")
    assert 'editor "Body" e1 = "Hello you"' in visit.seen.text
    assert 'editor "Body" e1 = "New words"' in await visit.do("fill", "Body", text="New words")
    assert 'editor "bare" e2 = "bare"' in await visit.do("fill", "plain", text="bare")
    assert '"poor" e3 = "poor"' in await visit.do("fill", "rich", text="poor")


@pytest.mark.parametrize(
    ("name", "text", "held", "wrong"),
    [
        ("A", "2026-05-06", "a=2026-05-06", "5"),
        ("B", "13:05", "b=13%3A05", "1 pm"),
        ("C", "2026-05", "c=2026-05", "May"),
        ("D", "2026-W22", "d=2026-W22", "22"),
        ("F", "2026-05-06T13:05", "f=2026-05-06T13%3A05", "2026-05-06"),
        ("G", "#ff8800", "g=%23ff8800", "very warm"),
        ("H", "4", "h=4", "much"),
    ],
)
async def test_fields_whose_value_is_assigned_take_it_or_say_what_they_take(
    visit: Visit, name: str, text: str, held: str, wrong: str
) -> None:
    await visit.at("/inputs")
    with pytest.raises(InvalidAction, match=r"takes a .* such as"):
        await visit.do("fill", name, text=wrong)
    before = visit.seen.fingerprint
    assert held in await visit.do("fill", name, text=text)
    assert visit.seen.fingerprint != before and f'"{name}" {visit.ref(name)} = "{text}"' in visit.seen.text
    assert "note" not in visit.seen.text


async def test_what_a_page_made_of_a_value_is_told(visit: Visit) -> None:
    await visit.at("/inputs")
    assert 'note e7 "H" holds "6"' in await visit.do("fill", "H", text="5")
    await visit.at("/masked")
    assert 'note e1 "Card" holds "1234 5678"' in await visit.do("fill", "Card", text="12345678")
    told = visit.seen
    assert 'note e2 "Short" holds "123"' in await visit.do("fill", "Short", text="12345")
    assert 'note e4 "Count" holds ""' in await visit.do("fill", "Count", text="many")
    assert "note" not in await visit.do("fill", "Secret", text="pass")
    await visit.at("/masked")
    await visit.do("fill", "Card", text="1234 5678")
    assert visit.seen.fingerprint == told.fingerprint and "note" not in visit.seen.text  # the same page, told or not
    await visit.at("/stubborn")
    assert 'note e1 "Never" is off all the same' in await visit.do("check", "Never", on=True)


async def test_a_slider_keeps_its_value_whoever_holds_its_state(visit: Visit) -> None:
    await visit.at("/controlled")
    assert "price 42" in await visit.do("fill", "Price", text="42")
    assert 'slider "Price" e1 = "42"' in visit.seen.text
    await visit.at("/aria-slider")
    assert 'slider "Volume" e1 = "6"' in await visit.do("fill", "Volume", text="6")
    assert 'slider "Volume" e1 = "1"' in await visit.do("fill", "Volume", text="1")
    assert 'note e1 "Volume" holds "8"' in await visit.do("fill", "Volume", text="50")
    with pytest.raises(InvalidAction, match="takes a number"):
        await visit.do("fill", "Volume", text="loud")


async def test_boxes_drawn_by_their_label_are_turned_on_and_off(visit: Visit) -> None:
    await visit.at("/boxes")
    for name, state in (("Newsletter", "10001"), ("Terms", "11001"), ("Gift", "11101"), ("Fast why", "11111")):
        assert f'text "{state}"' in await visit.do("check", name, on=True)
    assert 'text "11110"' in await visit.do("check", "Far", on=False)
    assert 'checkbox "Gift" e3 checked' in visit.seen.text
    assert 'button "Bold" e7 pressed' in await visit.do("check", "Bold", on=True)


async def test_options_of_a_listbox_are_elements_and_can_be_selected_by_name(visit: Visit) -> None:
    await visit.at("/listbox")
    assert 'option "Green" e3 selected' in visit.seen.text
    assert 'page "chose Blue"' in await visit.do("select", "Colour", option="Blue")
    assert 'page "chose Red"' in await visit.do("click", "Red")
    with pytest.raises(InvalidAction, match="no option 'Grey'"):
        await visit.do("select", "Colour", option="Grey")


async def test_lists_that_open_when_they_are_used_are_opened_and_chosen_from(visit: Visit) -> None:
    await visit.at("/popups")
    assert 'page "size M"' in await visit.do("select", "Size", option="M")
    assert 'page "colour Blue"' in await visit.do("select", "Colour", option="Blue")
    assert 'note e1 was opened; it has no option "XL"; there are: "S", "M"' in await visit.do(
        "select", "Size", option="XL"
    )
    with pytest.raises(InvalidAction, match="only fields can be filled; choose one of its options"):
        await visit.do("fill", "Size", text="M")


async def test_an_autocomplete_offers_what_fits_and_takes_a_choice(visit: Visit) -> None:
    await visit.at("/complete")
    await visit.do("fill", "City", text="ro")
    assert {("option", "Rome"), ("option", "Rotterdam")} <= named(visit) and ("option", "Oslo") not in named(visit)
    assert 'page "to Rotterdam"' in await visit.do("click", "Rotterdam")


async def test_several_chosen_options_are_shown_and_are_another_state(visit: Visit) -> None:
    await visit.at("/multiple")
    prints = [visit.seen.fingerprint]
    for option, shown in (
        ("medium", '= "medium" from'),
        ("large", '= "medium", "large" from'),
        ("medium", '= "large"'),
    ):
        assert shown in await visit.do("select", "Sizes", option=option)
        prints.append(visit.seen.fingerprint)
    assert len(set(prints)) == 4


async def test_a_page_that_asks_before_it_is_left_asks_the_policy_and_holds_nobody_up(visit: Visit) -> None:
    await visit.at("/leave")
    await visit.do("fill", "name", text="x")
    assert "dialog beforeunload" in await visit.do("goto", path="/plain")
    assert 'page "leave"' in await visit.do("dismiss")
    await visit.do("click", "away")
    assert await visit.env.effect(Action.of("accept", text="")) is Effect.READ
    assert 'page "plain"' in await visit.do("accept", text="")


async def test_a_page_that_asks_before_it_is_left_is_left_where_nobody_is_asked(site: Any) -> None:
    visit = Visit(f"{site.url}/leave", asks=False, patience=5.0, reuse=True)
    try:
        await visit.env.reset(Task("web", "1", ""), 0)
        visit.seen = await visit.env._look()
        await visit.do("fill", "name", text="x")
        assert 'page "plain"' in await visit.do("goto", path="/plain")
        assert visit.result.info["dialogs"]
        await visit.do("back")
        await visit.do("fill", "name", text="x")
        assert 'page "leave"' in (await visit.env.reset(Task("web", "1", ""), 0)).text
    finally:
        await visit.env.close()


async def test_an_element_that_was_drawn_anew_is_found_again_by_role_name_and_place(visit: Visit) -> None:
    await visit.at("/redrawn")
    page = not_none(visit.env._tab).page
    await page.evaluate("draw()")
    assert 'page "bought"' in await visit.do("click", "Buy now")
    await visit.at("/redrawn")
    await not_none(visit.env._tab).page.evaluate("host.innerHTML = ''")
    with pytest.raises(InvalidAction, match='the button "Buy now", is no longer on the page'):
        await visit.do("click", "Buy now")


async def test_lists_without_end_and_lists_drawn_as_they_are_scrolled_go_on(visit: Visit) -> None:
    await visit.at("/infinite")
    for _ in range(2):
        await visit.do("scroll", "Feed", direction="down")
    assert 'text "item 14"' in visit.lines
    await visit.at("/virtual")
    await visit.do("scroll", "row 0", direction="down")
    assert 'page "chose 8"' in await visit.do("click", "row 8")


async def test_what_covers_an_element_is_named_and_half_covered_ones_are_clicked_where_they_are_free(
    visit: Visit,
) -> None:
    await visit.at("/sticky")
    with pytest.raises(InvalidAction, match=r'covered by another element \("We use cookies"\)'):
        await visit.do("click", "Under")
    await visit.do("click", "Accept")
    assert 'page "done"' in await visit.do("click", "Under")
    await visit.at("/bar")
    assert 'page "done"' in await visit.do("click", "Half")


async def test_tooltips_show_while_the_mouse_is_there(visit: Visit) -> None:
    await visit.at("/tooltip")
    assert "secret words" in await visit.do("hover", "Info")


async def test_parts_are_dragged_onto_places_that_listen_for_them(visit: Visit) -> None:
    await visit.at("/drag")
    assert named(visit) == {("draggable", "Ticket"), ("droppable", "Done")}
    assert "Done: Ticket" in await visit.do("drag", "Ticket", to="Done")


async def test_a_menu_of_keys_alone_shows_where_the_focus_is(visit: Visit) -> None:
    await visit.at("/menu")
    assert 'menuitem "File" e2 focused' in await visit.do("press", "Main", key="ArrowRight")
    assert 'menuitem "Edit" e3 focused' in await visit.do("press", ref="", key="ArrowRight")
    assert 'page "ran Edit"' in await visit.do("press", ref="", key="Enter")


async def test_new_windows_downloads_and_printing_hold_nothing_up(visit: Visit) -> None:
    await visit.at("/windows")
    assert "windows 1 /windows, 2 /tooltip shown" in await visit.do("click", "New")
    await visit.do("tab", number=1)
    assert "3 /menu shown" in await visit.do("click", "Pop")
    await visit.at("/download")
    assert 'note the file "file.bin" was offered and not saved' in await visit.do("click", "Get it")
    await visit.at("/print")
    assert 'page "printed"' in await visit.do("click", "show print")


async def test_an_app_that_sets_its_own_addresses_goes_back_as_a_browser_does(visit: Visit, site: Any) -> None:
    await visit.at("/app")
    await visit.do("click", "A")
    assert 'heading "/app/b"' in await visit.do("click", "B")
    site.asked.clear()
    assert 'heading "/app/a"' in await visit.do("back")
    assert not [line for line in site.asked if "/app" in line]


async def test_a_form_that_posts_by_script_is_not_taken_for_one_that_asks(visit: Visit, site: Any) -> None:
    await visit.at("/fetching")
    assert await visit.env.effect(Action.of("click", ref=visit.ref("Send"))) is Effect.UNKNOWN
    assert await visit.env.effect(Action.of("click", ref=visit.ref("Look"))) is Effect.READ
    site.asked.clear()
    assert 'page "saved"' in await visit.do("click", "Send")
    assert site.asked == ["POST /save"] and visit.result.effect is Effect.UNKNOWN


async def test_buttons_of_a_canvas_are_pressed_by_their_accessible_names(visit: Visit) -> None:
    await visit.at("/canvas")
    assert 'page "inside"' in await visit.do("click", "Inside")
    assert 'page "pad"' in await visit.do("click", "Pad")


async def test_file_fields_that_are_not_drawn_take_files(visit: Visit) -> None:
    await visit.at("/files")
    assert 'page "me.png"' in await visit.do("upload", "Choose photo", file="me.png")
    assert 'page "cv me.png"' in await visit.do("upload", "cv", file="me.png")


async def test_the_same_page_gives_the_same_lines_and_fingerprint_every_time(visit: Visit) -> None:
    for path in ("/plain", "/delegated", "/boxes", "/popups", "/editor"):
        await visit.at(path)
        first = visit.seen
        await visit.at(path)
        assert (visit.seen.text, visit.seen.fingerprint) == (first.text, first.fingerprint)
    await asyncio.sleep(0)
