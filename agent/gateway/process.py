"""One run of an agent's command, in a fresh working directory, with the end of everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treewright.envs.errors import EnvFault, TreewrightError

__all__ = ["Nursery", "Run", "begin"]

HERE = Path(__file__).parent
TAIL = 4000  # bytes of the command's outputs that are kept
PATIENCE = 10.0  # seconds for a keeper to end its command
OUTPUTS = ("stdin", "stdout", "stderr")


@dataclass(slots=True, eq=False)
class Run:
    """A running, or ended, command.

    directory  its working directory; removed by `close`
    line       the command is killed when this file descriptor is closed
    end        its exit code; 128 + n where signal n ended it
    """

    directory: Path
    line: int
    end: asyncio.Future[int]
    process: asyncio.subprocess.Process | None = None
    _closed: bool = field(default=False)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.end.result() if self.end.done() and not self.end.cancelled() and not self.end.exception() else None

    async def ended(self) -> int:
        """Waits for the end and gives the exit code."""
        return await asyncio.shield(self.end)

    def text(self, name: str) -> str:
        """The end of what it wrote: 'stdout' or 'stderr'."""
        with contextlib.suppress(OSError), (self.directory.parent / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            return file.read().decode("utf-8", "replace")
        return ""

    async def stop(self) -> None:
        """Kills it and all it started; returns when they are gone."""
        if not self._closed:
            self._closed = True
            os.close(self.line)
        with contextlib.suppress(TreewrightError):
            try:
                await asyncio.wait_for(asyncio.shield(self.end), PATIENCE)
            except TimeoutError:  # the keeper itself hangs: its command dies with it
                if self.process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        self.process.kill()
                    await self.end

    async def close(self) -> None:
        """`stop`, and the working directory is gone."""
        await self.stop()
        await asyncio.to_thread(shutil.rmtree, self.directory.parent, True)


async def begin(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path | None = None,
    stdin: str | None = None,
    nursery: Nursery | None = None,
) -> Run:
    """Starts a command.

    folder   copied into the fresh working directory;  stdin  what it reads there, else nothing
    nursery  forks it, where it is a Python program
    Raises EnvFault where it cannot be started.
    """
    home = Path(tempfile.mkdtemp(prefix="treewright-agent-"))
    directory = home / "work"
    reading, writing = os.pipe()
    try:
        if folder is not None:
            await asyncio.to_thread(shutil.copytree, folder, directory, symlinks=True)
        else:
            directory.mkdir()
        (home / "stdin").write_text(stdin or "", "utf-8")
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context((home / n).open("rb" if n == "stdin" else "wb")) for n in OUTPUTS]
            fds = [*(file.fileno() for file in files), reading]
            if nursery is not None:
                return Run(directory, writing, await nursery.start(command, environment, directory, fds))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(HERE / "keeper.py"), str(reading), *command,
                stdin=fds[0], stdout=fds[1], stderr=fds[2], cwd=directory, env=dict(environment), pass_fds=(reading,),
                start_new_session=True,
            )  # fmt: skip
            return Run(directory, writing, asyncio.ensure_future(process.wait()), process)
    except BaseException as error:
        os.close(writing)
        shutil.rmtree(home, ignore_errors=True)
        if isinstance(error, OSError):
            raise EnvFault(f"the agent could not be started: {error}") from error
        raise
    finally:
        os.close(reading)


class Nursery:
    """Starts Python programs in milliseconds: forks them from a process that has imported `modules`, see nursery.py.

    It is started with the first program and ended by `close`. Only for programs whose modules may be imported before
    their environment is set, and start no threads while they are imported.
    """

    def __init__(self, python: str, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.python, self.modules, self.environment = python, tuple(modules), dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._count = itertools.count()
        self._gate = asyncio.Lock()

    async def start(
        self, command: Sequence[str], environment: Mapping[str, str], directory: Path, fds: Sequence[int]
    ) -> asyncio.Future[int]:
        """Forks the program; its exit code to come. Raises EnvFault where the nursery is gone or cannot begin."""
        async with self._gate:
            if self._process is None or self._process.returncode is not None:
                await self._open()
            number, (module, arguments) = next(self._count), _program(command)
            job = {
                "id": number, "folder": str(directory), "environment": dict(environment), "arguments": arguments,
                "module": module,
            }  # fmt: skip
            path = directory.parent / "job"
            path.write_text(json.dumps(job), "utf-8")
            end = self._ends[number] = asyncio.get_running_loop().create_future()
            assert self._socket is not None
            await asyncio.to_thread(socket.send_fds, self._socket, [str(path).encode()], list(fds))
            return end

    async def _open(self) -> None:
        await self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        err = tempfile.TemporaryFile()  # noqa: SIM115 closed below; the process has its own
        try:
            self._process = await asyncio.create_subprocess_exec(
                self.python, str(HERE / "nursery.py"), str(theirs.fileno()), *self.modules, pass_fds=(theirs.fileno(),),
                env=self.environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=err,
            )  # fmt: skip
            theirs.close()  # else its end would not be seen here
            self._socket, self._ready = ours, asyncio.get_running_loop().create_future()
            self._listening = asyncio.create_task(self._listen(ours.dup()))
            await self._ready
        except BaseException as error:
            err.seek(0)
            why = err.read().decode("utf-8", "replace").strip().splitlines()
            await self.close()
            if isinstance(error, EnvFault | OSError):
                raise EnvFault(f"worlds.agent.preload: {why[-1] if why else error}") from error
            raise
        finally:
            theirs.close()
            err.close()

    async def _listen(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            while line := await reader.readline():
                told = json.loads(line)
                if "ready" in told:
                    if self._ready is not None and not self._ready.done():
                        self._ready.set_result(None)
                elif (end := self._ends.pop(told["id"], None)) is not None and not end.done():
                    end.set_result(told["code"])
        finally:
            writer.close()
            gone = EnvFault("the process that agents are forked from ended")
            waiting: list[asyncio.Future[Any]] = [*self._ends.values()]
            for future in [*waiting, *([self._ready] if self._ready is not None else [])]:
                if not future.done():
                    future.set_exception(gone)
                    future.exception()  # it is told to whoever waits, and to nobody else
            self._ends.clear()

    async def close(self) -> None:
        """Ends the process; programs that run are killed by their keepers when their sessions close."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        if process is not None:
            try:
                await asyncio.wait_for(process.wait(), PATIENCE)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._listening is not None:
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None


def _program(command: Sequence[str]) -> tuple[str, list[str]]:
    """(module, arguments) of `python -m MODULE …`, or ("", script and arguments)."""
    if command[1] == "-m":
        return command[2], list(command[2:])
    return "", list(command[1:])
