"""What a page draws or puts into bare elements: lines with places, for pages that an accessibility tree says little of.

    shape "circle red" at 80,120 size 20x20
    shape "span 'Submit'" at 34,66 size 40x12

Places are centres in pixels of the window, for actions that point (`click_at`, `drag_at`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from treewright.envs.web.tab import Tab
from treewright.envs.web.view import PageView

__all__ = ["look_for_shapes", "with_shapes"]

Row = tuple[str, int, int, int, int]

MOST = 80  # lines of one page
_FIND = """(selector, most) => {
  const found = [], CLEAR = 'rgba(0, 0, 0, 0)', usable = 'button, a[href], input, select, textarea, option';
  for (const root of document.querySelectorAll(selector)) for (const e of root.querySelectorAll('*')) {
    const svg = e instanceof SVGElement, tag = e.tagName.toLowerCase();
    if (found.length >= most || e.closest(usable)) continue;
    if (['svg', 'g', 'defs', 'br', 'script', 'style'].includes(tag)) continue;
    const own = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join(' ').replace(/\\s+/g, ' ').trim();
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    const drawn = svg || tag === 'canvas' || tag === 'img' || style.cursor === 'pointer' || e.draggable ||
      (!e.children.length && (own || style.backgroundImage !== 'none' || style.backgroundColor !== CLEAR));
    if (!(drawn || own) || !box.width || !box.height) continue;
    if (style.visibility === 'hidden' || style.opacity === '0') continue;
    const colour = svg ? (e.getAttribute('fill') || e.style.fill || e.getAttribute('stroke') || '') :
      own || tag === 'canvas' ? '' : style.backgroundColor;
    const corners = svg && tag === 'polygon' ? String(e.getAttribute('points')).trim().split(/[ ]+/).length : 0;
    const points = corners ? corners + ' corners' : '';
    found.push([[tag, e.id && !svg ? '#' + e.id : '', colour, points, own && JSON.stringify(own.slice(0, 60))]
      .filter(Boolean).join(' '), box.x + box.width / 2, box.y + box.height / 2, box.width, box.height].map(
        v => typeof v === 'number' ? Math.round(v) : v));
  }
  return found;
}"""


async def look_for_shapes(tab: Tab, selector: str) -> Sequence[Row]:
    """Every drawn or bare element inside of what the selector finds: what it is, its centre, and its size."""
    expression = f"({_FIND})({json.dumps(selector)}, {MOST})"
    answer = await tab.cdp.send("Runtime.evaluate", {"expression": expression, "returnByValue": True})
    rows: list[Row] = answer["result"].get("value") or []
    return rows


def with_shapes(view: PageView, rows: Sequence[Row]) -> PageView:
    """The view with a line for each of these elements."""
    lines = [
        (f"shape {json.dumps(what, ensure_ascii=False)} at {x},{y} size {w}x{h}", "", "") for what, x, y, w, h in rows
    ]
    return replace(view, lines=(*view.lines, *lines))
