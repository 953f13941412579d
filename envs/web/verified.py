"""WebArena-Verified as a suite: the package's tasks on sites that a TOML file names, judged by the package itself.

    --suites webarena-verified:sites.toml

Its evaluators read the agent's response and the network trace. The gate writes the trace; it belongs to a node as its
page does, so what was asked on other branches of a search is not in it. The package runs in a process of its own, under
an interpreter that may be another one: it pins versions that other packages here do not go with.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import tomllib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treewright.envs.errors import EnvFault, RestoreUnsupported, TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.secrecy import in_login, keep_secret, secret_headers
from treewright.envs.toml_text import toml_value
from treewright.envs.types import Environment, Observation, Restore, Snapshot, Suite, Task
from treewright.envs.web.browser import close_browser, require_chromium
from treewright.envs.web.checkpoint import CheckpointEnvironment
from treewright.envs.web.storage import host_of, storage_trouble
from treewright.envs.web.tab import Tab
from treewright.envs.web.trace import Trace

__all__ = ["PACKAGE", "Judge", "SiteAt", "VerifiedEnvironment", "VerifiedFile", "verified_suite"]

log = logging.getLogger(__name__)

PACKAGE = "webarena-verified==1.2.3"
SCRIPT = Path(__file__).with_name("verified_judge.py")
PATIENCE = 120.0  # seconds that one answer of the package may take
FORM = (
    'Then answer with JSON: {"task_type": "RETRIEVE", "MUTATE" or "NAVIGATE", "status": "SUCCESS", '
    '"ACTION_NOT_ALLOWED_ERROR", "PERMISSION_DENIED_ERROR", "NOT_FOUND_ERROR", "DATA_VALIDATION_ERROR" or '
    '"UNKNOWN_ERROR", "retrieved_data": a list of what was asked for or null, "error_details": null or why}'
)


class SiteAt(BaseModel):
    """Where a site of the benchmark is; http, since the trace is read at the proxy.

    storage  a file with a login, as Playwright's `storage_state` saves it
    headers  go with every request of the tasks on this site
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    storage: Path | None = None
    headers: dict[str, str] = Field(default_factory=dict)


