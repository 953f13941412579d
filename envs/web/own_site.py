"""Any site as a suite, without code: its address, or a TOML file that says more.

    --suites web:https://shop.example/
    --suites web:shop.toml

A TOML file has the fields of `SiteFile`; paths in it are relative to the file. The same fields may stand in the table
`[worlds.web]` of a run's configuration. Without tasks the suite holds one task, to find out what the site offers, whose
reward is unknown (NaN).
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import fnmatch
import json
import logging
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from playwright.async_api import Error as PlaywrightError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treewright.envs.custom import JudgedEnvironment, load_named
from treewright.envs.errors import EnvFault, TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.secrecy import in_login, in_url, keep_secret, secret_headers
from treewright.envs.toml_text import toml_value
from treewright.envs.types import Action, Effect, Environment, StepResult, Suite, Task
from treewright.envs.web.browser import close_browser, require_chromium
from treewright.envs.web.checkpoint import CheckpointEnvironment
from treewright.envs.web.effects import DEFAULT_RULES, Rule, Target
from treewright.envs.web.environment import FullWebEnvironment
from treewright.envs.web.outcome import Check, Ending, StateCheck, holds
from treewright.envs.web.sameness import SiteMemory, read_same_page
from treewright.envs.web.storage import host_of, storage_trouble
from treewright.envs.web.view import TIMES

__all__ = ["EffectRule", "SiteEnvironment", "SiteFile", "SiteTask", "Step", "web_suite"]

log = logging.getLogger(__name__)

EXPLORE = "find out what this site offers, then answer with a summary"


class EffectRule(BaseModel):
    """What an action does, by what is known of it before; `*` stands for anything. The first rule that fits decides.

    action  click, fill, …;  role and name of the element;  method and path of what it asks for
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    effect: Literal["read", "reversible", "irreversible"]
    action: str = "*"
    role: str = "*"
    name: str = "*"
    method: str = "*"
    path: str = "*"

    def rule(self, target: Target) -> Effect | None:
        held = {"action": target.action, "role": target.role, "method": target.method, "path": target.path}
        fits = all(fnmatch.fnmatchcase(value, getattr(self, key)) for key, value in held.items())
        named = fnmatch.fnmatchcase(" ".join(target.name.casefold().split()), self.name.casefold())
        return Effect(self.effect) if fits and named else None


class Step(BaseModel):
    """One step of a login: goto an address, or fill, select, check or click an element by its name.

    text  is written or chosen; $NAME in it is the environment variable of that name
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    goto: str | None = None
    fill: str | None = None
    select: str | None = None
    check: str | None = None
    click: str | None = None
    text: str = ""

    @property
    def kind(self) -> str:
        kinds = [kind for kind in ("goto", "fill", "select", "check", "click") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise TreewrightError(f"login: a step says one of goto, fill, select, check, click, not {kinds or 'none'}")
        return kinds[0]


class SiteFile(BaseModel):
    """A site and how to treat it; WebEnvironment explains what is not explained here.

    url        where tasks start that do not say otherwise
    tasks      a file of tasks, one JSON object a line, see SiteTask
    reward     'module:function' of (task, history) -> float, in place of the tasks' own rewards
    storage    a file with a login, as Playwright's `storage_state` saves it
    login      steps that log in, or 'module:function', a coroutine function of Playwright's page; once per process
    hosts      what may be reached besides the host of `url`
    calm       patterns of texts that count as equal, besides times and ages
    restless   regions that change by themselves, named as style sheets do, such as 'aside.ad'
    learned    the file that keeps regions which were found to change by themselves; NAME.learned.json beside NAME.toml
    same_page  exact | target | distance:0.05
    effects    rules for what actions do, before the general ones
    posts      beginnings of paths that are asked by POST and change nothing
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    tasks: Path | None = None
    reward: str | None = None
    storage: Path | None = None
    login: str | tuple[Step, ...] | None = None
    hosts: tuple[str, ...] = ()
    calm: tuple[str, ...] = ()
    restless: tuple[str, ...] = ()
    learned: Path | None = None
    same_page: str = "exact"
    effects: tuple[EffectRule, ...] = ()
    posts: tuple[str, ...] = ()
    headers: dict[str, str] = Field(default_factory=dict)
    uploads: Path | None = None
    screenshot: bool = False
    part: int = Field(default=2000, ge=200)
    quiet: float = Field(default=0.03, ge=0)
    deadline: float = Field(default=5.0, gt=0)
    patience: float = Field(default=20.0, gt=0)
    sessions: int = Field(default=4, ge=1)
    max_tokens: int = Field(default=256, ge=1)


