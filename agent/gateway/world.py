"""An agent's program as an environment: the policy's answer is the action, what the agent asks next the observation.

    suite = agent_suite("python my_agent.py", sandboxed=True)

Every session runs the command in a process and a working directory of its own, against a server of ours whose answers
are the search's actions. Going back is replay: the command is run again, gets the recorded answers, and each request
must be the recorded one (see normal.py); where it is not, the node is UNREACHABLE. A session that waits for an answer
waits in the agent's own call, and holds nothing else.

    exit code 0 … 125          the episode's end; 0 is success where no other reward is named
    1 … 125 after a refusal    our server refused a request, and answered none since: a fault, never a reward
    126, 127, 128 + n          the command could not run, or was killed: a fault, never a reward
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treewright.agent.gateway.asked import SAY, Asked, Spoken, keys_of, shown
from treewright.agent.gateway.normal import Normal, difference, learned
from treewright.agent.gateway.post import Line, Post, Waits
from treewright.agent.gateway.process import Nursery, Run, begin
from treewright.agent.gateway.prompts import request_json
from treewright.agent.gateway.replies import spoken_action
from treewright.envs.errors import EnvFault, SessionDied
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    StepResult,
    Task,
    ToolSpec,
    digest,
)

__all__ = ["AgentEnvironment", "AgentRun", "Options", "Shared"]

RETURNS = 20.0
"""Seconds in which a client that hung up may send its request again."""
CANNOT_RUN = 126
MOST_ASKED, MOST_TOLD = 512, 3  # requests that are remembered, and differences of replays that are told
DECLARE = "If that does not count, name it in worlds.agent.normalise"
HUNG_UP = (
    "the agent's client gave up before it was answered and did not ask again; give it a longer time limit, such as "
    "OpenAI(timeout=3600)"
)
SAYING = ToolSpec(SAY, "Answers in words.", {"type": "object", "properties": {"text": {"type": "string"}}}, Effect.READ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a command is run and judged; [worlds.agent] of the configuration.

    goal       how the command is told: argument ({goal} in the command, else the last one), stdin or environment
    folder     copied into each fresh working directory
    output     file there that holds the answer, or '-' for what is printed last; compared with the task's truth.output.
               Without it, exit code 0 is success
    sandboxed  nothing that the command touches lies outside its working directory, or all of it may be repeated
    effects    of the tools that the agent declares, by name: read, reversible, irreversible; else unknown
    normalise  further regular expressions of what does not count when requests are compared
    learn      begin the first task twice and learn what differs
    env        further environment variables
    preload    modules that are imported once; the command, a Python program, is then forked from there, in milliseconds
    """

    goal: str = "argument"
    folder: Path | None = None
    output: str = ""
    sandboxed: bool = False
    effects: Mapping[str, Effect] = field(default_factory=dict)
    normalise: tuple[str, ...] = ()
    learn: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentRun:
    """What a reward function sees as its third argument.

    directory  the working directory as the command left it;  exit_code  None where it still runs
    stdout, stderr  the end of what was printed
    """

    directory: Path
    exit_code: int | None
    stdout: str
    stderr: str


@dataclass(slots=True)
class Shared:
    """What all sessions of one suite share: the server, and when requests count as the same.

    versions  rules in the order in which they were learnt; a fingerprint names the one that it was made with
    asked     the newest requests by fingerprint, so that a replay can say in what it differs
    """

    post: Post
    versions: list[Normal]
    nursery: Nursery | None = None
    told: list[str] = field(default_factory=list)
    looked: bool = False
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked: OrderedDict[str, tuple[Any, bool]] = field(default_factory=OrderedDict)
    parted: int = 0

    def learn(self, first: Any, second: Any, goal: str = "") -> None:
        """Takes two requests of the same beginning and learns what differs; says what it found."""
        normal = self.versions[-1]
        first, second = normal.of(first), normal.of(second)
        learnt = learned(first, second, goal)
        if learnt is None:
            self.told.append(
                "two runs of one task began differently, in more than numbers and ids that stand apart: "
                f"{difference(first, second)}; nodes may be lost. {DECLARE}"
            )
        elif learnt:
            self.versions.append(normal.with_rules(learnt))
            self.told += [f"learnt that this does not count in the first messages: {one.words}" for one in learnt]

    def remember(self, fingerprint: str, request: Any, begins: bool) -> None:
        """Keeps what was asked where a fingerprint was made; what does not count is taken out where it is compared."""
        self.asked[fingerprint] = request, begins
        self.asked.move_to_end(fingerprint)
        if len(self.asked) > MOST_ASKED:
            self.asked.popitem(last=False)

    def tell(self, fingerprint: str, version: int, request: Any, begins: bool) -> None:
        """Says in what a replay's request differs from the one that was recorded there."""
        if fingerprint not in self.asked or self.parted >= MOST_TOLD:
            return
        recorded, began = self.asked[fingerprint]
        normal = self.versions[version]
        if found := difference(normal.of(recorded, begins=began), normal.of(request, begins=begins)):
            self.parted += 1
            self.told.append(f"a replay asked otherwise than was recorded: {found}. {DECLARE}")


