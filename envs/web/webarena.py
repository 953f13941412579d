"""Task files in WebArena's format, and its three evaluators, without a model (Zhou et al. 2023).

    suite = webarena_suite("tasks.json", {"SHOPPING": "http://127.0.0.1:7770"})

A file holds one task or a list of them. `__SHOPPING__` in an address stands for the site of that name. The suite
`webarena` shows the format on this package's own bazaar; TREEWRIGHT_WEBARENA names another file, and
TREEWRIGHT_WEBARENA_SITES its sites, as NAME=URL separated by commas.

string_match  exact_match, must_include (every text, '|OR|' between alternatives), fuzzy_match: equal after folding
              case, punctuation, articles and number formats, or every word of the reference is there
url_match     the address at the end, 'GOLD in PRED' or 'EXACT'
program_html  what a locator finds on a page, exact_match or must_include
storage_state names a file with the login that a task begins with, relative to the working directory or to the task
file. Tasks with `func:` helpers, which call the sites' private interfaces, and tasks whose login is not there are left
out and counted. Not covered: fuzzy matches that only a model can judge.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.secrecy import in_login, keep_secret
from treewright.envs.types import Environment, Suite, Task
from treewright.envs.web.bazaar import SITE, BazaarEnvironment, close_bazaar
from treewright.envs.web.bazaar_world import World
from treewright.envs.web.browser import close_browser, require_chromium
from treewright.envs.web.environment import FullWebEnvironment, WebEnvironment
from treewright.envs.web.storage import storage_trouble
from treewright.envs.web.tab import Tab

__all__ = ["SUITE", "WebArenaEnvironment", "evaluate", "fuzzy", "load_tasks", "webarena_suite"]

OWN = Path(__file__).with_name("webarena_bazaar.json")
SEED = 1  # of the bazaar that the own file's tasks are about
EVALUATORS = ("string_match", "url_match", "program_html")
LEFT_OUT = ("use helpers in Python, which are not covered", "begin with a login that is not there")
Find = Callable[[str, str], Awaitable[str]]
"""(address, or 'last' for the present page; locator, or '') -> what is there as text."""


# Reading.


class _Place:
    """A place in a file, for messages: file, index, key."""

    def __init__(self, path: Path, index: int, key: str = "") -> None:
        self.path, self.index, self.key = path, index, key

    def wrong(self, what: str) -> TreewrightError:
        return TreewrightError(f"{self.path}: task {self.index}: key {self.key!r}: {what}")

    def of(self, value: Any, key: str, kind: type | tuple[type, ...], default: Any = None) -> tuple[Any, _Place]:
        """A member of a mapping, checked. A missing one gives the default, or an error where there is none."""
        here = _Place(self.path, self.index, f"{self.key}.{key}" if self.key else key)
        if key not in value or value[key] is None:
            if default is None:
                raise here.wrong("is missing")
            return default, here
        if not isinstance(value[key], kind):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise here.wrong(f"must be {names}, not {type(value[key]).__name__}")
        return value[key], here


class _NotCovered(Exception):
    """A task that is well formed and cannot be run here; the argument is one of LEFT_OUT."""


def load_tasks(path: Path | str, sites: Mapping[str, str], suite: str = "webarena") -> list[Task]:
    """The tasks of a file that can be run. `sites` gives the address that stands for `__NAME__`.

    Warns of those that are left out, with their number and why. Raises TreewrightError with file, index and key for
    whatever is malformed or unknown, and where no task is left.
    """
    path = Path(path)
    try:
        found = json_value(path.read_bytes())
    except OSError as error:
        raise TreewrightError(
            f"{path}: cannot be read: {error.strerror}; name a JSON file of WebArena's tasks"
        ) from error
    except json.JSONDecodeError as error:
        raise TreewrightError(
            f"{path}: line {error.lineno}: not JSON: {error.msg}; name a JSON file of WebArena's tasks"
        ) from error
    rows = found if isinstance(found, list) else [found]
    tasks: list[Task] = []
    left = Counter[str]()
    for index, row in enumerate(rows):
        try:
            tasks.append(_task(path, index, row, sites, suite))
        except _NotCovered as why:
            left[str(why)] += 1
    told = "; ".join(f"{count} of {len(rows)} {why}" for why, count in left.items())
    if told and not tasks:
        raise TreewrightError(f"{path}: no task can be run: {told}")
    if told:
        warnings.warn(f"{path}: tasks left out: {told}", stacklevel=2)
    return tasks


def _task(path: Path, index: int, row: Any, sites: Mapping[str, str], suite: str) -> Task:
    place = _Place(path, index)
    if not isinstance(row, dict):
        raise _Place(path, index, "").wrong(f"a task must be an object, not {type(row).__name__}")
    intent, _ = place.of(row, "intent", str)
    number, _ = place.of(row, "task_id", (int, str))
    start, at = place.of(row, "start_url", str)
    spec, inside = place.of(row, "eval", dict)
    checked = _checked(spec, inside, sites)
    login, at_login = place.of(row, "storage_state", str, "")
    return Task(
        suite,
        f"{suite}-{number}",
        intent,
        seed=index,
        split="test",
        horizon=30,
        data={
            "start": _address(start.split(" |AND| ")[0], sites, at),
            **({"storage_state": str(_login(path, login, at_login))} if login else {}),
        },
        truth={"eval": checked},
    )


def _login(path: Path, name: str, place: _Place) -> Path:
    """The file of a login. Raises _NotCovered if it is not there, TreewrightError if it is none."""
    found = next((p for p in (Path(name), path.parent / name) if p.is_file()), None)
    if found is None:
        raise _NotCovered(LEFT_OUT[1])
    if why := storage_trouble(found):
        raise place.wrong(why)
    keep_secret(*in_login(json_value(found.read_bytes())))
    return found


def _checked(spec: Mapping[str, Any], place: _Place, sites: Mapping[str, str]) -> dict[str, Any]:
    kinds, at = place.of(spec, "eval_types", list)
    for kind in kinds:
        if kind not in EVALUATORS:
            raise at.wrong(f"no evaluator {kind!r}; known: {', '.join(EVALUATORS)}")
    if not kinds:
        raise at.wrong("names no evaluator")
    found: dict[str, Any] = {"eval_types": list(kinds)}
    if "string_match" in kinds:
        answers, here = place.of(spec, "reference_answers", dict)
        found["reference_answers"] = _contents(answers, here, ("exact_match", "must_include", "fuzzy_match"))
    if "url_match" in kinds:
        url, here = place.of(spec, "reference_url", str)
        found["reference_url"] = [_address(part, sites, here) for part in url.split(" |OR| ")]
        found["url_note"], at = place.of(spec, "url_note", str, "GOLD in PRED")
        if found["url_note"] not in ("GOLD in PRED", "EXACT"):
            raise at.wrong(f"no rule {found['url_note']!r}; known: 'GOLD in PRED', 'EXACT'")
    if "program_html" in kinds:
        targets, here = place.of(spec, "program_html", list)
        found["program_html"] = [_target(t, n, here, sites) for n, t in enumerate(targets)]
    return found


def _target(target: Any, number: int, place: _Place, sites: Mapping[str, str]) -> dict[str, Any]:
    here = _Place(place.path, place.index, f"{place.key}[{number}]")
    if not isinstance(target, dict):
        raise here.wrong(f"must be dict, not {type(target).__name__}")
    url, at_url = here.of(target, "url", str)
    locator, _ = here.of(target, "locator", str, "")
    if url.startswith("func:") or locator.startswith("func:"):
        raise _NotCovered(LEFT_OUT[0])
    required, at = here.of(target, "required_contents", dict)
    return {
        "url": url if url == "last" else _address(url, sites, at_url),
        "locator": locator,
        "required_contents": _contents(required, at, ("exact_match", "must_include")),
    }


def _contents(given: Mapping[str, Any], place: _Place, known: Sequence[str]) -> dict[str, Any]:
    if not given:
        raise place.wrong(f"is empty; it takes {', '.join(known)}")
    for key, value in given.items():
        here = _Place(place.path, place.index, f"{place.key}.{key}")
        if key not in known:
            raise here.wrong(f"not known; known: {', '.join(known)}")
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise here.wrong("must be a text or a list of texts")
    return dict(given)


def _address(url: str, sites: Mapping[str, str], place: _Place) -> str:
    found = re.match(r"__([A-Z_]+?)__", url)
    if found is None:
        return url
    if found[1] not in sites:
        raise place.wrong(f"no address for {found[0]}; sites are given for: {', '.join(sites) or 'none'}")
    return sites[found[1]].rstrip("/") + url[found.end() :] or "/"


# Judging.


def _clean(text: str) -> str:
    return " ".join(text.strip().strip("'\"").lower().split())


def _folded(text: str) -> list[str]:
    text = re.sub(r"(?<=\d),(?=\d{3})|[$€£]", "", text.lower())
    words = re.findall(r"\d+\.\d+|\w+", text)
    return [re.sub(r"^(\d+)\.0+$", r"\1", word) for word in words if word not in ("a", "an", "the")]


def fuzzy(reference: str, answer: str) -> bool:
    """Every word of the reference is in the answer, after folding; for 'N/A' the answer must say that there is none."""
    if reference.strip().upper() == "N/A":
        return _clean(answer) in ("n/a", "none", "not available", "not found", "unachievable", "")
    said = _folded(answer)
    return bool(_folded(reference)) and all(word in said for word in _folded(reference))


def _includes(wanted: str, text: str, alone: bool) -> bool:
    """One of the alternatives is in the text; a single word that is asked for alone must be a word of its own."""
    for part in wanted.split(" |OR| "):
        reference = _clean(part)
        if alone and re.fullmatch(r"\w", reference):
            if reference in re.findall(r"\w+", _clean(text)):
                return True
        elif reference in _clean(text):
            return True
    return False


def _matches(required: Mapping[str, Any], text: str) -> bool:
    for kind, value in required.items():
        texts = [value] if isinstance(value, str) else list(value)
        match kind:
            case "exact_match":
                held = all(_clean(wanted) == _clean(text) for wanted in texts)
            case "must_include":
                held = all(_includes(wanted, text, len(texts) == 1) for wanted in texts)
            case _:
                held = all(fuzzy(wanted, text) for wanted in texts)
        if not held:
            return False
    return True


def _same_address(wanted: str, found: str, note: str) -> bool:
    if note == "EXACT":
        return wanted.rstrip("/") == found.rstrip("/")
    gold, seen = urlsplit(wanted), urlsplit(found)
    asked, had = parse_qs(gold.query), parse_qs(seen.query)
    base = (gold.netloc + gold.path).rstrip("/")
    return base in (seen.netloc + seen.path) and all(set(asked[name]) & set(had.get(name, ())) for name in asked)


async def evaluate(spec: Mapping[str, Any], answer: str, url: str, find: Find) -> float:
    """1.0 if every evaluator of the task agrees, else 0.0: the product of their scores, as WebArena's."""
    for kind in spec["eval_types"]:
        if kind == "string_match" and not _matches(spec["reference_answers"], answer):
            return 0.0
        if kind == "url_match":
            wanted = (urljoin(url, reference) for reference in spec["reference_url"])
            if not any(_same_address(address, url, spec["url_note"]) for address in wanted):
                return 0.0
        if kind == "program_html":
            for target in spec["program_html"]:
                if not _matches(target["required_contents"], await find(target["url"], target["locator"])):
                    return 0.0
    return 1.0


