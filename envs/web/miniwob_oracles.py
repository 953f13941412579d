"""Experts for a part of MiniWoB: what a reader of the page's text would do next, for demonstrations and benchmarks.

Each expert is a function of the page as the policy sees it and of the actions taken so far; none reads the page's
code or its reward. `KNOWN` lists the tasks that have one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from treewright.envs.types import Action, Task, ToolSpec, Turn
from treewright.envs.web.miniwob_page import STEP, Expert, Line, Seen, click, fill, filled, read_page, submit

__all__ = ["KNOWN", "STEP", "oracle"]

# Clicking what is named.


def _named_button(page: Seen) -> Action:
    return click(page.find(page.quoted()[-1]))


def _only_button(page: Seen) -> Action:
    return click(page.all("button")[0])


def _sequence(page: Seen) -> Action:
    return click(page.find("ONE" if not page.done else "TWO"))


def _button_one(page: Seen) -> Action:
    return click(page.find("ONE"))


def _link(page: Seen) -> Action:
    return click(page.drawn(page.quoted()[-1]))


def _tab(page: Seen) -> Action:
    number = re.findall(r"#(\d+)", page.goal)[-1]
    return click(page.find(f"Tab #{number}"))


def _tabs(page: Seen) -> Action:
    """Looks behind one tab or section after the other."""
    wanted = page.drawn(page.quoted()[-1])
    if wanted is not None:
        return click(wanted)
    tabs = page.all("tab")
    return click(tabs[len(page.done) % len(tabs)])


def _close_dialog(page: Seen) -> Action:
    return click(page.find("Close"))


def _dialog_button(page: Seen) -> Action:
    wanted = page.quoted()[-1]
    return click(page.find("Close" if wanted == "x" else wanted))


def _collapsible(page: Seen) -> Action:
    if not page.done:
        return click(page.all("tab")[0])
    return click(page.find("Submit"))


def _widget(page: Seen) -> Action:
    role = {"textarea": "textbox", "text": "textbox", "button": "button", "radio": "radio", "checkbox": "checkbox"}
    found = page.all(role[page.quoted()[-1]])
    return click(found[len(page.done) % len(found)] if found else None)


def _menu(page: Seen) -> Action:
    path = page.goal.removeprefix("Select ").split(">")
    return click(page.find(path[min(len(page.done), len(path) - 1)], "menuitem"))


def _focus(page: Seen) -> Action:
    number = re.search(r"(\d+)(st|nd|rd|th)", page.goal)
    return click(page.all("textbox")[int(number[1]) - 1 if number else 0])


def _buy(page: Seen) -> Action:
    offers = page.all("button")
    if "cheapest" in page.goal or "least" in page.goal or "expensive" in page.goal:
        pick = max if "most expensive" in page.goal else min
        return click(pick(offers, key=lambda x: int(re.sub(r"\D", "", x.name) or 0)))
    times = [re.findall(r"\d+", text) for text in page.texts() if re.fullmatch(r"\d+h \d+m", text)]
    minutes = [60 * int(hours) + int(rest) for hours, rest in times]
    return click(offers[minutes.index(min(minutes) if "shortest" in page.goal else max(minutes))])


# Boxes and lists.


def _boxes(page: Seen) -> Action:
    wanted = re.sub(r"^Select | and click Submit\.?$", "", page.goal).split(", ")
    for box in page.all("checkbox", "radio"):
        if box.name in wanted and "checked" not in box.rest:
            return Action.of("check", ref=box.ref, on=True)
    return submit(page)


def _option(page: Seen) -> Action:
    found = re.match(r"Select (.*?) (?:from the (?:scroll )?list )?and click Submit", page.goal)
    choice = next(iter(page.all("combobox", "listbox")), None)
    if found is None or choice is None:
        return submit(page)
    for wanted in found[1].split(", "):
        if page.done and any(a.arguments.get("option") == wanted for a in page.done):
            continue
        return Action.of("select", ref=choice.ref, option=wanted)
    return submit(page)


# Writing.


def _text(page: Seen) -> Action:
    return filled(page, [page.quoted()[0]])


def _text_cased(page: Seen) -> Action:
    text = page.quoted()[0]
    return filled(page, [text.upper() if "upper" in page.goal else text.lower()])


def _password(page: Seen) -> Action:
    return filled(page, page.quoted()[:1] * 2)


def _login(page: Seen) -> Action:
    return filled(page, page.quoted()[:2])


def _copy(page: Seen) -> Action:
    """By the keyboard, since a page's text shows runs of spaces as one."""
    fields = page.all("textbox")
    if len(page.done) < 3:
        number = {"1st": 0, "2nd": 1, "3rd": 2}.get((re.findall(r"1st|2nd|3rd", page.goal) or ["1st"])[0], 0)
        sources = [f for f in fields if f.value]
        empty = next((f for f in fields if not f.value), fields[-1])
        steps = (
            Action.of("press", ref=sources[min(number, len(sources) - 1)].ref, key="Control+A"),
            Action.of("press", ref="", key="Control+C"),
            Action.of("press", ref=empty.ref, key="Control+V"),
        )
        return steps[len(page.done)]
    return submit(page)