class SiteTask(BaseModel):
    """One task: what is to be done, where it starts (an address of the site), and its reward.

    reward  see treewright.envs.web.outcome; none where the site has a function
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    goal: str = Field(min_length=1)
    start: str = ""
    reward: Check | None = None
    seed: int = 0
    split: Literal["train", "test"] = "train"
    horizon: int = Field(default=30, ge=1)
    data: dict[str, Any] = Field(default_factory=dict)
    truth: dict[str, Any] = Field(default_factory=dict)


# -- reading --------------------------------------------------------------------------------------------------------


def web_suite(spec: str, more: Mapping[str, Any] | None = None) -> Suite:
    """The suite of one site; its name is 'web:' and the spec. `more` holds further fields of SiteFile.

    Raises TreewrightError naming file and field for whatever is wrong, before any session is opened.
    """
    name = f"web:{spec}"
    site = _Site(_read_site(spec.strip(), more or {}))
    judge = load_named(site.file.reward, "reward") if site.file.reward is not None else None
    tasks = _read_tasks(site.file, name, judge is not None)

    def some(split: str, count: int) -> Sequence[Task]:
        found = [task for task in tasks if task.split == split or len(tasks) == 1]
        if not found:
            raise TreewrightError(f'{site.file.tasks} has no task with "split": "{split}"; add some, or use the other')
        return found[:count]

    async def open_session() -> Environment:
        env = SiteEnvironment(site, name)
        return env if judge is None else JudgedEnvironment(env, judge, name)

    return Suite(
        name, some, open_session, description=f"the site {site.file.url}", max_tokens=site.file.max_tokens,
        sessions=site.file.sessions, close=close_browser, available=_available,
        told=site.told,
    )  # fmt: skip


def _available() -> None:
    require_chromium()


def _read_site(spec: str, more: Mapping[str, Any]) -> SiteFile:
    path = Path(spec) if spec.endswith(".toml") else None
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = toml_value(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise TreewrightError(f"cannot read the site file {path}: {error}; name a TOML file with 'url'") from error
        except tomllib.TOMLDecodeError as error:
            raise TreewrightError(f'{path} is not TOML: {error}; write lines such as url = "https://…"') from error
    elif spec.startswith(("http://", "https://")):
        data = {"url": spec}
    else:
        raise TreewrightError(f"web:{spec} names no site; write web:https://… or web:FILE.toml")
    where = str(path) if path is not None else f"web:{spec}"
    beside = {name: path.parent / str(data[name]) for name in _PATHS if name in data} if path is not None else {}
    if path is not None:
        beside.setdefault("learned", path.with_suffix(".learned.json"))
    site: SiteFile = _checked(SiteFile, {**data, **beside, **more}, where)
    for name in _PATHS[:2]:
        if (file := getattr(site, name)) is not None and not file.is_file():
            raise TreewrightError(f"{where}: field {name!r}: there is no file {file}")
    _check_values(site, where)
    return site


_PATHS = ("tasks", "storage", "uploads", "learned")


def _checked(model: type[Any], data: Mapping[str, Any], where: str) -> Any:
    """The model of these fields. Raises TreewrightError naming the field, with the nearest known one."""
    for name in data:
        if name not in model.model_fields:
            near = difflib.get_close_matches(name, model.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(model.model_fields)}"
            raise TreewrightError(f"{where}: no field {name!r}; {hint}")
    try:
        return model(**data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        given = "" if first["type"] == "missing" else f" = {first['input']!r}"
        raise TreewrightError(f"{where}: field {place!r}{given:.200}: {first['msg']}; correct it there") from error


def _check_values(site: SiteFile, where: str) -> None:
    if not site.url.startswith(("http://", "https://")) or not host_of(site.url):
        raise TreewrightError(f"{where}: field 'url' = {site.url!r} is no address; write https://…")
    if site.storage is not None and site.login is not None:
        raise TreewrightError(f"{where}: give either 'login' or 'storage', and not both")
    if site.storage is not None and (why := storage_trouble(site.storage)):
        raise TreewrightError(f"{where}: field 'storage': {why}")
    try:
        read_same_page(site.same_page)
        for step in site.login if isinstance(site.login, tuple) else ():
            _ = step.kind
    except TreewrightError as error:
        raise TreewrightError(f"{where}: {error}") from error
    for pattern in site.calm:
        try:
            re.compile(pattern)
        except re.error as error:
            raise TreewrightError(
                f"{where}: field 'calm': {pattern!r} is no regular expression: {error}; correct it"
            ) from error


def _read_tasks(site: SiteFile, suite: str, judged: bool) -> list[Task]:
    if site.tasks is None:
        return [Task(suite, "explore", EXPLORE, split="test", horizon=30)]
    tasks: dict[str, Task] = {}
    try:
        lines = site.tasks.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TreewrightError(
            f"cannot read tasks from {site.tasks}: {error}; name a file with one JSON object a line"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{site.tasks}, line {number}"
        try:
            row = json_value(line, finite=True)  # it is exported as JSON
        except ValueError as error:
            raise TreewrightError(
                f'{where}: not valid JSON: {error}; a task is an object such as {{"id": "first", "goal": "what to do"}}'
            ) from error
        if not isinstance(row, dict):
            raise TreewrightError(f'{where}: a task is an object such as {{"id": "first", "goal": "what to do"}}')
        task = _task(_checked(SiteTask, row, where), site, suite, where, judged)
        if task.id in tasks:
            raise TreewrightError(f"{where}: id {task.id!r} was used before; give another")
        tasks[task.id] = task
    if not tasks:
        raise TreewrightError(f'{site.tasks} holds no task; write one a line: {{"id": "first", "goal": "…"}}')
    return list(tasks.values())


def _task(row: SiteTask, site: SiteFile, suite: str, where: str, judged: bool) -> Task:
    if row.reward is not None and judged:
        raise TreewrightError(f"{where}: field 'reward' is given, and the site has a reward function: drop one of them")
    if row.reward is None and not judged:
        raise TreewrightError(
            f"{where}: field 'reward' is missing; say what must hold at the end, such as "
            '{"text": "Thank you"}, or give the site a reward function'
        )
    check = {"reward": row.reward.model_dump(exclude_unset=True)} if row.reward is not None else {}
    return Task(
        suite, row.id, row.goal, seed=row.seed, split=row.split, horizon=row.horizon,
        data={**row.data, "start": urljoin(site.url, row.start)}, truth={**row.truth, **check},
    )  # fmt: skip


# -- acting ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Site:
    """What the sessions of one site share: its file, what is remembered of it, and the login."""

    file: SiteFile
    memory: SiteMemory = field(init=False)
    login: Any = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    hinted: bool = False

    def __post_init__(self) -> None:
        self.memory = SiteMemory(self.file.restless, self.file.learned)
        self.login = self.file.storage
        keep_secret(*secret_headers(self.file.headers), *in_url(self.file.url))
        if self.file.storage is not None:
            with contextlib.suppress(OSError, ValueError):  # the browser will say what is wrong with it
                keep_secret(*in_login(json.loads(self.file.storage.read_text("utf-8"))))

    def settings(self) -> dict[str, Any]:
        file = self.file
        rules: list[Rule] = [*(effect.rule for effect in file.effects), *DEFAULT_RULES]
        return {
            "hosts": [urlsplit(file.url).netloc, *file.hosts], "rules": rules, "headers": file.headers,
            "part": file.part, "quiet": file.quiet, "deadline": file.deadline, "patience": file.patience,
            "calm": re.compile("|".join(f"(?:{p})" for p in (TIMES.pattern, *file.calm)), re.I),
            "uploads": file.uploads, "screenshot": file.screenshot, "posts": file.posts,
            "same_page": file.same_page, "memory": self.memory,
        }  # fmt: skip

    def told(self) -> list[str]:
        """What was left out of comparisons, for people."""
        return [f"changes by itself at {line}" for line in self.memory.told()]

    async def storage(self) -> Any:
        """What the browser holds to begin with; logs in if that was not done yet."""
        async with self.lock:
            if self.login is None and self.file.login is not None:
                self.login = await _logged_in(self)
        return self.login


class SiteEnvironment(CheckpointEnvironment):
    """A session on a site of one's own; live, since nothing is known of what its server keeps."""

    def __init__(self, site: _Site, name: str) -> None:
        super().__init__(site.file.url, **site.settings())
        self.site, self.name = site, name

    async def begin(self, task: Task, key: int) -> None:
        self.start = str(task.data.get("start") or self.site.file.url)
        self.storage = await self.site.storage()

    async def step(self, action: Action, key: int) -> StepResult:
        result = await super().step(action, key)
        if self.task is None or result.terminated or len(self._trail) <= self.task.horizon:
            return result
        reward = await self.score(self.task, "")
        return replace(result, reward=0.0 if math.isnan(reward) else reward, truncated=True)

    async def recognise(self, fingerprint: str, step: int) -> float | None:
        if self.same_as.way == "exact" and not self.site.hinted:
            self.site.hinted = True
            log.warning(
                "%s: %s is not as it was recorded. If pages here change by themselves (counters, advertisements), "
                "tell them apart with --set worlds.same_page=distance:0.05", self.name, self._view.path,
            )  # fmt: skip
        return await super().recognise(fingerprint, step)

    async def score(self, task: Task, answer: str) -> float:
        if "reward" not in task.truth:
            return math.nan
        tab = self._live(ended=True)
        end = Ending(url=self._view.url, text=_shown(self._view.parts(1 << 30)[0]), answer=answer)
        with tab.faults("evaluation"):
            return float(await holds(Check(**task.truth["reward"]), end, self._read))

    async def _read(self, check: StateCheck) -> Any:
        """What a state is told by; None where there is nothing."""
        tab = self._live(ended=True)
        if check.script is not None:
            request = {"expression": check.script, "returnByValue": True, "awaitPromise": True}
            answer = await tab.cdp.send("Runtime.evaluate", request)
            return None if answer.get("exceptionDetails") else answer["result"].get("value")
        expression = f"fetch({json.dumps(check.get)}).then(r => r.ok ? r.text() : null)"
        request = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = await tab.cdp.send("Runtime.evaluate", request)
        text = None if answer.get("exceptionDetails") else answer["result"].get("value")
        try:
            return json_value(text) if text is not None else None
        except ValueError:
            return text


