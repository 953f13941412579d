"""The market and the bazaar without a browser: the same site, its HTML read as Chromium's accessibility tree shows it.

For demonstrations, of which a model needs many more than a browser gives in the time. The site's own code answers; only
what a browser does in between is done here: links, forms, fields, the way back. A test compares the pages with
Chromium's, episode by episode. Nothing but these two sites is covered: no scripts, no styles, no other elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from treewright.envs.errors import EnvFault, InvalidAction, TreewrightError
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Call,
    Effect,
    Observation,
    StepResult,
    Suite,
    Task,
    ToolSpec,
    digest,
)
from treewright.envs.web.actions import TOOLS, checked_call, checked_element, clickable, fillable, selectable
from treewright.envs.web.bazaar import BazaarEnvironment
from treewright.envs.web.bazaar_site import bazaar_routes
from treewright.envs.web.bazaar_world import World as BazaarWorld
from treewright.envs.web.market import MarketEnvironment
from treewright.envs.web.market_site import TOKEN_HEADER, Site
from treewright.envs.web.view import Element, PageView, quote

__all__ = ["PlainEnvironment", "plain_suite", "read_html"]

HOST = "http://127.0.0.1"
_SITES: dict[str, Any] = {
    "market": lambda: (Site(), MarketEnvironment),
    "bazaar": lambda: (Site(bazaar_routes, BazaarWorld.from_json), BazaarEnvironment),
}


@dataclass(slots=True)
class _Form:
    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Field:
    """What can be used: its element, its form and, in a list, the values of its options."""

    element: Element
    form: _Form | None = None
    name: str = ""
    values: dict[str, str] = field(default_factory=dict)


class _Reader(HTMLParser):
    """Collects lines and what can be used, in reading order."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.lines: list[tuple[str, str, str]] = []
        self.used: list[_Field] = []
        self.form: _Form | None = None
        self.words = ""
        self.given: dict[str, str] = {}
        self.options: list[tuple[str, str, bool]] = []

    def _use(self, role: str, name: str, **more: Any) -> _Field:
        ref = f"e{len(self.used) + 1}"
        self.used.append(_Field(Element(ref, role, name, len(self.used) + 1, **more), self.form))
        self.lines.append((f"{role} {quote(name)}", ref, ""))
        return self.used[-1]

    def _flush(self) -> str:
        words, self.words = " ".join(self.words.split()), ""
        return words

    def _text(self) -> None:
        if words := self._flush():
            self.lines.append((f"text {quote(words)}", "", ""))

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag != "option" and "option" not in self.given:
            self._text()
        if tag == "form":
            self.form = _Form(given.get("action", ""), given.get("method", "get"))
        elif tag == "input" and given.get("type") == "hidden" and self.form is not None:
            self.form.fields[given["name"]] = given["value"]
        elif tag == "input":
            self._use("textbox", given.get("aria-label", "")).name = given["name"]
            self.lines[-1] = (*self.lines[-1][:2], '= ""')
        elif tag == "option":
            self.options.append((given.get("value", "\0"), "", "selected" in given))
        elif tag in ("select", "a", "button", "h1", "title"):
            self.given = given
        if tag == "select":
            self.options = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "option":
            value, _, chosen = self.options[-1]
            label = self._flush()
            self.options[-1] = (label if value == "\0" else value, label, chosen)
        elif tag == "select":
            self._list()
        elif tag == "title":
            self.title = self._flush()
        elif tag == "a":
            self._use("link", self._flush(), url=self.given["href"])
        elif tag == "button":
            self._use("button", self._flush())
        elif tag == "h1":
            self.lines.append((f"heading {quote(self._flush())}", "", ""))
        else:
            self._text()
        if tag == "form":
            self.form = None

    def _list(self) -> None:
        labels = tuple(label for _, label, _ in self.options)
        chosen = next((label for _, label, on in self.options if on), labels[0])
        made = self._use("combobox", self.given.get("aria-label", ""), options=labels, value=chosen)
        made.name, made.values = self.given["name"], {label: value for value, label, _ in self.options}
        self.lines[-1] = (*self.lines[-1][:2], _state(made.element))


def _state(element: Element) -> str:
    """What stands behind a field's reference."""
    shown = f"= {quote(element.value)}"
    return f"{shown} from {', '.join(map(quote, element.options))}" if element.options else shown