def _date(page: Seen) -> Action:
    month, day, year = re.findall(r"\d+", page.goal)[:3]
    return filled(page, [f"{year}-{month}-{day}"], "date")


def _time(page: Seen) -> Action:
    hours, minutes, half = re.findall(r"(\d+):(\d+) ([AP]M)", page.goal)[0]
    return filled(page, [f"{int(hours) % 12 + 12 * (half == 'PM'):02}:{minutes}"], "time")


def _word(page: Seen) -> Action:
    number = int(re.findall(r"(\d+)(?:st|nd|rd|th)", page.goal)[0])
    words = re.findall(r"[A-Za-z]+", page.texts()[1])
    return filled(page, [words[number - 1]])


def _last_word(page: Seen) -> Action:
    source, field = page.all("textbox")[:2]
    word = re.findall(r"[A-Za-z]+", source.value)[-1]
    return fill(field, word) if field.value != word else submit(page)


def _arithmetic(page: Seen) -> Action:
    left, sign, right = re.findall(r"(-?\d+) ([-x+]) (-?\d+) =", " ".join(x.words for x in page.all("shape")))[0]
    a, b = int(left), int(right)
    return filled(page, [str(a * b if sign == "x" else a + b if sign == "+" else a - b)])


def _algebra(page: Seen) -> Action:
    problem = next(x.words for x in page.all("shape") if "=" in x.words)
    left, right = (side.strip() for side in problem.split("="))
    if re.fullmatch(r"-?\d+", left):
        left, right = right, left
    first, sign, second = re.findall(r"(\S+) ([-+]) (\S+)", left)[0]
    total = int(right)
    if first == "x":
        answer = total - int(second) if sign == "+" else total + int(second)
    else:
        answer = total - int(first) if sign == "+" else int(first) - total
    return filled(page, [str(answer)])


def _transform(page: Seen) -> Action:
    return filled(page, ["".join(x.words for x in page.all("shape"))])


def _table(page: Seen) -> Action:
    wanted = re.findall(r"value of (.*?) into", page.goal)
    cells = page.texts()
    return filled(page, [cells[cells.index(name) + 1] for name in wanted])


def _odd_even(page: Seen) -> Action:
    numbers = [x.words for x in page.all("shape") if re.fullmatch(r"-?\d+", x.words)]
    if len(page.done) >= len(numbers):
        return submit(page)
    at = len(page.done)
    return click(page.all("button")[2 * at + (int(numbers[at]) % 2 == 0)])


# Pointing.


def _coordinate(page: Seen) -> Action:
    x, y = map(int, re.findall(r"-?\d+", page.goal)[:2])
    dots = [line.place for line in page.all("shape") if line.name.startswith("circle")]
    columns, rows = sorted({dot[0] for dot in dots}), sorted({dot[1] for dot in dots})
    return Action.of("click_at", x=columns[x + 2], y=rows[2 - y])


_COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "lime": (0, 255, 0),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "purple": (128, 0, 128),
    "olive": (128, 128, 0),
    "orange": (255, 165, 0),
    "pink": (255, 192, 203),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "gray": (128, 128, 128),
    "maroon": (128, 0, 0),
    "navy": (0, 0, 128),
    "teal": (0, 128, 128),
    "aqua": (0, 255, 255),
}


def _colour(page: Seen) -> Action:
    wanted = next((rgb for name, rgb in _COLOURS.items() if re.search(rf"\b{name}\b", page.goal)), (0, 0, 0))
    boxes = [x for x in page.all("shape") if x.name == f"div rgb({', '.join(map(str, wanted))})"]
    return click(boxes[0] if boxes else None)


def _shades(page: Seen) -> Action:
    channel = ("red", "green", "blue").index(re.findall(r"red|green|blue", page.goal)[0])
    shades = [
        x
        for x in page.all("shape")
        if (rgb := [int(n) for n in re.findall(r"\d+", x.name)]) and max(rgb) == rgb[channel]
    ]
    return click(shades[len(page.done)]) if len(page.done) < len(shades) else submit(page)


def _kind(line: Line) -> str:
    """What a drawn figure is called on the buttons."""
    tag = line.name.split(" ")[0]
    if tag == "text":
        return "Number" if line.words.isdigit() else "Letter"
    return {"rect": "Rectangle", "circle": "Circle", "polygon": "Triangle"}.get(tag, tag)


def _identify(page: Seen) -> Action:
    return click(page.find(_kind(page.all("shape")[0])))


def _matching(page: Seen) -> list[Line]:
    """The figures that the task describes by size, colour and kind."""
    goal, found = page.goal.lower(), []
    kinds = ("rectangle", "circle", "triangle", "letter", "number", "digit")
    kind = next((k for k in kinds if re.search(rf"\b{k}s?\b", goal)), "")
    colour = next((name for name in _COLOURS if re.search(rf"\b{name}\b", goal)), "")
    size = next((s for s in ("small", "large") if s in goal), "")
    for line in page.all("shape"):
        _, _, width, height = line.place
        large = (height > 15) if line.name.startswith("text") else max(width, height) > 15
        if (
            (not kind or _kind(line).lower() == kind.replace("digit", "number"))
            and (not colour or colour in line.name.split(" "))
            and (not size or large is (size == "large"))
        ):
            found.append(line)
    return found


def _shape(page: Seen) -> Action:
    return click(next(iter(_matching(page)), None))


def _count(page: Seen) -> Action:
    return click(page.find(str(len(_matching(page))), "button"))


def _tree(page: Seen) -> Action:
    """Opens one folder after the other until the name appears."""
    wanted = page.drawn(page.quoted()[-1])
    if wanted is not None:
        return click(wanted)
    clicked = {(a.arguments["x"], a.arguments["y"]) for a in page.done if a.name == "click_at"}
    folders = [x for x in page.all("shape") if x.name.startswith("div ") and x.place[2] == 16]
    closed = next((f for f in reversed(folders) if f.place[:2] not in clicked), None)
    return click(closed)


def _drag_box(page: Seen) -> Action:
    if page.done:
        return submit(page)
    small, large = (page.drawn(word) for word in ("s", "L"))
    if small is None or large is None:
        return submit(page)
    return _drag(small.place, *large.place[:2])


def _drag(start: tuple[int, int, int, int], x: int, y: int) -> Action:
    return Action.of("drag_at", x=start[0], y=start[1], to_x=x, to_y=y)


def _centre(page: Seen) -> Action:
    return click(page.all("shape")[0]) if not page.done else submit(page)


def _delay(page: Seen) -> Action:
    """A click lets some of the page's time pass; the rest is waited for."""
    seconds = int(re.findall(r"wait (\d+) second", page.goal)[0])
    steps = (click(page.find("ONE")), Action.of("wait", milliseconds=1000 * seconds - STEP), click(page.find("TWO")))
    return steps[min(len(page.done), 2)]


