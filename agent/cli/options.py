"""What the commands share: option types, the configuration they make, running a coroutine, a progress bar."""

from __future__ import annotations

import asyncio
import math
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from treewright.envs.errors import TreewrightError
from treewright.envs.naming import own_place
from treewright.envs.redact import without_secrets

if TYPE_CHECKING:
    from treewright.agent.config import Config

__all__ = [
    "ANEW",
    "TASKS",
    "ConfigFile",
    "CorpusFile",
    "JsonFile",
    "Name",
    "PolicySpec",
    "QuestionFile",
    "RewardName",
    "Sets",
    "Suites",
    "TasksFile",
    "again",
    "bar",
    "console",
    "end_as_asked",
    "go",
    "must_exist",
    "names_a_run",
    "number",
    "read_config",
    "resumable",
    "say",
]

TASKS = 24  # per suite, that `collect` takes by itself

console = Console(emoji=False, markup=False)
"""Every command prints through it: `:fire:` and `[red]` in a name, a task or a path are data and stay what they are."""

Name = Annotated[
    str | None, typer.Option("--name", "-n", help="Name of the run; its files go to runs/NAME. Without it: run.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A TOML file; see [b]treewright config[/].")]
Sets = Annotated[list[str] | None, typer.Option("--set", "-s", help="One value, e.g. --set search.expansions=8.")]
Suites = Annotated[
    str | None, typer.Option(help="Suites, comma separated: kg, stdlib, …, mcp:…, gym:…, or MODULE:CLASS of your own.")
]
CorpusFile = Annotated[
    Path | None, typer.Option("--corpus", help="Own documents: JSONL with id and text, or a folder of texts.")
]
QuestionFile = Annotated[
    Path | None,
    typer.Option("--questions", help="Own questions: JSONL with question and answers, or HotpotQA's and such."),
]
TasksFile = Annotated[
    Path | None,
    typer.Option("--tasks-file", help='Own tasks for the one suite named: JSON lines such as {"id": …, "goal": …}.'),
]
RewardName = Annotated[
    str | None, typer.Option("--reward", help="With --tasks-file: MODULE:FUNCTION of (task, history[, object]).")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures, with what they cost, as JSON.")]
PolicySpec = Annotated[
    str | None,
    typer.Option("--policy", "-p", help="seedling | hf:FOLDER | openai:MODEL@URL | vllm:MODEL@URL | vllm:FOLDER | …"),
]


def read_config(
    name: str | None,
    path: Path | None,
    sets: list[str] | None,
    suites: str | list[str] | None,
    policy: str | None,
    corpus: Path | None = None,
    questions: Path | None = None,
    tasks_file: Path | None = None,
    reward: str | None = None,
    *,
    remember: bool = True,
    **more: Any,
) -> Config:
    """The configuration of a command. `remember`: what the run was begun with counts where nothing else is said.

    more  further values by key, such as store=
    """
    from treewright.agent.config import load_config
    from treewright.envs.spelling import split_suites

    listed = split_suites(suites) if isinstance(suites, str) else suites
    given = {
        "worlds.suites": listed, "worlds.corpus": corpus, "worlds.questions": questions,
        "worlds.tasks_file": tasks_file, "worlds.reward": reward, "policy.spec": policy, "name": name, **more,
    }  # fmt: skip
    return load_config(path, sets or (), {key: value for key, value in given.items() if value is not None}, remember)


def number(param: typer.CallbackParam, value: float | None) -> float | None:
    """The value of an option. Raises TreewrightError for NaN, which every comparison lets through or stops."""
    if value is not None and math.isnan(value):
        raise TreewrightError(f"{param.opts[0]} {value}: that is no number; write one such as 0.5")
    return value


def names_a_run(name: str | None, path: Path | None, sets: list[str] | None) -> bool:
    """A run is meant, so that what it was begun with and its newest checkpoint count."""
    return name is not None or path is not None or any(s.startswith(("name=", "folder=")) for s in sets or ())


def must_exist(cfg: Config) -> None:
    """Raises TreewrightError where the run has no store yet, with what makes one."""
    if "://" not in cfg.store_at and not Path(cfg.store_at).exists():
        raise TreewrightError(f"no store at {cfg.store_at}; type: {again(cfg, 'collect')}")


def again(cfg: Config, command: str) -> str:
    """The line of a further command of the same run, as a shell takes it."""
    words = ["treewright", *command.split(), "--name", shlex.quote(cfg.name)]
    if cfg.folder is not None:
        words += ["--set", shlex.quote(f"folder={cfg.folder}")]
    return " ".join(words)


def say(text: str) -> None:
    """Prints a line as it is: no markup, no colours of its own, no breaks that a shell would trip over."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


_asked: signal.Signals = signal.SIGINT  # what a command that is ending was sent


def end_as_asked() -> None:
    """From now on SIGTERM, which schedulers send, ends a command as Ctrl-C does: sessions are closed, stores flushed.

    Processes that a launcher started as ranks end at once: one that waits for another one would never hear of it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _ended)


def _ended(number: int, _frame: object) -> None:
    global _asked
    _asked = signal.Signals(number)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.raise_signal(signal.SIGINT)
    elif _running and not _running[-1].cancelling():  # begun in the background of a shell: asyncio hears no SIGINT
        _running[-1].get_loop().call_soon_threadsafe(_running[-1].cancel)
    else:
        raise KeyboardInterrupt


_running: list[asyncio.Task[Any]] = []  # what `go` runs


async def _cancelled_by_hand(work: Coroutine[Any, Any, Any]) -> Any:
    """The work; where `_ended` cancels it, it ends as asyncio ends what Ctrl-C cancels."""
    task = asyncio.current_task()
    assert task is not None
    _running.append(task)
    try:
        return await work
    except asyncio.CancelledError:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN or not task.cancelling():
            raise
        raise KeyboardInterrupt from None
    finally:
        _running.remove(task)


@contextmanager
def resumable(kept: str, over: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Ctrl-C says what is kept and the line that goes on, and ends with 130; SIGTERM too, with 143.

    over  True once all is done and told: the command then ends as if nobody had asked, for the same line would begin
          all anew
    """
    try:
        yield
    except KeyboardInterrupt:
        if over():
            return
        say(f"\nstopped: {kept}. Go on with:\n  treewright {shlex.join(map(without_secrets, sys.argv[1:]))}")
        raise typer.Exit(128 + _asked) from None


WHOLE = "what was finished is kept, and nothing is left half written"
STORED = "sessions are closed and everything acknowledged is stored"
ANEW = "nothing is kept of this before its end: the same line begins it anew"


def go(
    work: Callable[[], Coroutine[Any, Any, Any]], kept: str = STORED, over: Callable[[], bool] = lambda: False
) -> Any:
    """Runs a coroutine; Ctrl-C cancels it, which closes sessions and flushes the store, and says how to go on."""
    with resumable(kept, over):
        try:
            return asyncio.run(_cancelled_by_hand(work()))
        except SystemExit as error:  # of a part that somebody brought, in a task that nothing here waits for
            if not (place := own_place(error)):
                raise
            raise TreewrightError(
                f"a part of yours ended the run by SystemExit: {error}{place}; raise another exception there"
            ) from error


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[object], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        job = progress.add_task(what, total=total)
        yield lambda _: progress.update(job, advance=1)
