"""One Harbor task as a world: a shell in its container, and at the end its own tests.

    bash {"command": "ls"}   runs a command; each is a call of its own in the task's working directory
    submit {}                ends the task: tests/test.sh is run in the same container, and its reward file is read

Going back is replay: a new container, the recorded commands again, every observation compared. With snapshots, the
container's files are committed as an image instead, and a new container begins there.

A command's deadline is the policy's affair: it is told, and everything that still runs in the container is ended. A
verifier that dies or runs out of time, an engine that fails and a reward file that holds no number are faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from treewright.envs.errors import (
    ActionTimeout,
    EnvFault,
    InvalidAction,
    RestoreUnsupported,
    SessionDied,
    TreewrightError,
)
from treewright.envs.harbor.called import Bounded
from treewright.envs.harbor.engine import Engine, Where
from treewright.envs.harbor.task import HarborTask, Healthcheck, resolved
from treewright.envs.tools.schema import check_action
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    digest,
)

__all__ = ["MAX_COMMAND", "HarborEnvironment", "Shared", "normal", "reward_of"]

MAX_COMMAND = 20_000
VERIFIER = "/logs/verifier"
FOLDERS = f"{VERIFIER} /logs/agent /logs/artifacts"
REWARDS = (f"{VERIFIER}/reward.json", f"{VERIFIER}/reward.txt")  # the first of them that is there
LOG = f"{VERIFIER}/test-stdout.txt"
SMALL = 64 << 10  # bytes of a reward file that are read
IMAGE_SIZE = 4 << 20  # what a committed image counts for among snapshots; its bytes are the engine's
DIED = 126  # exit codes from here on: could not run, was not found, was killed

# What nobody prints twice alike: it does not count when a replay is compared. In this order.
DAY, MONTH = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)", "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
VOLATILE = (
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?: ?[+-]\d\d:?\d\d|Z)?",  # a date with a time
    rf"\b(?:{DAY} )?{MONTH} [ \d]\d +(?:\d\d:\d\d(?::\d\d)?(?: \S+ \d{{4}})?|\d{{4}})\b",  # of ls and date
    r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b",  # a UUID
    r"(?<![\d.])1[6-9]\d{8}(?:\.\d+|\d{3})?(?![\d.])",  # a Unix time
    r"\b0x[0-9a-fA-F]{6,16}\b",  # an address
    r"/tmp/tmp[\w.]+",  # a temporary name
    r"\b\d+\.\d+ ?(?:s|ms|sec|seconds)\b|\b\d+m\d+\.\d+s\b|\b\d+m [\d.]+s\b",  # how long something took
    r"\b[Pp](?:id|ID)[ =:]+\d+|^\[\d+\] \d+$",  # a process number
)
_VOLATILE = re.compile("|".join(f"(?:{one})" for one in VOLATILE), re.MULTILINE)

TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_COMMAND}
COMMAND = {"type": "object", "properties": {"command": TEXT}, "required": ["command"], "additionalProperties": False}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def normal(text: str) -> str:
    """An observation without what changes by itself from run to run."""
    return _VOLATILE.sub("<>", text)


def _read_reward(id: str, path: str, text: str, key: str) -> tuple[float, Any]:
    """The number that counts and all that the file held. Raises EnvFault where it holds none."""
    kind = path.rpartition("/")[2]
    try:
        rewards = json.loads(text) if kind == "reward.json" else {"reward": float(text)}
    except ValueError as error:
        raise EnvFault(f"{id}: its {kind} holds no reward: {text[:100]!r}") from error
    return reward_of(rewards, key), rewards


def reward_of(rewards: Any, key: str) -> float:
    """The number that counts of what a reward file held, by name. Raises EnvFault where there is none."""
    if not isinstance(rewards, dict):
        raise EnvFault(f"the verifier's rewards are {rewards!r}; the format has numbers by name")
    if key not in rewards and len(rewards) == 1 and key == "reward":
        key = next(iter(rewards))
    if key not in rewards:
        raise EnvFault(f"the verifier gave rewards named {', '.join(rewards) or 'nothing'}; write ?reward=NAME")
    value = rewards[key]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise EnvFault(f"the verifier's reward is {value!r}, which is no finite number")
    return float(value)


@dataclass(slots=True, eq=False)
class Shared:
    """What all sessions of a suite share.

    engine  of containers;  images  of tasks, each made once
    kept    images of snapshots;  gone  those that nobody holds any more;  running  containers that sessions have
    deadline  seconds of one command;  output  characters of one observation, half of them from its end
    """

    engine: Engine
    tasks: dict[str, HarborTask]
    deadline: float = 30.0
    output: int = 8000
    snapshots: bool = False
    sandboxed: bool = False
    reward: str = "reward"
    images: dict[str, asyncio.Task[str]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    swept: asyncio.Task[None] | None = None

    async def image(self, task: HarborTask) -> str:
        """The task's image; whoever asks first has it built, and a session that gives up does not stop that."""
        if self.swept is None:
            self.swept = asyncio.create_task(self.engine.sweep())
        await asyncio.shield(self.swept)
        making = self.images.get(task.id)
        if making is None or (making.done() and (making.cancelled() or making.exception())):
            making = self.images[task.id] = asyncio.create_task(self.engine.image(task))
        return await asyncio.shield(making)

    async def remove(self, container: str) -> None:
        self.running.discard(container)
        with contextlib.suppress(EnvFault):  # swept by the next run
            await self.engine.remove(container)

    async def tidy(self) -> None:
        """Removes the images of snapshots that were dropped."""
        while self.gone:
            name = self.gone.pop()
            with contextlib.suppress(EnvFault):  # still used by a container: `close` tries again
                await self.engine.remove_image(name)
                self.kept.discard(name)

    async def close(self) -> None:
        tasks = [t for t in (*self.images.values(), self.swept) if t is not None]
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.images.clear()
        self.swept = None
        for name in tuple(self.running):
            await self.remove(name)
        self.gone += [name for name in self.kept if name not in self.gone]
        await self.tidy()


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class _Held:
    """A session's state: a committed image, which is given up once nobody holds this, and what else it knew."""

    image: str
    task: HarborTask
    horizon: int
    shell: str
    history: tuple[str, ...]
    shown: Observation


