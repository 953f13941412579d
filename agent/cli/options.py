"""What the commands share: option types, the configuration they make, running a coroutine, a progress bar."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.agent.config import Config

__all__ = [
    "ConfigFile",
    "CorpusFile",
    "Name",
    "PolicySpec",
    "QuestionFile",
    "Sets",
    "Suites",
    "bar",
    "console",
    "go",
    "must_exist",
    "read_config",
]

console = Console()

Name = Annotated[
    str | None, typer.Option("--name", "-n", help="Name of the run; its files go to runs/NAME. Without it: run.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A TOML file; see [b]treewright config[/].")]
Sets = Annotated[list[str] | None, typer.Option("--set", "-s", help="One value, e.g. --set search.expansions=8.")]
Suites = Annotated[str | None, typer.Option(help="Suites, comma separated: kg, stdlib, workbench, market, maze, …")]
CorpusFile = Annotated[
    Path | None, typer.Option("--corpus", help="Own documents: JSONL with id and text, or a folder of texts.")
]
QuestionFile = Annotated[
    Path | None,
    typer.Option("--questions", help="Own questions: JSONL with question and answers, or HotpotQA's and such."),
]
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
) -> Config:
    from treewright.agent.config import load_config

    more = list(sets or [])
    if suites is not None:
        import json

        from treewright.envs.spelling import split_suites

        more.append("worlds.suites=" + json.dumps(split_suites(suites) if isinstance(suites, str) else suites))
    for key, file in (("corpus", corpus), ("questions", questions)):
        if file is not None:
            more.append(f"worlds.{key}={file}")
    if policy is not None:
        more.append(f"policy.spec={policy}")
    if name is not None:
        more.append(f"name={name}")
    return load_config(path, more)


def must_exist(cfg: Config) -> None:
    """Raises TreewrightError where the run has no store yet, with what makes one."""
    if "://" not in cfg.store_at and not Path(cfg.store_at).exists():
        raise TreewrightError(f"no store at {cfg.store_at}; type: treewright collect --name {shlex.quote(cfg.name)}")


def go(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs a coroutine; Ctrl-C cancels it, which closes sessions and flushes the store, and says how to go on."""
    try:
        return asyncio.run(work())
    except KeyboardInterrupt:
        console.print("\nstopped: sessions are closed and everything acknowledged is stored. Go on with:")
        console.print(f"  treewright {shlex.join(sys.argv[1:])}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[object], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        job = progress.add_task(what, total=total)
        yield lambda _: progress.update(job, advance=1)
