"""What a hand does beyond clicking and writing: keys, hovering, scrolling, dragging, files.

Every function takes the tab and elements of its last view; all raise InvalidAction for what the page does not allow.
"""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import Error as PlaywrightError

from treewright.envs.errors import InvalidAction
from treewright.envs.web.pointing import click, point
from treewright.envs.web.tab import Tab
from treewright.envs.web.view import Element

__all__ = ["check", "drag", "drag_at", "hover", "press", "scroll", "type_text", "upload", "upload_path"]

STEPS = 8  # mouse moves of one drag
PAGE = 0.8  # share of what is seen that one scroll moves by
_SCROLL = """function (across, down, share) {
  let box = this === document.documentElement ? document.scrollingElement : this;
  const fits = b => across ? b.scrollWidth <= b.clientWidth + 1 : b.scrollHeight <= b.clientHeight + 1;
  while (box && box !== document.scrollingElement && (fits(box) || getComputedStyle(box).overflowY === 'visible'
         && box.tagName !== 'TEXTAREA')) box = box.parentElement;
  box = box || document.scrollingElement;
  const before = [box.scrollLeft, box.scrollTop];
  box.scrollBy({left: across * share * box.clientWidth, top: down * share * box.clientHeight, behavior: 'instant'});
  return before[0] !== box.scrollLeft || before[1] !== box.scrollTop;
}"""
_FOCUS = "function () { this.scrollIntoView({block: 'center', behavior: 'instant'}); this.focus(); }"
KEYS = 500  # that are pressed one by one
_WAYS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


async def press(tab: Tab, element: Element | None, key: str) -> None:
    """A key such as 'Enter', 'ArrowDown', 'a' or 'Control+A', sent to an element or to what has the focus."""
    if element is not None:
        await tab.call(element, _FOCUS)
    try:
        await tab.watcher.unless_asked(tab.page.keyboard.press(key))
    except PlaywrightError as error:
        if "Unknown key" in error.message:
            raise InvalidAction(
                f"no key {key!r}; keys are named Enter, Tab, Escape, ArrowDown, a, Control+A"
            ) from error
        raise


async def type_text(tab: Tab, text: str) -> None:
    """Key by key, to what has the focus. Of a line longer than KEYS the rest comes at once, as by an input method."""
    keys = len(text) if "\n" in text else KEYS  # Enter is a key that does something

    async def typed() -> None:
        await tab.page.keyboard.type(text[:keys])
        if text[keys:]:
            await tab.page.keyboard.insert_text(text[keys:])

    await tab.watcher.unless_asked(typed())


async def hover(tab: Tab, element: Element) -> None:
    await tab.move_to(*await point(tab, element))


async def check(tab: Tab, element: Element, on: bool) -> bool:
    """Clicks a box or a switch if it is not as wanted already; False if the click was lost."""
    return element.on is on or await click(tab, element)


async def scroll(tab: Tab, element: Element | None, direction: str) -> None:
    """Moves what the element stands in, or the page, by most of what is seen. Raises InvalidAction at the end."""
    across, down = _WAYS[direction]
    if element is not None:
        moved = await tab.call(element, _SCROLL, across, down, PAGE)
    else:
        call = f"({_SCROLL}).call(document.documentElement, {across}, {down}, {PAGE})"
        answer = await tab.cdp.send("Runtime.evaluate", {"expression": call, "returnByValue": True})
        moved = answer["result"].get("value")
    if not moved:
        raise InvalidAction(f"cannot scroll {direction}: this is the end")


async def drag(tab: Tab, element: Element, target: Element) -> None:
    """Presses on one element, moves, and lets go on another."""
    from_x, from_y = await point(tab, element)
    to_x, to_y = await point(tab, target)
    await drag_at(tab, from_x, from_y, to_x, to_y)


async def drag_at(tab: Tab, from_x: float, from_y: float, to_x: float, to_y: float) -> None:
    """By Playwright's mouse, which also plays the browser's part where a page uses the drag and drop of HTML."""
    mouse = tab.page.mouse
    tab.mouse = (to_x, to_y)

    async def moves() -> None:
        await mouse.move(from_x, from_y)
        await mouse.down()
        await mouse.move(to_x, to_y, steps=STEPS)
        await mouse.up()

    await tab.watcher.unless_asked(tab.drawn(moves()))


def upload_path(folder: Path | None, name: str) -> Path:
    """The file of that name in the folder that uploads may come from. Raises InvalidAction for anything else."""
    if folder is None:
        raise InvalidAction("no folder is open for uploads")
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        known = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
        raise InvalidAction(f"no file {name!r} to upload; there are: {', '.join(known[:20]) or 'none'}")
    return path


async def upload(tab: Tab, element: Element, path: Path) -> None:
    """Puts a file into a file field; a page shows such a field as a button."""
    known = await tab.call(element, "function () { return this.type === 'file' }")
    if not known:
        raise InvalidAction(f"{element.ref} is a {element.role}; it takes no files")
    session = tab.frames.session(element.frame) or tab.cdp
    await session.send("DOM.setFileInputFiles", {"files": [str(path)], "backendNodeId": element.node})
