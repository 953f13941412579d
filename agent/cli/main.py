"""The command line: `treewright run|collect|train|loop|eval|show|demo|bench`. Heavy packages load when needed."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from treewright import __version__
from treewright.agent.cli.bench import bench
from treewright.agent.cli.collect import collect
from treewright.agent.cli.data import export_command, import_command
from treewright.agent.cli.demo import demo, seedling
from treewright.agent.cli.explore import explore
from treewright.agent.cli.loop import eval_, loop
from treewright.agent.cli.options import console
from treewright.agent.cli.plans import plans_command
from treewright.agent.cli.run import run
from treewright.agent.cli.show import config, show
from treewright.agent.cli.store import compare_command, store_app
from treewright.agent.cli.train import train_app
from treewright.agent.cli.view import report_command, view_command
from treewright.envs.errors import TreewrightError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Tree search with safe backtracking for agents, exact tree datasets, training from tree rollouts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        console.print(f"treewright {__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Tree search with safe backtracking for agents, exact tree datasets, training from tree rollouts."""


app.command()(run)
app.command()(collect)
app.command()(loop)
app.command("eval")(eval_)
app.command()(explore)
app.command()(show)
app.command()(config)
app.command()(demo)
app.command()(seedling)
app.command()(bench)
app.add_typer(train_app, name="train")
app.command("plans")(plans_command)
app.command("export")(export_command)
app.command("import")(import_command)
app.command("view")(view_command)
app.command("report")(report_command)
app.command("compare")(compare_command)
app.add_typer(store_app, name="store")


def main() -> None:
    """Entry point of the console script: errors made for people are shown as one line, without a trace."""
    # Trees are many small objects that stay: by default the collector visits them again and again, a sixth of the time.
    gc.set_threshold(20_000, 20, 20)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no such sign shows another, and nothing fails
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # loading and saving a model need no bar beside ours
    try:
        app()
    except TreewrightError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in DISK or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; give another place, or make room and type the same line again")


DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)


def _fail(why: str) -> NoReturn:
    from rich.text import Text

    # As text, not as markup: a hint such as 'treewright[data]' must stay whole.
    told = Text.assemble(("error: ", "red"), why)
    Console(stderr=True, emoji=False, markup=False).print(told, highlight=False, soft_wrap=True)
    raise SystemExit(2) from None
