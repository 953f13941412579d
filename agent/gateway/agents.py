"""`agent:COMMAND` as a suite: the server that the agents call, opened with the first session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from treewright.agent.gateway.around import AgentPolicy
from treewright.agent.gateway.normal import BUILT_IN, Normal
from treewright.agent.gateway.post import Post
from treewright.agent.gateway.process import Nursery
from treewright.agent.gateway.server import make_app, running
from treewright.agent.gateway.world import AgentEnvironment, Options, Shared
from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.envs.own import NoTasks
from treewright.envs.secrecy import keep_secret, named_secret
from treewright.envs.types import Effect, Environment, Suite

__all__ = ["agent_suite", "options_of"]

GOALS = ("argument", "stdin", "environment")


def options_of(given: Mapping[str, Any]) -> Options:
    """Options from plain values, as a configuration has them. Raises TreewrightError naming what is wrong."""
    known = {f.name for f in fields(Options)}
    for name in given:
        if name not in known:
            raise TreewrightError(f"worlds.agent has no option {name!r}; {nearest(name, known)}")
    values = dict(given)
    if values.get("goal", "argument") not in GOALS:
        raise TreewrightError(f"worlds.agent.goal = {values['goal']!r}; write one of {', '.join(GOALS)}")
    for name in ("sandboxed", "learn"):
        if not isinstance(values.get(name, False), bool):
            raise TreewrightError(f"worlds.agent.{name} must be true or false, not {values[name]!r}")
    if values.get("folder") is not None:
        values["folder"] = Path(values["folder"]).expanduser().resolve()
        if not values["folder"].is_dir():
            raise TreewrightError(
                f"worlds.agent.folder: there is no folder {values['folder']}; make it, or leave it out"
            )
    try:
        values["effects"] = {str(k): Effect(v) for k, v in dict(values.get("effects", {})).items()}
    except ValueError as error:
        raise TreewrightError(f"worlds.agent.effects: {error}; write read, reversible or irreversible") from error
    for name in ("normalise", "preload"):
        values[name] = tuple(map(str, values.get(name, ())))
    values["env"] = {str(k): str(v) for k, v in dict(values.get("env", {})).items()}
    keep_secret(*(value for name, value in values["env"].items() if named_secret(name)))
    return Options(**values)


def agent_suite(command: str, **options: Any) -> Suite:
    """A suite whose sessions run `command`; its tasks come from a file (`--tasks-file`).

    command  as a shell would split it, run without a shell; files that it names are found from here, wherever it runs
    options  see `Options`
    Raises TreewrightError for a command that there is not, and for wrong options.
    """
    words, chosen = _words(command), options_of(options)
    normal = Normal((*((f"declared{i}", p) for i, p in enumerate(chosen.normalise)), *BUILT_IN.items()))
    shared = Shared(Post(), [normal], _nursery(words, chosen))
    stack = contextlib.AsyncExitStack()
    gate = asyncio.Lock()

    async def opened() -> Shared:
        async with gate:
            if not shared.post.address:
                app = make_app(shared.post, shared.post.key, body_limit=64 << 20)
                shared.post.address = await stack.enter_async_context(running(app))
        return shared

    async def open_session() -> Environment:
        return AgentEnvironment(words, chosen, opened)

    async def close() -> None:
        await stack.aclose()
        shared.post.address = ""
        if shared.nursery is not None:
            await shared.nursery.close()

    return Suite(
        "agent", NoTasks(f"agent:{command}"), open_session, description=f"runs of {command}", max_tokens=512,
        sessions=4, close=close, told=lambda: tuple(shared.told), around=AgentPolicy,
    )  # fmt: skip


def _nursery(words: Sequence[str], options: Options) -> Nursery | None:
    if not options.preload:
        return None
    script = len(words) > 1 and (not words[1].startswith("-") or (words[1] == "-m" and len(words) > 2))
    if not Path(words[0]).name.startswith("python") or not script or not hasattr(os, "fork"):
        raise TreewrightError(
            "worlds.agent.preload is for commands of the form 'python FILE …' or 'python -m MODULE …'; leave it out"
        )
    return Nursery(words[0], options.preload, {**os.environ, "PYTHONHASHSEED": "0", **options.env})


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise TreewrightError(f"agent:{command} cannot be split into words: {error}; write it as in a shell") from error
    if not words:
        raise TreewrightError("agent: names no command; write --suites 'agent:python my_agent.py'")
    if shutil.which(words[0]) is None:
        raise TreewrightError(f"agent: there is no command {words[0]!r} here; give its whole path")
    words[0] = str(Path(words[0]).absolute()) if "/" in words[0] else words[0]
    return [words[0], *map(_found, words[1:])]


def _found(word: str) -> str:
    """A file by its whole path, since the command runs elsewhere."""
    return str(Path(word).resolve()) if not word.startswith("-") and Path(word).is_file() else word
