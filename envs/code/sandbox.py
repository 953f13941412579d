"""Runs untrusted Python in a child process with limits: CPU, memory, time, files, no network, no further processes.

    run = await run_calls("def f(n):\\n    return n + 1", ["f(1)", "f('a')"])
    run.calls == (("value", "2"), ("error", "TypeError: …"))

What holds (Linux on x86_64 or aarch64, kernel 5.13 or newer): setrlimit for CPU seconds, address space, file size and
open files; a wall-clock deadline after which the whole session is killed; Landlock, so that it reads only Python's own
files and writes only in a temporary folder of its own, removed afterwards; seccomp, so that sockets, new processes,
programs, signals to others, mounts and tracing fail with EPERM. Expected results never enter the child.

What is not covered: bugs of the kernel and of CPython; side channels such as timing; the CPU and memory that are
allowed; many small files until the folder's disk is full (each is limited, their number is not); on other systems all
of the fences: there nothing runs unless TREEWRIGHT_UNFENCED_CODE=1 says so. For hostile code use a machine of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from treewright.envs.errors import EnvFault, TreewrightError

__all__ = ["Limits", "Run", "run_calls"]

JAIL = Path(__file__).with_name("jail.py")
UNFENCED = "TREEWRIGHT_UNFENCED_CODE"


@dataclass(frozen=True, slots=True)
class Limits:
    """each: CPU seconds of one call; cpu: of all together; wall: seconds until everything is killed;
    memory: bytes of address space; file: bytes of one written file."""

    each: float = 1.0
    cpu: int = 10
    wall: float = 30.0
    memory: int = 512 << 20
    file: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """load: why the program itself failed, or None; calls: ('value', repr) or ('error', words) for each call asked;
    killed: why the rest is missing, or None."""

    load: str | None
    calls: tuple[tuple[str, str], ...]
    killed: str | None = None


async def run_calls(source: str, calls: Sequence[str], limits: Limits | None = None) -> Run:
    """Executes `source`, then evaluates each expression of `calls` in its namespace, one after the other.

    Raises TreewrightError where the machine cannot fence the program in, EnvFault if no process can be started.
    """
    limits = limits or Limits()
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="treewright-code-")
    job = {
        "source": source, "calls": list(calls), "folder": folder, "unfenced": os.environ.get(UNFENCED) == "1",
        "each": limits.each, "cpu": limits.cpu, "memory": limits.memory, "file": limits.file,
    }  # fmt: skip
    try:
        out, code = await _child(json.dumps(job).encode("utf-8", "replace"), folder, limits.wall)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return _read(out, code, limits)


async def _child(job: bytes, folder: str, wall: float) -> tuple[bytes, int | None]:
    """The child's output and exit code; None where it had to be killed."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-s", "-S", "-P", str(JAIL),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env={"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise EnvFault(f"no process for the program could be started: {error}") from error
    try:
        out, _ = await asyncio.wait_for(process.communicate(job), wall)
        return out, process.returncode
    except TimeoutError:
        return b"", None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _read(out: bytes, code: int | None, limits: Limits) -> Run:
    if code is None:
        return Run(None, (), f"killed after {limits.wall:g} s")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Run(None, (), f"killed after {limits.cpu} s of CPU time, or for its memory")
    try:
        answer = json.loads(out)
        fences, load, calls = answer["fences"], answer["load"], answer["calls"]
    except (ValueError, KeyError, TypeError):
        return Run(None, (), f"ended by itself (exit code {code})")
    missing = [name for name, held in fences.items() if not held]
    if missing and os.environ.get(UNFENCED) != "1":
        raise TreewrightError(
            f"this machine cannot fence in a program's {' and '.join(missing)} (Linux with Landlock and seccomp on "
            f"x86_64 or aarch64 can); set {UNFENCED}=1 to run it with resource limits only"
        )
    return Run(load, tuple((str(kind), str(text)) for kind, text in calls))
