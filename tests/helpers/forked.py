"""Python programs in processes of their own that begin in a tenth of a second: forked from one that has imported what
takes time to import: other packages, and of this one what most commands need.

What a program finds is what an interpreter would give it: working directory, environment, arguments, search path,
standard files, exit code. What an import costs or brings in is measured elsewhere, by interpreters that are started:
`tests/agent/test_cli_commands.py`, `tests/agent/test_policies_light.py`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

HEAVY = (
    "torch", "sqlalchemy.dialects.sqlite", "numpy", "scipy.optimize", "pydantic",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3.modeling_qwen3", "jsonschema", "rich.progress", "typer",
    "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "torch.distributed.fsdp",
)  # fmt: skip
# Of the package what most commands import; nothing of `agent.cli`: its console looks at the environment.
OURS = (
    "agent.runs.adapting", "agent.runs.collect", "agent.runs.collectors", "agent.runs.evaluate", "agent.runs.recipes",
    "agent.policies.hf", "agent.view.report", "envs.maze", "envs.retrieval.kg", "search.store.upkeep",
    "training.checkpoint", "training.parallel.states", "training.parallel.trainer", "training.step",
)  # fmt: skip
COMMAND = str(Path(sys.executable).parent / "treewright")
_server: list[tuple[subprocess.Popen[bytes], int]] = []  # and the end of the pipe that it lives by
_address: list[str] = []  # of the server; processes that are forked from this one use it as well


class Child:
    """A program that runs: the script `words[0]`, or the text `code`, with its arguments; used as a Popen is.

    `merged`: what it says on stderr is in `stdout`, too. Its process leads a group of its own.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        cwd: str | Path | None,
        env: Mapping[str, str],
        code: str | None = None,
        merged: bool = False,
    ) -> None:
        self._line = _connected()
        self.returncode: int | None = None
        self._kept = tempfile.TemporaryDirectory()
        self.words = [*map(str, words)]
        if code is not None:
            script = Path(self._kept.name, "script.py")
            script.write_text(code)
            self.words = [str(script), *self.words]
        reading, writing = os.pipe()
        with open(os.devnull) as nothing:
            _ask(
                self._line, self._kept.name, self.words, cwd, env, [nothing.fileno(), writing, writing if merged else 2]
            )
        os.close(writing)
        self.stdout = open(reading, encoding="utf-8", errors="replace")  # noqa: SIM115 (closed at the end)
        self.pid = int(_told(self._line))

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.returncode = int(_told(self._line))
            self._line.close()
            self._kept.cleanup()
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        from speed import patient

        if self.returncode is None and not select.select([self._line], [], [], patient(timeout))[0]:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.words, timeout)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float = 120) -> tuple[str, None]:
        """What it says until its end, which this waits for."""
        said = self.stdout.read()
        self.wait(timeout)
        return said, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self.stdout.close()