# Worlds.


async def _find_in(env: WebEnvironment, tab: Tab, url: str, locator: str) -> str:
    """What a locator finds on the present page, or on another one that is opened in a window of its own."""
    shown = tab.window
    try:
        if url != "last":
            await tab.new_window(urljoin(shown.page.url, url))
            await env.settle(tab)
        tab.arrived()  # else a network that failed would be a reward of 0
        expression = locator or "document.documentElement.outerHTML"
        answer = await tab.cdp.send("Runtime.evaluate", {"expression": f"String({expression})", "returnByValue": True})
        # A locator that finds nothing throws: that is an empty text, not a fault.
        return "" if answer.get("exceptionDetails") else str(answer["result"].get("value", ""))
    finally:
        if tab.window is not shown:
            await tab.close_window(tab.window)
            tab.show(shown)


async def _judged(env: WebEnvironment, task: Task, answer: str) -> float:
    tab = env._live(ended=True)

    async def find(url: str, locator: str) -> str:
        return await _find_in(env, tab, url, locator)

    with tab.faults("evaluation"):
        return await evaluate(task.truth["eval"], answer, env._view.url, find)


class WebArenaEnvironment(FullWebEnvironment):
    """A session on the sites that a task file is about; live, since such sites are shared."""

    name = "webarena"

    async def begin(self, task: Task, key: int) -> None:
        self.start = str(task.data["start"])
        login = task.data.get("storage_state")
        self.storage = Path(str(login)) if login else None

    async def score(self, task: Task, answer: str) -> float:
        return await _judged(self, task, answer)


