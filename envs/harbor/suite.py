"""Harbor task folders as a suite: `--suites harbor:FOLDER`, one task or a folder of tasks.

    harbor:tasks    harbor:tasks/hello    "harbor:tasks?engine=podman&network=none&snapshots=true"

Task ids are the names of the folders. With sub-folders `train` and `test`, these are the splits; else every third task
by name is 'test' (a single one 'train'), or all are what ?split says.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.envs.harbor.engine import choose_engine
from treewright.envs.harbor.task import HarborTask, read_task, resolved
from treewright.envs.harbor.world import MAX_COMMAND, HarborEnvironment, Shared
from treewright.envs.types import Action, Environment, Suite, Task, ToolSpec, Turn

__all__ = ["Checked", "Options", "check_tasks", "harbor_suite"]

log = logging.getLogger("treewright")

SLACK = 60.0  # seconds that a call may take beside the longest command in it
TESTED = 3  # every so many tasks are held out


class Options(BaseModel):
    """What may follow the folder's name.

    engine     docker, podman or buildah; the first that can be used, where it is not said.  storage  buildah's driver
    network    'none' gives no container a network, whatever the tasks say
    sandboxed  your promise that whatever goes out of a container with a network may be repeated
    snapshots  also go back by committed images
    deadline   seconds of one command;  output  characters that are shown of what it prints
    horizon    most actions of an episode;  split  the split of all tasks
    reward     the reward that counts, where a reward.json holds several
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["docker", "podman", "buildah"] | None = None
    storage: str | None = None
    network: Literal["as-declared", "none"] = "as-declared"
    sandboxed: bool = False
    snapshots: bool = False
    deadline: float = Field(default=30.0, gt=0)
    output: int = Field(default=8000, ge=200)
    horizon: int = Field(default=20, ge=1)
    split: Literal["train", "test"] | None = None
    reward: str = "reward"


def read_options(spec: str) -> tuple[Path, Options]:
    """Folder and options of FOLDER?name=value&…. Raises TreewrightError naming what is wrong."""
    folder, _, told = spec.partition("?")
    given: dict[str, str] = {}
    for part in filter(None, told.split("&")):
        key, equals, value = part.partition("=")
        if key not in Options.model_fields:
            raise TreewrightError(f"harbor:{spec}: no option {key!r}; {nearest(key, Options.model_fields)}")
        if not equals:
            raise TreewrightError(f"harbor:{spec}: {key} has no value; write harbor:FOLDER?{key}=VALUE")
        given[key] = value
    try:
        return Path(folder).expanduser(), Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise TreewrightError(
            f"harbor:{spec}: {'.'.join(map(str, first['loc']))}: {first['msg']}; write harbor:FOLDER?option=value"
        ) from error


def read_tasks(folder: Path, options: Options) -> list[tuple[HarborTask, str]]:
    """The tasks of a folder with their splits, by name. Those that cannot be run are left out, and a warning says why.

    Raises TreewrightError where there is no task, or none that can be run.
    """
    if not folder.is_dir():
        raise TreewrightError(f"harbor: there is no folder {str(folder)!r}; name one, harbor:FOLDER")
    found: list[tuple[Path, str]] = []
    if (folder / "task.toml").is_file():
        found = [(folder, options.split or "train")]
    elif any(map(_tasks_in, halves := [folder / "train", folder / "test"])):
        found = [(path, options.split or half.name) for half in halves for path in _tasks_in(half)]
    else:
        every = enumerate(_tasks_in(folder))
        found = [(path, options.split or ("test" if i % TESTED == TESTED - 1 else "train")) for i, path in every]
    if not found:
        raise TreewrightError(
            f"harbor: neither {str(folder)!r} nor a folder in it has a task.toml; name a folder of tasks"
        )
    if twice := {path.name for path, _ in found if sum(other.name == path.name for other, _ in found) > 1}:
        raise TreewrightError(f"harbor: two tasks are named {min(twice)!r}; names of folders are ids, and must differ")
    out, wrong = [], []
    for path, split in found:
        try:
            out.append((read_task(path, options.network), split))
        except TreewrightError as error:
            wrong.append(str(error))
    if not out:
        raise TreewrightError(f"harbor: no task of {str(folder)!r} can be run: {'. '.join(wrong)}")
    if wrong:
        log.warning("%d Harbor tasks read, %d left out: %s", len(out), len(wrong), ". ".join(wrong))
    for note in (note for task, _ in out for note in task.notes):
        log.warning("%s", note)
    return out


def _tasks_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/task.toml")) if folder.is_dir() else []


