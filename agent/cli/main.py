"""The command line: `treewright run|collect|train|…`. Packages load when they are needed."""

from __future__ import annotations

import errno
import gc
import io
import logging
import os
import sys
import traceback
from types import TracebackType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from treewright import __version__
from treewright.agent.cli.commands import Commands
from treewright.agent.cli.lean import leave_out_sklearn
from treewright.agent.cli.options import end_as_asked
from treewright.envs.errors import TreewrightError
from treewright.envs.redact import without_secrets

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    help="Tree search with safe backtracking for agents, exact tree datasets, training from tree rollouts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"treewright {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Tree search with safe backtracking for agents, exact tree datasets, training from tree rollouts."""


def main() -> None:
    """Entry point of the console script: errors made for people are shown as one line, without a trace."""
    # Trees are many small objects that stay: by default the collector visits them again and again, a sixth of the time.
    gc.set_threshold(20_000, 20, 20)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no such sign shows another, and nothing fails
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # loading and saving a model need no bar beside ours
    leave_out_sklearn()
    end_as_asked()
    _hide_secrets()
    try:
        app()
    except TreewrightError as error:
        _fail(str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK and error.filename is not None:
            _fail(f"{error.filename}: {error.strerror}; give another place, or make room and type the same line again")
        if not _is_full(error):
            raise
        _fail("the disk is full (No space left on device); make room, then type the same line again")


def _hide_secrets() -> None:
    """Secrets stay out of what is logged here, and out of the trace of an error that nobody expected."""
    if logging.lastResort is not None:  # where warnings go as long as nobody asks for them elsewhere
        logging.lastResort.addFilter(_masked)
    sys.excepthook = _trace


def _masked(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = without_secrets("".join(traceback.format_exception(*record.exc_info)))
    return True


def _trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))


DISK = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.ENOENT,
    errno.ENAMETOOLONG,
)  # fmt: skip


def _is_full(error: Exception) -> bool:
    """A write met a full disk. Such errors name no file, and those of other libraries carry the number in words."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "(os error 28)" in str(error)


def _fail(why: str) -> NoReturn:
    from rich.text import Text

    # As text, not as markup: a hint such as 'treewright[data]' must stay whole.
    told = Text.assemble(("error: ", "red"), without_secrets(why))
    Console(stderr=True, emoji=False, markup=False).print(told, highlight=False, soft_wrap=True)
    raise SystemExit(2) from None