class _OnBazaar(BazaarEnvironment):
    """A session on a bazaar of its own; the file's tasks are about one that is always the same."""

    name = "webarena"

    def build(self, task: Task) -> Any:
        return World.build(SEED, "test")

    async def begin(self, task: Task, key: int) -> None:
        self.start = urljoin(self.site.url, str(task.data["start"]))
        await super().begin(task, key)

    async def score(self, task: Task, answer: str) -> float:
        return await _judged(self, task, answer)


def webarena_suite(path: Path | str, sites: Mapping[str, str], hosts: Sequence[str] = ()) -> Suite:
    """A suite of the tasks in a file, on the sites at these addresses; `hosts` may be reached besides them."""
    tasks = load_tasks(path, sites)
    allowed = [*(urlsplit(url).netloc for url in sites.values()), *hosts]

    async def open_session() -> Environment:
        return WebArenaEnvironment(tasks[0].data["start"] if tasks else "", hosts=allowed)

    return _suite(tasks, open_session, close_browser)


def _available() -> None:
    require_chromium()


def _suite(tasks: Sequence[Task], open: Callable[[], Awaitable[Environment]], close: Any) -> Suite:
    def some(split: str, count: int) -> Sequence[Task]:
        if split not in ("train", "test"):
            raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
        return tasks[:count] if split == "test" else []

    return Suite(
        name="webarena",
        tasks=some,
        open=open,
        description="Tasks in WebArena's format with its evaluators; on the bazaar unless a file and sites are named.",
        max_tokens=64,
        sessions=4,
        close=close,
        available=_available,
    )


def _own_suite() -> Suite:
    """The tasks on the bazaar; their addresses are relative, since its port is another one in every process."""

    async def open_session() -> Environment:
        await SITE.start()
        return _OnBazaar(SITE)

    return _suite(load_tasks(OWN, {"BAZAAR": ""}), open_session, close_bazaar)


def _open_suite() -> Suite:
    named = os.environ.get("TREEWRIGHT_WEBARENA")
    if not named:
        return _own_suite()
    pairs = [pair.partition("=") for pair in os.environ.get("TREEWRIGHT_WEBARENA_SITES", "").split(",") if pair]
    return webarena_suite(named, {name.strip(): url.strip() for name, _, url in pairs})


SUITE = _open_suite()