def read_html(url: str, html: str) -> tuple[PageView, dict[str, _Field]]:
    """The page as a policy sees it, and what can be used on it by reference."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    used = {one.element.ref: one for one in reader.used}
    view = PageView(reader.title, url, tuple(reader.lines), {ref: one.element for ref, one in used.items()})
    return view, used


class PlainEnvironment(BaseEnvironment):
    """A session at a site of its own; the way back is reset and replay, which costs next to nothing."""

    sandboxed = True

    def __init__(self, site: Site, app: Any, rules: MarketEnvironment) -> None:
        self.site, self.app, self.rules = site, app, rules
        self.name = rules.name
        self.task: Task | None = None
        self._used: dict[str, _Field] = {}
        self._view = PageView("", "", ())
        self._history: list[str] = []
        self._shown = 1

    async def reset(self, task: Task, key: int) -> Observation:
        self.task, self._history = task, []
        await self.rules.begin(task, key)
        return await self._open("/")

    async def actions(self) -> Sequence[ToolSpec]:
        elements = list(self._view.elements.values())
        useful = {
            "click": any(map(clickable, elements)),
            "fill": any(map(fillable, elements)),
            "select": any(map(selectable, elements)),
            "back": len(self._history) > 1,
            "part": len(self._view.parts(self.rules.part)) > 1,
        }
        return [spec for spec in TOOLS if useful.get(spec.name, True)]

    async def effect(self, action: Action) -> Effect:
        return Effect.REVERSIBLE

    async def step(self, action: Action, key: int) -> StepResult:
        call = checked_call(action, TOOLS)
        if self.task is None:
            raise EnvFault(f"{self.name}: no task; await reset(task, key) first")
        if call.name == "answer":
            reward = await self.rules.score(self.task, call.arguments["text"])
            return StepResult(Observation("answered", "", provenance="environment"), reward=reward, terminated=True)
        return StepResult(await self._do(call), effect=Effect.REVERSIBLE)

    async def close(self) -> None:
        self.site.leave(self.rules.token)

    async def _do(self, call: Call) -> Observation:
        given = call.arguments
        used = None
        if "ref" in given:
            used = self._used.get(checked_element(call, self._view.elements, given["ref"], False).ref)
        match call.name:
            case "click" if used and used.element.url:
                return await self._open(used.element.url)
            case "click" if used and used.element.role == "button":
                return await self._send(used.form)
            case "fill" | "select" if used:
                return self._write(used, given.get("text", given.get("option", "")))
            case "goto":
                return await self._open(self._path(given["path"]))
            case "back":
                if len(self._history) < 2:
                    raise InvalidAction("there is no page to go back to")
                self._history.pop()
                return await self._open(self._history[-1])
            case "part":
                count = len(self._view.parts(self.rules.part))
                if not 1 <= given["number"] <= count:
                    raise InvalidAction(f"no part {given['number']}; this page has {count}")
                self._shown = given["number"]
        return self._seen()

    def _path(self, path: str) -> str:
        there = urlsplit(urljoin(f"{HOST}{self._view.url}", path))
        if f"{there.scheme}://{there.netloc}" != HOST:
            raise InvalidAction(f"host not allowed: {there.geturl()}; give a path of this site, such as '/'")
        return (there.path or "/") + (f"?{there.query}" if there.query else "")

    def _write(self, used: _Field, value: str) -> Observation:
        shown = " ".join(value.split()) if used.element.role == "textbox" else value
        used.element = replace(used.element, value=shown)
        ref = used.element.ref
        lines = tuple((b, r, _state(used.element) if r == ref else a) for b, r, a in self._view.lines)
        self._view = replace(self._view, lines=lines, elements={**self._view.elements, ref: used.element})
        return self._seen()

    async def _send(self, form: _Form | None) -> Observation:
        if form is None:
            return self._seen()
        written = {u.name: u.values.get(u.element.value, u.element.value) for u in self._used.values() if u.name}
        mine = {u.name for u in self._used.values() if u.form is form}
        data = urlencode({**form.fields, **{name: value for name, value in written.items() if name in mine}})
        if form.method == "get":
            return await self._open(f"{form.action}?{data}")
        return await self._open(form.action, data)

    async def _open(self, path: str, data: str | None = None) -> Observation:
        """Asks the site for a page, follows where it leads, and shows it."""
        for _ in range(5):
            status, location, html = await self._ask(path, data)
            if status != 303:
                break
            path, data = location, None
        self._view, self._used = read_html(path, html)
        if not self._history or self._history[-1] != path:
            self._history.append(path)
        self._shown = 1
        return self._seen()

    async def _ask(self, path: str, data: str | None) -> tuple[int, str, str]:
        route, _, query = path.partition("?")
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET" if data is None else "POST", "path": route,
            "query_string": query.encode(), "headers": [(TOKEN_HEADER.encode(), self.rules.token.encode())],
            "root_path": "", "scheme": "http", "server": ("127.0.0.1", 80),
        }  # fmt: skip
        answer: dict[str, Any] = {"body": b""}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": (data or "").encode(), "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer["status"], answer["headers"] = message["status"], dict(message["headers"])
            else:
                answer["body"] += message.get("body", b"")

        await self.app(scope, receive, send)
        return answer["status"], answer["headers"].get(b"location", b"").decode(), answer["body"].decode()

    def _seen(self) -> Observation:
        parts = self._view.parts(self.rules.part)
        mark = digest(self.site.state(self.rules.token))
        fingerprint = self._view.fingerprint(str(self._shown), mark)
        return Observation(parts[min(self._shown, len(parts)) - 1], fingerprint, provenance="page")


def plain_suite(suite: Suite) -> Suite:
    """The suite with sessions that need no browser. Raises TreewrightError for another than market and bazaar."""
    if suite.name not in _SITES:
        raise TreewrightError(f"{suite.name} has no pages without a browser; {' and '.join(_SITES)} have")
    site, kind = _SITES[suite.name]()
    app = site.app()

    async def open_plain() -> PlainEnvironment:
        return PlainEnvironment(site, app, kind(site))

    return replace(suite, open=open_plain, close=None, available=None)