def harbor_suite(spec: str) -> Suite:
    """The suite of FOLDER?name=value&…. Raises TreewrightError for what cannot be run here, by name."""
    folder, options = read_options(spec)
    name, read = f"harbor:{spec}", read_tasks(folder, options)
    try:
        engine = choose_engine(options.engine, options.storage)
    except TreewrightError as error:
        ids = ", ".join(task.id for task, _ in read)
        raise TreewrightError(f"harbor: each task needs a container ({ids}): {error}") from error
    shared = Shared(
        engine, {task.id: task for task, _ in read}, options.deadline, options.output, options.snapshots,
        options.sandboxed, options.reward,
    )  # fmt: skip
    made = [
        Task(name, task.id, task.goal, seed=i, split=split, horizon=options.horizon, data={"task": task.id})
        for i, (task, split) in enumerate(read)
    ]

    async def open_session() -> Environment:
        return HarborEnvironment(name, shared)

    def tasks(split: str, count: int) -> Sequence[Task]:
        return [task for task in made if task.split == split][:count]

    def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
        command = solution_of(shared.tasks[str(task.data["task"])])
        done = any(turn.action is not None and turn.action.name == "bash" for turn in history)
        return Action.of("submit") if done else Action.of("bash", command=command)

    longest = max(max(t.file.environment.build_timeout_sec, t.file.verifier.timeout_sec) for t, _ in read)
    return Suite(
        name, tasks, open_session, oracle=oracle, description=f"Harbor tasks of {folder}, by {engine.name}",
        max_tokens=512, sessions=2, close=shared.close, slowest=max(longest, options.deadline) + SLACK,
    )  # fmt: skip


# -- the reference solution -----------------------------------------------------------------------------------------


def solution_of(task: HarborTask) -> str:
    """One command that does what solution/solve.sh does: its text, or, where it is not alone or no shell script, the
    files themselves and then a call. Raises TreewrightError where there is none, or it is too long for one command.
    """
    folder = task.folder / "solution"
    script = folder / "solve.sh"
    if not script.is_file():
        raise TreewrightError(f"{task.id} has no solution/solve.sh; add one, or leave the task out")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    env = resolved(task.file.solution.env)
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in env.items())
    first, _, rest = script.read_text("utf-8", "replace").partition("\n")
    if files == [script] and (not first.startswith("#!") or first.split("/")[-1].split()[-1] in ("sh", "bash")):
        command = exports + (rest if first.startswith("#!") else f"{first}\n{rest}").strip()
    else:
        lines = ["mkdir -p /solution"]
        for path in files:
            place = shlex.quote(f"/solution/{path.relative_to(folder).as_posix()}")
            data = base64.b64encode(path.read_bytes()).decode()
            lines += [f"mkdir -p $(dirname {place}); echo {data} | base64 -d > {place}"]
        command = exports + "\n".join([*lines, "chmod +x /solution/solve.sh", "/solution/solve.sh"])
    if not command or len(command) > MAX_COMMAND:
        raise TreewrightError(
            f"{task.id}: its solution is {len(command)} characters as a command; it must be 1 … {MAX_COMMAND}"
        )
    return command


@dataclass(frozen=True, slots=True)
class Checked:
    """How a task fared: the reward of its solution and of doing nothing; NaN where a fault came of it, told in why."""

    id: str
    solved: float
    idle: float
    why: str = ""

    @property
    def holds(self) -> bool:
        """The solution gets 1, and doing nothing does not."""
        return self.solved == 1.0 and self.idle < 1.0


async def check_tasks(spec: str) -> list[Checked]:
    """Runs the solution of every task of FOLDER?…, and each task without doing anything, as `harbor_suite` would.

    Every command is executed at once: in containers with a network, whatever goes out of them happens.
    """
    suite = harbor_suite(spec)
    assert suite.oracle is not None and suite.close is not None
    out = []
    try:
        for task in (*suite.tasks("train", 1 << 20), *suite.tasks("test", 1 << 20)):
            rewards, why = [], []
            for idle in (False, True):
                env = await suite.open()
                try:
                    first = await env.reset(task, 0)
                    if not idle:
                        await env.step(suite.oracle(task, [Turn(None, first)], ()), 0)
                    rewards.append((await env.step(Action.of("submit"), 0)).reward)
                except TreewrightError as error:
                    rewards.append(float("nan"))
                    why.append(str(error))
                finally:
                    await env.close()
            out.append(Checked(task.id, rewards[0], rewards[1], "; ".join(why)))
    finally:
        await suite.close()
    return out


def main(spec: str) -> int:
    """Prints a line for each task; 1 where one does not hold."""
    found = asyncio.run(check_tasks(spec))
    for one in found:
        said = f" ({one.why})" if one.why else ""
        print(
            f"{'holds' if one.holds else 'FAILS'}  {one.id}: solution {one.solved:g}, nothing done {one.idle:g}{said}"
        )
    return 0 if all(one.holds for one in found) else 1
