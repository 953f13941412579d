"""Forks Python programs from a process that has imported what they need: `python nursery.py FD MODULE …`.

FD is one end of a socket. Each message there names a file with the program's arguments, folder and environment, and
brings four file descriptors: stdin, stdout, stderr and the keeper's line (see keeper.py). The answer is a line of JSON:
{"id": …, "code": …} when the program has ended. The nursery ends when the socket does. Nothing of the package is
imported, so that any interpreter runs it.
"""

import atexit
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from typing import Any


def keeper_module() -> Any:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "keeper.py")
    spec = importlib.util.spec_from_file_location("treewright_keeper", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def become(job: dict[str, Any], standard: list[int]) -> int:
    """Runs the program in this process as the interpreter would; its exit code."""
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = job["arguments"]
    code: object = 0
    try:
        if job["module"]:
            sys.path.insert(0, "")
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter waits for threads
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return (code or 0) & 0xFF if isinstance(code, int) or code is None else 1


def main() -> None:
    here, modules = socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]
    keeper = keeper_module()
    sys.path.pop(0)
    for name in modules:
        importlib.import_module(name)
    keeper.prctl(keeper.DEATH_SIGNAL, signal.SIGKILL)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, int] = {}
    here.sendall(b'{"ready": true}\n')
    while True:
        ready, _, _ = keeper.select.select([here, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                here.sendall(json.dumps({"id": running.pop(pid), "code": keeper.code_of(status)}).encode() + b"\n")
        if here not in ready:
            continue
        message, fds, _, _ = socket.recv_fds(here, 4096, 4)
        if not message:
            return
        with open(message.decode()) as file:
            job = json.load(file)
        pid = os.fork()
        if pid == 0:
            here.close()
            os.setsid()
            signal.set_wakeup_fd(-1)
            *standard, line = fds
            os._exit(keeper.keep(line, functools.partial(become, job, standard)))
        running[pid] = job["id"]
        for fd in fds:
            os.close(fd)


if __name__ == "__main__":
    main()