class AgentEnvironment(BaseEnvironment):
    """One session: one run of the command at a time."""

    restore_ways = frozenset({Restore.REPLAY})

    name = "agent"

    def __init__(self, command: Sequence[str], options: Options, shared: Callable[[], Awaitable[Shared]]) -> None:
        self.command, self.options = tuple(command), options
        self.sandboxed = options.sandboxed
        self._open_shared = shared
        self._shared: Shared | None = None
        self._run: Run | None = None
        self._session = ""
        self._task: Task | None = None
        self._call: Waits | None = None
        self._history: list[Any] = []  # every request so far, as JSON
        self._begins: list[bool] = []  # of each: whether its messages are those that the first request begins with
        self._ends: dict[str, int] = {}  # key of a beginning that ends with an answer: index of its request
        self._keys: list[list[str]] = []
        self._steps = 0

    # -- the contract -----------------------------------------------------------------------------------------------

    async def reset(self, task: Task, key: int) -> Observation:
        shared = await self._shared_()
        if self.options.learn and not shared.looked:
            async with shared.looking:
                if not shared.looked:
                    await self._look(shared, task, key)
                    shared.looked = True
        await self._start(task, key)
        seen = await self._next()
        if seen is None:
            raise EnvFault(f"the agent ended before it asked for anything: {self._refused() or self._why()}")
        return seen

    async def step(self, action: Action, key: int) -> StepResult:
        call, task = self._call, self._task
        if call is None or task is None:
            raise SessionDied(f"{self.name}: no request waits for an answer")
        effect = await self.effect(action)
        answer = spoken_action(action, f"{self._steps:04d}")
        self._steps += 1
        call.answers.append(answer)
        if len(call.answers) < call.asked.n:
            return StepResult(self._observed(call.asked, again=True), effect=effect)
        await self._heard(call)
        self._ends[digest(self._keys[-1][-1], answer.spoken.canonical())] = len(self._keys) - 1
        self._call = None
        if not call.future.done():
            call.future.set_result(call.answers)
        seen = await self._next()
        if seen is not None:
            return StepResult(seen, effect=effect)
        return await self._over(task, effect)

    async def actions(self) -> Sequence[ToolSpec]:
        """The tools of the request that waits, with their declared effects, and plain words."""
        call = self._call
        if call is None:
            return (SAYING,)
        effects = self.options.effects
        tools = () if call.asked.no_calls else call.asked.tools
        declared = (ToolSpec(t.name, t.description, t.parameters, effects.get(t.name, Effect.UNKNOWN)) for t in tools)
        return (*declared, SAYING)

    async def effect(self, action: Action) -> Effect:
        known = {**self.options.effects, SAY: Effect.READ}
        effects = [known.get(call.name, Effect.UNKNOWN) for call in action.calls]
        return max(effects, key=lambda one: one.severity, default=Effect.READ)

    async def recognise(self, fingerprint: str, step: int) -> float | None:
        """The present state under the rules that a recorded fingerprint was made with."""
        version, _, _ = fingerprint.partition(":")
        shared = await self._shared_()
        if not version.isdigit() or int(version) >= len(shared.versions):
            return None
        if self._fingerprint(int(version)) == fingerprint:
            return 0.0
        if self._history:
            shared.tell(fingerprint, int(version), self._own(self._history[-1]), self._begins[-1])
        return None

    async def close(self) -> None:
        await self._end_run()

    @property
    def object(self) -> AgentRun:
        """What a reward function may read."""
        if self._run is None:
            raise EnvFault(f"{self.name}: no run")
        run = self._run
        return AgentRun(run.directory, run.exit_code, run.text("stdout"), run.text("stderr"))

    # -- running ----------------------------------------------------------------------------------------------------

    async def _shared_(self) -> Shared:
        if self._shared is None:
            self._shared = await self._open_shared()
        return self._shared

    async def _start(self, task: Task, key: int) -> None:
        await self._end_run()
        shared = await self._shared_()
        self._session = secrets.token_hex(8)
        shared.post.lines[self._session] = Line()
        self._task, self._call, self._steps = task, None, 0
        self._history, self._begins, self._keys, self._ends = [], [], [], {}
        command = [part.replace("{goal}", task.goal) for part in self.command]
        if self.options.goal == "argument" and not any("{goal}" in part for part in self.command):
            command.append(task.goal)
        stdin = task.goal if self.options.goal == "stdin" else None
        folder = task.data.get("folder", self.options.folder)
        copied = Path(folder) if folder else None
        self._run = await begin(command, self._environment(task, key), copied, stdin, shared.nursery)

    def _environment(self, task: Task, key: int) -> dict[str, str]:
        shared = self._shared
        assert shared is not None
        base = f"{shared.post.address}/s/{self._session}"
        public = json.dumps({"id": task.id, "goal": task.goal, "data": dict(task.data)}, ensure_ascii=False)
        return {
            **os.environ, "PYTHONHASHSEED": "0", **self.options.env,
            "OPENAI_BASE_URL": f"{base}/v1", "OPENAI_API_KEY": shared.post.key,
            "ANTHROPIC_BASE_URL": base, "ANTHROPIC_API_KEY": shared.post.key,
            "TREEWRIGHT_GOAL": task.goal, "TREEWRIGHT_TASK": public, "TREEWRIGHT_SEED": str(key % (1 << 31)),
        }  # fmt: skip

    async def _next(self) -> Observation | None:
        """What the agent asks next, or None once its command has ended."""
        line = self._line()
        while not line.waiting:
            if not await self._stirs() and not line.waiting:
                return None
        self._call = line.waiting.popleft()
        return self._observed(self._call.asked)

    async def _stirs(self, limit: float | None = None) -> bool:
        """Waits for a request; False once the command has ended, or after `limit` seconds."""
        run, line = self._run, self._line()
        assert run is not None
        line.arrived.clear()
        asks, ends = asyncio.ensure_future(line.arrived.wait()), asyncio.ensure_future(run.ended())
        try:
            await asyncio.wait({asks, ends}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            return asks.done()
        finally:
            asks.cancel()
            ends.cancel()

    async def _heard(self, call: Waits) -> None:
        """Waits for a client that hung up to ask again. Raises SessionDied where it does not."""
        until, line = time.monotonic() + RETURNS, self._line()
        while line.gave_up(call):
            if not await self._stirs(max(0.0, until - time.monotonic())):
                raise SessionDied(HUNG_UP)

    def _line(self) -> Line:
        assert self._shared is not None
        line = self._shared.post.lines.get(self._session)
        if line is None:
            raise SessionDied(f"{self.name}: the session is closed")
        return line

    async def _end_run(self) -> None:
        run, self._run, self._call = self._run, None, None
        if self._shared is not None:
            self._shared.post.close(self._session)
        if run is not None:
            await run.close()

    async def _look(self, shared: Shared, task: Task, key: int) -> None:
        """Begins the task twice and learns where its first requests differ."""
        begun = []
        for _ in range(2):
            await self._start(task, key)
            if await self._next() is None:
                return
            begun.append(self._own(self._history[-1]))
        first, second = begun
        shared.learn(first, second, task.goal)

    # -- what is seen -----------------------------------------------------------------------------------------------

    def _observed(self, asked: Asked, again: bool = False) -> Observation:
        """The request as an observation: its new messages, and how it follows from those before."""
        keys = keys_of(asked)
        if again:
            part = {**request_json(asked, len(asked.said), "again"), "of": len(self._keys) - 1, "n": asked.n}
            return Observation("", self._keep("again"), provenance="agent", parts=(part,))
        ends = (i for i in range(len(asked.said), 0, -1) if keys[i] in self._ends)
        start = next(ends, 0)
        of = self._ends[keys[start]] + 1 if start else 0
        opened = {before[1] for before in self._keys}
        link = "continues" if start else "rewrites" if keys[1] in opened else "spawns"
        self._keys.append(keys)
        part = {**request_json(asked, start, link), "of": of, "stop": list(asked.stop), "no_calls": asked.no_calls}
        if asked.max_tokens is not None:
            part["max_tokens"] = asked.max_tokens
        tools = [[t.name, t.description, dict(t.parameters)] for t in asked.tools]
        said = [one.to_json() for one in asked.said[start:]]
        begins = not start and keys[1] == self._keys[0][1]
        whole = {"of": [link, of], "said": said, "tools": tools, "stop": list(asked.stop), "n": asked.n}
        return Observation(shown(asked.said[start:]), self._keep(whole, begins), provenance="agent", parts=(part,))

    def _keep(self, request: Any, begins: bool = False) -> str:
        """Adds a request, or the end, to the history; its fingerprint."""
        assert self._shared is not None
        self._history.append(request)
        self._begins.append(begins)
        fingerprint = self._fingerprint()
        self._shared.remember(fingerprint, self._own(request), begins)
        return fingerprint

    def _fingerprint(self, version: int | None = None) -> str:
        assert self._shared is not None
        version = len(self._shared.versions) - 1 if version is None else version
        normal, both = self._shared.versions[version], zip(self._history, self._begins, strict=True)
        return f"{version}:{digest(*(normal.key(self._own(one), begins=begins) for one, begins in both))}"

    def _own(self, value: Any) -> Any:
        """A request without what is this run's alone: its folder, session and address."""
        assert self._shared is not None and self._run is not None
        own = {str(self._run.directory): "<work>", self._session: "<session>", self._shared.post.address: "<address>"}
        return Normal(()).of(value, own)

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _over(self, task: Task, effect: Effect) -> StepResult:
        run = self._run
        assert run is not None
        code = await run.ended()
        if code >= CANNOT_RUN:
            raise SessionDied(f"the agent's command ended with {code}: {self._why()}")
        line = self._line()
        if any(map(line.gave_up, line.calls)):  # what it did without the answer is no result
            raise SessionDied(HUNG_UP)
        if code and line.refused:  # whoever was refused for our server's sake has not failed
            raise SessionDied(f"the agent ended with exit code {code} after a refusal: {self._refused()}")
        reward, words = 1.0 if code == 0 else 0.0, f"the agent ended with exit code {code}"
        if self.options.output:
            if code:
                raise SessionDied(f"the agent crashed with exit code {code}: {self._why()}")
            given = await asyncio.to_thread(self._output, run)
            wanted = task.truth.get("output")
            reward = float(given is not None and wanted is not None and given.strip() == str(wanted).strip())
            words = "the agent ended, " + ("no output" if given is None else f"output: {given[:2000]}")
        ended = self._keep({"exit": code, "words": words})
        return StepResult(Observation(words, ended, provenance="agent"), reward, True, effect=effect)

    def _output(self, run: Run) -> str | None:
        if self.options.output == "-":
            lines = run.text("stdout").strip().splitlines()
            return lines[-1] if lines else None
        path = (run.directory / self.options.output).resolve()
        if not path.is_relative_to(run.directory.resolve()) or not path.is_file():
            return None
        return path.read_text("utf-8", "replace")

    def _refused(self) -> str:
        """What the server refused last, if the agent got no answer since."""
        refused = self._line().refused
        if not refused:
            return ""
        assert self._shared is not None
        told = f"the server in front of the search answered {refused}"
        line = f"{told}; runs that end for it are faults, and have no reward"
        if line not in self._shared.told:
            self._shared.told.append(line)
        return f"{told}; have the agent go on without it, or ask another server for it ({self._why()})"

    def _why(self) -> str:
        """The last thing that the command wrote to stderr."""
        lines = self._run.text("stderr").strip().splitlines() if self._run is not None else []
        return lines[-1][:300] if lines else "it wrote nothing to stderr"


def messages_at(requests: Sequence[Mapping[str, Any]], answers: Sequence[Spoken]) -> list[tuple[Spoken, ...]]:
    """All messages of each request of a path, from what each adds; answers[i] is the answer to request i."""
    said: list[tuple[Spoken, ...]] = []
    for i, request in enumerate(requests):
        before: tuple[Spoken, ...] = ()
        if request["link"] == "again":
            said.append(said[i - 1])
            continue
        if request["start"]:
            before = (*said[request["of"] - 1], answers[request["of"] - 1])
        said.append((*before, *map(Spoken.from_json, request["messages"])))
    return said