def _generate(page: Seen) -> Action:
    shown = next((x.words for x in page.all("shape") if x.name.startswith("div #display")), "-")
    if re.fullmatch(r"-?\d+", shown):
        value, wanted = int(shown), page.goal
        bounds = [int(n) for n in re.findall(r"\d+", wanted)]
        right = (
            value % 2 == 1
            if " odd " in wanted
            else value % 2 == 0
            if " even " in wanted
            else value > bounds[0]
            if "greater" in wanted
            else bool(bounds) and value < bounds[0]
        )
        if right:
            return submit(page)
    return click(page.find("Generate"))


def _guess(page: Seen) -> Action:
    """Halves the range with every answer."""
    low, high = 0, 9
    field = page.all("spinbutton", "textbox")[0]
    answer = " ".join(page.texts()).lower()
    guesses = [int(a.arguments["text"]) for a in page.done if a.name == "fill"]
    if page.done and page.done[-1].name == "fill":
        return submit(page)
    tried = set(guesses)
    if guesses:
        higher = "higher than" in answer
        low, high = (guesses[-1] + 1, high) if higher else (low, guesses[-1] - 1)
    left = [n for n in range(low, high + 1) if n not in tried]
    return fill(field, str(left[len(left) // 2] if left else 0))


_EXPERTS: dict[str, Expert] = {
    "button-delay": _delay,
    "buy-ticket": _buy,
    "choose-list": _option,
    "circle-center": _centre,
    "click-button": _named_button,
    "click-button-sequence": _sequence,
    "click-checkboxes": _boxes,
    "click-checkboxes-large": _boxes,
    "click-checkboxes-transfer": _boxes,
    "click-collapsible": _collapsible,
    "click-collapsible-nodelay": _collapsible,
    "click-collapsible-2": _tabs,
    "click-collapsible-2-nodelay": _tabs,
    "click-color": _colour,
    "click-dialog": _close_dialog,
    "click-dialog-2": _dialog_button,
    "click-link": _link,
    "click-menu": _menu,
    "click-option": _boxes,
    "click-scroll-list": _option,
    "click-shades": _shades,
    "click-shape": _shape,
    "click-tab": _tab,
    "click-tab-2": _tabs,
    "click-tab-2-easy": _tabs,
    "click-tab-2-medium": _tabs,
    "click-tab-2-hard": _tabs,
    "click-test": _only_button,
    "click-test-2": _button_one,
    "click-test-transfer": _button_one,
    "click-widget": _widget,
    "copy-paste": _copy,
    "copy-paste-2": _copy,
    "count-shape": _count,
    "drag-box": _drag_box,
    "enter-date": _date,
    "enter-password": _password,
    "enter-text": _text,
    "enter-text-2": _text_cased,
    "enter-text-dynamic": _text,
    "enter-time": _time,
    "find-word": _word,
    "focus-text": _focus,
    "focus-text-2": _focus,
    "generate-number": _generate,
    "grid-coordinate": _coordinate,
    "guess-number": _guess,
    "identify-shape": _identify,
    "login-user": _login,
    "navigate-tree": _tree,
    "odd-or-even": _odd_even,
    "read-table": _table,
    "scroll-text": _last_word,
    "simple-algebra": _algebra,
    "simple-arithmetic": _arithmetic,
    "text-transform": _transform,
    "unicode-test": _named_button,
}
KNOWN = tuple(_EXPERTS)
"""The tasks that have an expert."""


def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    """What an expert would do next; where there is none (see KNOWN), it waits."""
    page = str(task.data["page"])
    if page not in _EXPERTS:
        return Action.of("wait", milliseconds=100)
    done = tuple(turn.action for turn in history if turn.action is not None and turn.observation.provenance == "page")
    shown = next(turn.observation.text for turn in reversed(history) if turn.observation.provenance == "page")
    return _EXPERTS[page](Seen(read_page(shown), done))