class HarborEnvironment(BaseEnvironment):
    """One session: one container at a time.

    A live world has snapshots in any case: what goes on after a commit begins with the files that it left.
    """

    def __init__(self, name: str, shared: Shared) -> None:
        self.name, self.shared = name, shared
        self.sandboxed = shared.sandboxed or not any(task.network for task in shared.tasks.values())
        self._saves = shared.snapshots or not self.sandboxed
        self.restore_ways = frozenset({Restore.REPLAY} | ({Restore.FORK} if self._saves else set()))
        self._task: HarborTask | None = None
        self._horizon, self._shell = 0, "sh"
        self._container = ""
        self._history: tuple[str, ...] = ()
        self._ended = False
        self._shown = Observation("")

    # -- the contract -----------------------------------------------------------------------------------------------

    async def reset(self, task: Task, key: int) -> Observation:
        found = self.shared.tasks.get(str(task.data.get("task")))
        if found is None:
            raise TreewrightError(f"task {task.id!r} is none of {self.name}; its data.task names a task folder")
        self._horizon = task.horizon
        await self._open(found, await self.shared.image(found))
        await self._prepare(found)
        return self._show("a shell is ready", "environment")

    async def step(self, action: Action, key: int) -> StepResult:
        if self._task is None:
            raise TreewrightError(f"{self.name}: step before reset; call reset(task, key) first")
        if self._ended:
            raise InvalidAction("the task has ended")
        check_action(action, await self.actions())
        if len(action.calls) != 1:
            raise InvalidAction("bash or submit: one of them a turn")
        effect = self._effect(self._task)
        if action.name == "submit":
            return await self._submit(self._task, effect)
        command = str(action.arguments["command"])
        if "\x00" in command:
            raise InvalidAction("a command holds no NUL characters")
        seen = await self._run(self._task, command)
        self._history = (*self._history, digest(action.key, normal(seen)))
        shown = self._show(seen, "tool")
        if len(self._history) < self._horizon:
            return StepResult(shown, effect=effect)
        reward, rewards = await self._verify(self._task)
        self._ended = True
        return StepResult(shown, reward, truncated=True, effect=effect, info={"rewards": rewards})

    async def actions(self) -> tuple[ToolSpec, ...]:
        effect = Effect.UNKNOWN if self._task is None else self._effect(self._task)
        return (
            ToolSpec("bash", "runs a command in the task's shell and shows what it prints", COMMAND, effect),
            ToolSpec("submit", "ends the task: its tests are run", NOTHING, effect, terminal=True),
        )

    async def snapshot(self) -> Snapshot:
        if self._task is None:
            raise TreewrightError(f"{self.name}: snapshot before reset; call reset(task, key) first")
        if not self._saves:
            return await super().snapshot()
        image = ""  # of an end there is nothing to go on from
        if not self._ended:
            image = await self.shared.engine.commit(self._container)
            self.shared.kept.add(image)
        held = _Held(image, self._task, self._horizon, self._shell, self._history, self._shown)
        if image:
            weakref.finalize(held, self.shared.gone.append, image).atexit = False
        return Snapshot(Restore.FORK, held, self._shown.fingerprint, size=IMAGE_SIZE)

    async def restore(self, snapshot: Snapshot) -> Observation:
        held = snapshot.data
        if snapshot.kind is not Restore.FORK or not isinstance(held, _Held):
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot that it did not make")
        if held.image:
            await self._open(held.task, held.image)
        else:
            await self._discard()
            self._task, self._ended = held.task, True
        self._horizon, self._shell, self._history = held.horizon, held.shell, held.history
        self._shown = held.shown
        return held.shown

    async def close(self) -> None:
        self._task = None
        await self._discard()

    # -- the container ----------------------------------------------------------------------------------------------

    async def _open(self, task: HarborTask, image: str) -> None:
        await self._discard()
        self._task, self._ended, self._history = None, False, ()
        self._container = await self.shared.engine.start(image, task)
        self.shared.running.add(self._container)
        self._task = task

    async def _discard(self) -> None:
        name, self._container = self._container, ""
        if name:
            await self.shared.remove(name)
        await self.shared.tidy()

    async def _prepare(self, task: HarborTask) -> None:
        """The folders of the format, the files that come with a ready image, and the healthcheck."""
        made = f"mkdir -p {FOLDERS} && chmod 777 {FOLDERS} && {{ command -v bash >/dev/null && echo bash || echo sh; }}"
        self._shell = (await self._root(made, "making /logs")).split()[-1]
        folder = task.folder / "environment"
        env = task.file.environment
        if env.docker_image and folder.is_dir() and not (folder / "Dockerfile").exists() and any(folder.iterdir()):
            _, place = await self._call("sh", "pwd", Where(folder=env.workdir), 30.0)
            await self.shared.engine.copy(folder, self._container, env.workdir or place.text().strip())
        if (check := env.healthcheck) is not None:
            await _until_healthy(lambda: self._healthy(task, check), check)

    async def _healthy(self, task: HarborTask, check: Healthcheck) -> bool:
        code, _ = await self._call(self._shell, check.command, self._where(task), check.timeout_sec)
        return code == 0

    def _where(self, task: HarborTask, user: str | int | None = None) -> Where:
        env = task.file.environment
        return Where(user=user, folder=env.workdir, env=resolved(env.env), network=task.network)

    async def _root(self, command: str, what: str) -> str:
        code, out = await self._call("sh", command, Where(user="0"), 60.0)
        if code != 0:
            raise EnvFault(f"{self.name}: {what} in the container failed with {code}: {out.text().strip()[-300:]}")
        return out.text()

    async def _call(
        self, shell: str, command: str, where: Where, deadline: float, limit: int = SMALL
    ) -> tuple[int | None, Bounded]:
        """Runs a command; its exit code, None past the deadline, and what it printed to stdout and stderr.

        The exit code comes by a mark behind the output, which nothing else writes: where it is missing, either the
        command killed its shell, and the engine tells of a signal, or the engine failed. Raises SessionDied for that.
        """
        mark = secrets.token_hex(16)
        line = 'exec 2>&1 </dev/null; "$1" -c "$2"; printf "\\n%s=%s=" "$0" "$?"'
        until = re.compile(rf"\n{mark}=(\d+)=".encode())
        words = ["sh", "-c", line, mark, shell, command]
        done = await self.shared.engine.execute(self._container, words, where, deadline, limit + 200, until)
        if found := until.search(done.out.end):
            return int(found[1]), _without(done.out, len(done.out.end) - found.start())
        if done.late:
            await self.shared.engine.interrupt(self._container)
            return None, done.out
        engine = self.shared.engine
        if (done.code or 0) > 128:
            alive = await engine.execute(self._container, ["sh", "-c", "echo alive"], Where(), 60.0, SMALL, None)
            if alive.out.text().strip() == "alive":
                return done.code, done.out
        raise SessionDied(f"{self.name}: {engine.name} ran no command in the container ({done.code}): {done.why}")

    async def _run(self, task: HarborTask, command: str) -> str:
        """What a command of the policy shows."""
        agent = task.file.agent
        limit = min(self.shared.deadline, agent.timeout_sec or math.inf)
        code, out = await self._call(
            self._shell, command, self._where(task, agent.user), limit, self.shared.output // 2
        )
        text = out.text().rstrip("\n")
        if code is None:
            return f"{text}\n[killed after {limit:g} seconds]".lstrip("\n")
        return f"{text}\n[exit code {code}]".lstrip("\n") if code else text or "[no output]"

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _submit(self, task: HarborTask, effect: Effect) -> StepResult:
        reward, rewards = await self._verify(task)
        self._ended = True
        self._history = (*self._history, "submit")
        return StepResult(
            self._show("submitted", "environment"), reward, True, effect=effect, info={"rewards": rewards}
        )

    async def _verify(self, task: HarborTask) -> tuple[float, Any]:
        """Runs the task's tests in the container. Raises EnvFault where they give no reward."""
        verifier, where = task.file.verifier, self._where(task, task.file.verifier.user)
        await self._root(f"rm -f {' '.join(REWARDS)}; mkdir -p /tests", "removing old rewards")
        with tempfile.TemporaryDirectory(prefix="treewright-tests-") as place:
            staged = Path(place) / "tests"
            await asyncio.to_thread(shutil.copytree, task.folder / "tests", staged)
            (staged / "test.sh").chmod(0o755)
            await self.shared.engine.copy(staged, self._container, "/tests")
        command = f"(/tests/test.sh) > {LOG} 2>&1"
        where = replace(where, env={**where.env, **resolved(verifier.env)})
        code, _ = await self._call(self._shell, command, where, verifier.timeout_sec)
        if code is None:
            raise ActionTimeout(f"{task.id}: its tests were not done after {verifier.timeout_sec:g} s")
        found = [await self._file(*REWARDS)] if code < DIED else []
        if found and found[0] is not None:
            return _read_reward(task.id, *found[0], self.shared.reward)
        said = await self._file(LOG)
        why = (said[1].strip() if said else "")[-300:] or "they said nothing"
        raise EnvFault(f"{task.id}: its tests {'left no reward file' if found else f'died with {code}'}: {why}")

    async def _file(self, *paths: str) -> tuple[str, str] | None:
        """The first of these files in the container that is there, with its content, as a command there shows it."""
        line = "; ".join(f"if [ -f {path} ]; then echo {path}; cat {path}; exit 0; fi" for path in paths)
        code, out = await self._call("sh", f"{line}; exit 1", Where(user="0"), 60.0)
        path, _, content = out.text().partition("\n")
        return (path, content) if code == 0 else None

    # -- what is seen -----------------------------------------------------------------------------------------------

    def _effect(self, task: HarborTask) -> Effect:
        """Nothing leaves a container without a network; what goes out of another nobody knows."""
        return Effect.UNKNOWN if task.network and not self.shared.sandboxed else Effect.REVERSIBLE

    def _show(self, text: str, provenance: str) -> Observation:
        """The state is told by the commands so far and what they showed."""
        assert self._task is not None
        fingerprint = digest(self.name, self._task.id, *self._history)
        self._shown = Observation(text, fingerprint, provenance=provenance)
        return self._shown


def _without(out: Bounded, size: int) -> Bounded:
    """An output without its last bytes."""
    tail = len(out.tail) - size
    head = out.head if tail >= 0 else out.head[:tail]
    return Bounded(out.limit, head, out.tail[: max(tail, 0)], out.size - size)


async def _until_healthy(healthy: Callable[[], Awaitable[bool]], check: Healthcheck) -> None:
    """Tries until it is ready. Failures within the start period do not count. Raises EnvFault after all retries."""
    loop = asyncio.get_running_loop()
    begun, failed = loop.time(), 0
    while not await healthy():
        starting = loop.time() - begun < check.start_period_sec
        failed += not starting
        if failed >= max(check.retries, 1):
            raise EnvFault(f"the environment is not ready: its healthcheck failed {failed} times")
        await asyncio.sleep(check.start_interval_sec if starting else check.interval_sec)