def _shown(text: str) -> str:
    """The words of a page's lines: names, texts and values as they read, without their quotes."""
    found = re.findall(r'"(?:[^"\\]|\\.)*"', text)
    return "\n".join(json.loads(part) for part in found)


async def _logged_in(site: _Site) -> Any:
    """Logs in as the file says and gives what the browser holds then. Raises TreewrightError naming the step."""
    file = site.file
    env = FullWebEnvironment(file.url, **{**site.settings(), "same_page": "exact", "asks": False, "locked": False})
    try:
        await env.reset(Task("web", "login", "log in"), 0)
        if isinstance(file.login, str):
            await load_named(file.login, "login")(env._live().page)
        else:
            for number, step in enumerate(file.login or (), 1):
                await _log_in_step(env, step, f"login, step {number}")
        state = await env._live().context.storage_state(indexed_db=True)
        keep_secret(*in_login(state))
        return state
    except (EnvFault, PlaywrightError) as error:
        raise TreewrightError(
            f"the login at {file.url} failed: {error}; correct the steps of 'login', or give 'storage'"
        ) from error
    finally:
        await env.close()


async def _log_in_step(env: FullWebEnvironment, step: Step, where: str) -> None:
    kind = step.kind
    wanted = str(getattr(step, kind))
    try:
        text = re.sub(r"\$(\w+)", lambda match: os.environ[match[1]], step.text)
        keep_secret(text if kind == "fill" and text != step.text else None)
    except KeyError as missing:
        raise TreewrightError(f"{where}: the environment variable {missing} is not set; export it") from None
    if kind == "goto":
        action = Action.of("goto", path=wanted)
    else:
        named = [element for element in env._view.elements.values() if element.name == wanted]
        if not named:
            there = ", ".join(sorted({element.name for element in env._view.elements.values() if element.name})[:20])
            raise TreewrightError(f"{where}: nothing is called {wanted!r} on {env._view.path}; there are: {there}")
        more: dict[str, dict[str, Any]] = {"fill": {"text": text}, "select": {"option": text}, "check": {"on": True}}
        action = Action.of(kind, ref=named[0].ref, **more.get(kind, {}))
    await env.step(action, 0)