class Running:
    """A program that was started: its process, and what it has said when it has ended. It leads its own session."""

    def __init__(self, words: Sequence[str], line: socket.socket, pid: int, files: Sequence[IO[bytes]]) -> None:
        self.words, self.pid, self._line, self._files = words, pid, line, files
        self.code: int | None = None

    def send(self, number: int) -> None:
        """A signal, to the process alone. Raises ProcessLookupError when it has ended."""
        os.kill(self.pid, number)

    def alive(self) -> bool:
        """It has not ended."""
        return self.code is None and not select.select([self._line], [], [], 0)[0]

    def said(self) -> str:
        """Its two outputs so far, one after the other."""
        return "".join(_read(file) for file in self._files)

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Its exit code (negative: the signal that it died of) and outputs; see `run` for what is raised."""
        from speed import patient  # lies beside this file, which the process that is forked does not search

        if self.code is None:
            self._line.settimeout(patient(timeout))
            try:
                self.code = int(_told(self._line))
            except TimeoutError:
                os.killpg(self.pid, signal.SIGKILL)
                self._line.settimeout(10)
                _told(self._line)
                raise subprocess.TimeoutExpired([*self.words], timeout) from None
            finally:
                self._line.close()
        return subprocess.CompletedProcess([*self.words], self.code, *(_read(file) for file in self._files))


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def start(words: Sequence[str | Path], cwd: str | Path | None, env: Mapping[str, str]) -> Running:
    """Begins the script `words[0]` and does not wait for it."""
    line, given = _connected(), [*map(str, words)]
    # Not closed here: they go with the object.
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder, open(os.devnull) as nothing:
        _ask(line, folder, given, cwd, env, [nothing.fileno(), out.fileno(), err.fileno()])
        return Running(given, line, int(_told(line)), (out, err))


def run(
    words: Sequence[str | Path], cwd: str | Path | None, env: Mapping[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """The script `words[0]` with its arguments, as `python words…` runs it; a CompletedProcess with its outputs' texts.

    Raises TimeoutExpired after `timeout` seconds of an idle machine; its process group is then gone.
    """
    return start(words, cwd, env).wait(timeout)


def _ask(
    line: socket.socket, folder: str, words: Sequence[str | Path], cwd: str | Path | None, env: Mapping[str, str],
    fds: Sequence[int],
) -> None:  # fmt: skip
    job = {"folder": str(cwd or Path.cwd()), "environment": dict(env), "arguments": [*map(str, words)], "module": ""}
    file = Path(folder, "job")
    file.write_text(json.dumps(job))
    socket.send_fds(line, [str(file).encode()], fds)


def treewright(
    words: Sequence[str | Path], cwd: str | Path | None, env: Mapping[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """The command `treewright` with these words, see `run`."""
    return run([COMMAND, *words], cwd, env, timeout)


def _told(line: socket.socket) -> bytes:
    said = line.recv(64)
    if not said:
        raise RuntimeError("the process that programs are forked from has ended; what it said stands above")
    return said


def begin() -> None:
    """Starts the server, which ends with this process; `run` does so where nobody has."""
    address = f"\0treewright-tests-{os.getpid()}-{secrets.token_hex(8)}"
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        fds = (listener.fileno(), reading)
        words = [sys.executable, "-P", __file__, *map(str, fds)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        _server.append((subprocess.Popen(words, env=env, pass_fds=fds, stdin=subprocess.DEVNULL), writing))
    os.close(reading)
    _address.append(address)


def address() -> str:
    """Of the server, which is started where nobody has; it imports things when a first program is asked for."""
    if not _address:
        begin()
    return _address[0]


def use(address: str) -> None:
    """Of the server that another process has started."""
    _address[:] = [address]


def _connected() -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.connect(address())
    return line


def main() -> None:
    from treewright.agent.cli.lean import leave_out_sklearn

    leave_out_sklearn()  # as the command does
    listener, lifeline = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    watched: list[Any] = [listener, lifeline]
    if lifeline in select.select(watched, [], [])[0]:
        return
    for heavy in HEAVY:
        try:
            importlib.import_module(heavy)
        except ImportError:
            continue  # an extra that is not installed: whoever needs it will say so
    for module in OURS:
        importlib.import_module(f"treewright.{module}")
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("qwen3")  # a table of patterns that loading any model compiles
    gc.freeze()  # what is here already is not visited, and so not copied, by a program's collections
    while lifeline not in select.select(watched, [], [])[0]:
        line = listener.accept()[0]
        if os.fork() == 0:
            listener.close()
            os.close(lifeline)
            serve(line)
            os._exit(0)
        line.close()
        with suppress(ChildProcessError):  # waited for, not ignored: so their processor time counts for whoever asks
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def serve(line: socket.socket) -> None:
    """One program after another, for one process of tests."""
    from treewright.agent.gateway.nursery import become

    inherited = {p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p}
    while True:
        try:
            name, fds, _, _ = socket.recv_fds(line, 4096, 3)
        except ConnectionResetError:  # whoever asked is gone and has not heard how its program ended
            return
        if not name:
            return
        job = json.loads(Path(name.decode()).read_text())
        pid = os.fork()
        if pid == 0:
            line.close()
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            asked = [p for p in job["environment"].get("PYTHONPATH", "").split(os.pathsep) if p]
            sys.path[:] = [*asked, *(p for p in sys.path if p not in inherited)]
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
            for number, standard in enumerate(("stdin", "stdout", "stderr")):  # those of old think of other files
                mode, how = ("r", "strict") if number == 0 else ("w", "backslashreplace" if number == 2 else "strict")
                new: Any = open(number, mode, encoding="utf-8", errors=how, closefd=False)  # noqa: SIM115
                if number == 2:
                    new.reconfigure(line_buffering=True)
                setattr(sys, standard, new)
                setattr(sys, f"__{standard}__", new)
            os._exit(become(job, [0, 1, 2]))
        for fd in fds:
            os.close(fd)
        line.send(str(pid).encode())
        line.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


if __name__ == "__main__":
    main()