class VerifiedFile(BaseModel):
    """The benchmark and where its sites are; paths are relative to the file.

    sites    by the names of the benchmark: SHOPPING, SHOPPING_ADMIN, REDDIT, GITLAB, MAP, WIKIPEDIA
    tasks    a file of tasks in the benchmark's form, in place of the package's 812
    subset   a subset that the package names, such as 'hard'
    python   an interpreter that has webarena-verified; this one where none is named
    hosts    may be reached besides the sites
    sandboxed  the sites are there to be changed: nothing waits for an approval
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: dict[str, SiteAt] = Field(min_length=1)
    tasks: Path | None = None
    subset: str = ""
    python: Path | None = None
    hosts: tuple[str, ...] = ()
    sandboxed: bool = False


class Judge:
    """The package in a process of its own, started when asked, again when it has died; threads may share it."""

    def __init__(self, python: Path, config: Mapping[str, Any], patience: float = PATIENCE) -> None:
        self.python, self.config, self.patience = python, config, patience
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, **asked: Any) -> dict[str, Any]:
        """One answer. Raises TreewrightError for what the package refuses, EnvFault where it does not answer."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._answer(json.dumps(asked))

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> None:
        command = [str(self.python), "-P", str(SCRIPT), json.dumps(self.config)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            raise TreewrightError(f"{self.python} cannot be run: {error.strerror}; {_install(self.python)}") from error
        try:
            self._answer(None)
        except EnvFault:
            raise
        except TreewrightError as error:
            self._stop()
            missing = "No module named 'webarena_verified'" in str(error)
            raise TreewrightError(f"{error}; {_install(self.python)}" if missing else str(error)) from error

    def _answer(self, line: str | None) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        killer = threading.Timer(self.patience, process.kill)
        killer.start()
        try:
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            said = process.stdout.readline()
        except OSError:
            said = ""
        finally:
            killer.cancel()
        if not said:
            self._stop()
            raise EnvFault(f"WebArena-Verified under {self.python} ended or took more than {self.patience:.0f} s")
        found: dict[str, Any] = json.loads(said)
        if "error" in found:
            raise TreewrightError(f"correct what WebArena-Verified refuses: {found['error']}")
        return found

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


class VerifiedEnvironment(CheckpointEnvironment):
    """A session on the benchmark's sites; live unless the file says otherwise, since such sites are shared."""

    name = "webarena-verified"

    def __init__(self, file: VerifiedFile, judge: Judge) -> None:
        hosts = [*(host_of(site.url) for site in file.sites.values()), *file.hosts]
        super().__init__(next(iter(file.sites.values())).url, hosts=hosts)
        self.file, self.judge, self.trace, self.sandboxed = file, judge, Trace(), file.sandboxed

    async def begin(self, task: Task, key: int) -> None:
        sites = [self.file.sites[name] for name in task.data["sites"]]
        self.start = str(task.data["start"])
        self.headers = {name: value for site in sites for name, value in site.headers.items()}
        self.storage = _logins(sites)
        self.trace.entries = []

    async def _open(self) -> Tab:
        tab = await super()._open()
        tab.gate.trace = self.trace
        return tab

    async def snapshot(self) -> Snapshot:
        made = await super().snapshot()
        data = json.dumps({**json.loads(made.data), "trace": self.trace.entries}, separators=(",", ":")).encode()
        return replace(made, data=data, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        """The page, and the trace as it was there: the way back is no part of it."""
        if snapshot.kind is not Restore.STATE:
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot")
        kept, before = json.loads(snapshot.data), self.trace.entries
        await self.begin(Task(**kept["task"]), 0)
        try:
            seen = await super().restore(snapshot)
        except TreewrightError:
            self.trace.entries = before
            raise
        self.trace.entries = kept["trace"]
        self._live(ended=True).gate.trace = self.trace
        return seen

    async def score(self, task: Task, answer: str) -> float:
        """The package's score. Raises EnvFault where it fails on a response of its own form."""
        try:
            found = await asyncio.to_thread(
                self.judge.ask, op="judge", task_id=task.data["number"], response=answer, trace=self.trace.entries
            )
        except EnvFault:
            raise
        except TreewrightError as error:  # what the package raises while it judges is no fault of the answer
            raise EnvFault(f"{task.id}: {error}") from error
        log.debug("%s: %s", task.id, found["why"])
        if found["status"] == "error":
            raise EnvFault(f"{task.id}: WebArena-Verified could not judge: {found['why']}")
        return float(found["score"])


def verified_suite(spec: str) -> Suite:
    """The suite of a TOML file; warns of tasks on sites it does not name. Raises TreewrightError, with the field."""
    file = _read(Path(spec.strip()))
    judge = Judge(file.python or Path(sys.executable), _config(file))
    name = f"webarena-verified:{spec}"
    try:
        tasks = _tasks(judge, file, name)
    finally:
        judge.close()

    def some(split: str, count: int) -> Sequence[Task]:
        if split not in ("train", "test"):
            raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
        return tasks[:count] if split == "test" else []

    async def open_session() -> Environment:
        return VerifiedEnvironment(file, judge)

    async def close() -> None:
        await close_browser()
        judge.close()

    return Suite(
        name, some, open_session, description="WebArena-Verified's tasks, judged by the package itself.",
        max_tokens=256, sessions=2, close=close, available=_available,
    )  # fmt: skip


def _available() -> None:
    require_chromium()


def _install(python: Path) -> str:
    return (
        f"it needs the package, in an environment of its own: python3 -m venv .venv-webarena; .venv-webarena/bin/pip "
        f'install {PACKAGE}; then write python = ".venv-webarena/bin/python" in place of {python}'
    )


def _config(file: VerifiedFile) -> dict[str, Any]:
    """WebArenaVerifiedConfig as JSON."""
    sites = {f"__{name}__": {"urls": [site.url]} for name, site in file.sites.items()}
    return {"environments": sites, **({"test_data_file": str(file.tasks)} if file.tasks is not None else {})}


def _tasks(judge: Judge, file: VerifiedFile, suite: str) -> list[Task]:
    tasks, left = [], Counter[str]()
    rows = judge.ask(op="tasks", subset=file.subset)["tasks"]
    for row in rows:
        if missing := [name for name in row["sites"] if name not in file.sites]:
            left[missing[0]] += 1
            continue
        start = row["start_urls"][0]
        for name, site in file.sites.items():
            start = start.replace(f"__{name}__", site.url.rstrip("/"))
        data = {"start": start, "sites": row["sites"], "number": row["task_id"]}
        goal = f"{row['intent']}\n{FORM}"
        tasks.append(Task(suite, f"webarena-verified-{row['task_id']}", goal, split="test", horizon=30, data=data))
    if left:
        told = ", ".join(f"{count} need {name}" for name, count in sorted(left.items()))
        if not tasks:
            raise TreewrightError(f"{suite}: no task can be run: {told}; name these sites in the file")
        warnings.warn(f"{suite}: {len(rows) - len(tasks)} of {len(rows)} tasks left out: {told}", stacklevel=3)
    return tasks


def _read(path: Path) -> VerifiedFile:
    example = 'name a TOML file with a site, such as [sites.SHOPPING] and url = "http://127.0.0.1:7770"'
    try:
        data = toml_value(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TreewrightError(f"cannot read {path}: {error}; {example}") from error
    except tomllib.TOMLDecodeError as error:
        raise TreewrightError(f"{path} is not TOML: {error}; {example}") from error
    try:
        file = VerifiedFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise TreewrightError(f"{path}: field {place!r}: {first['msg']}; {example}") from error
    sites = {name.strip("_").upper(): _site(path, name, site) for name, site in file.sites.items()}
    beside = {name: path.parent / found for name in ("tasks", "python") if (found := getattr(file, name)) is not None}
    if "tasks" in beside and not beside["tasks"].is_file():
        raise TreewrightError(f"{path}: field 'tasks': there is no file {beside['tasks']}; name one that is there")
    if file.python is None and find_spec("webarena_verified") is None:
        raise TreewrightError(f"{path}: field 'python' is missing; {_install(Path(sys.executable))}")
    return file.model_copy(update={**beside, "sites": sites})


def _site(path: Path, name: str, site: SiteAt) -> SiteAt:
    """A site with its file in place. Raises TreewrightError for what cannot be used."""
    if urlsplit(site.url).scheme != "http" or not host_of(site.url):
        raise TreewrightError(
            f"{path}: sites.{name}.url = {site.url!r}: the trace is read at the proxy, which cannot look into TLS; "
            "give an address that begins with http://"
        )
    keep_secret(*secret_headers(site.headers))
    if site.storage is None:
        return site
    storage = path.parent / site.storage
    if why := storage_trouble(storage):
        raise TreewrightError(f"{path}: sites.{name}.storage: {why}")
    keep_secret(*in_login(json_value(storage.read_bytes())))
    return site.model_copy(update={"storage": storage})


def _logins(sites: Sequence[SiteAt]) -> Any:
    """The logins of these sites as one; None without any."""
    states = [json_value(site.storage.read_bytes()) for site in sites if site.storage is not None]
    if not states:
        return None
    return {part: [one for state in states for one in state.get(part) or ()] for part in ("cookies", "origins")}
