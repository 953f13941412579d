"""Servers of this package that begin in a few hundredths of a second.

A server imports the package `mcp`, which takes most of a second of a processor. So the first session starts a process
that imports it once and forks the servers of all sessions from itself (forking.py). Each is still a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcp.client.stdio import StdioServerParameters, get_default_environment

import treewright
from treewright.envs.tools import forking, relay

__all__ = ["bundled_server"]

SHOWN = 400  # bytes of a server's command line that `ps` shows


def bundled_server(module: str, arguments: Sequence[str]) -> StdioServerParameters:
    """How to start the server that `python -m MODULE ARGUMENT …` is, over stdio; `module` has a function `main()`."""
    package = str(Path(treewright.__file__).parent.parent)
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",
    }
    words = ["-m", module, *arguments]
    if sys.platform == "linux":
        words = ["-I", "-S", relay.__file__, _address(environment), module, *arguments]
    return StdioServerParameters(command=sys.executable, args=words, env=environment)


class _Forks:
    """The process that servers are forked from; it ends with this object, or with the process that made it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        folder = tempfile.mkdtemp(prefix="treewright-forks-")  # nobody else may enter it
        self.owner, self.address = os.getpid(), str(Path(folder, "socket"))
        reading, writing = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.address)
            listener.listen(128)
            fds = (listener.fileno(), reading)
            self.process = subprocess.Popen(
                [sys.executable, "-P", forking.__file__, *map(str, fds), " " * SHOWN], pass_fds=fds, cwd=folder,
                env=get_default_environment() | {**environment}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        os.close(reading)
        self.end = weakref.finalize(self, _end, self.owner, self.process, writing, folder)


def _end(owner: int, process: subprocess.Popen[bytes], lifeline: int, folder: str) -> None:
    os.close(lifeline)
    if owner == os.getpid():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


_forks: dict[str, _Forks] = {}  # by the search path that the servers have
_gate = threading.Lock()


def _address(environment: Mapping[str, str]) -> str:
    """Where relays find the process that forks; it is started where there is none for this process."""
    path = environment["PYTHONPATH"]
    with _gate:
        for key, forks in list(_forks.items()):
            if forks.owner != os.getpid() or forks.process.poll() is not None:  # of a parent, or ended
                del _forks[key]
                forks.end()
        if path not in _forks:
            _forks[path] = _Forks(environment)
        return _forks[path].address
