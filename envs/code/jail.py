"""The child process that runs untrusted Python: `python -s -S -P jail.py`, one JSON job on stdin, one JSON line out.

It fences itself in before it looks at the job's source: resource limits, then Landlock (files), then seccomp (no
sockets, no new processes, no signals to others). Needs nothing but the standard library. What is fenced is reported
in the answer; the parent refuses to go on where a fence is missing (sandbox.py).
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import functools
import io
import json
import os
import platform
import resource
import signal
import struct
import sys

TYPE_CHECKING = False  # typing itself is slow to import, and this runs for every test
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
DENIED = {
    "x86_64": (
        0xC000003E,
        # socket connect socketpair clone fork vfork execve kill ptrace setsid mount umount2 tkill tgkill keyctl
        (41, 42, 53, 56, 57, 58, 59, 62, 101, 112, 165, 166, 200, 234, 250),
        # unshare setns process_vm_* bpf execveat pidfd_send_signal io_uring_* pidfd_open clone3 rt_*sigqueueinfo
        (272, 308, 310, 311, 321, 322, 424, 425, 426, 427, 434, 435, 129, 297),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 203, 199, 220, 221, 129, 117, 157, 40, 39, 130, 131, 219),
        (97, 268, 270, 271, 280, 281, 424, 425, 426, 427, 434, 435, 138, 240),
    ),
}


def limit(job: dict[str, Any]) -> None:
    """CPU seconds, bytes of memory, bytes of a file, open files; no core dumps."""
    for what, most in [
        (resource.RLIMIT_CPU, job["cpu"]),
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_FSIZE, job["file"]),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ]:
        resource.setrlimit(what, (most, most))


def fence_files(folder: str) -> bool:
    """Landlock: read only what Python itself needs, write only in `folder`. False where the kernel has none."""
    version = LIBC.syscall(444, None, 0, 1)
    if version < 1:
        return False
    every = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1  # rights that this version knows
    attributes = struct.pack("QQ", every, 3 if version >= 4 else 0)
    ruleset = LIBC.syscall(444, attributes, len(attributes) if version >= 4 else 8, 0)
    if ruleset < 0:
        return False
    read = 1 << 2 | 1 << 3  # files and folders
    places = {sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), "/usr/lib", "/lib", "/lib64"}
    for place, rights in [(p, read) for p in places] + [(folder, every & ~1)]:
        with contextlib.suppress(OSError):
            handle = os.open(place, os.O_PATH)
            LIBC.syscall(445, ruleset, 1, struct.pack("=Qi", rights, handle), 0)
            os.close(handle)
    LIBC.prctl(38, 1, 0, 0, 0)  # no new privileges
    done = bool(LIBC.syscall(446, ruleset, 0) == 0)
    os.close(ruleset)
    return done


def fence_calls() -> bool:
    """seccomp: the listed system calls fail with EPERM. False on other machines than those listed."""
    if platform.machine() not in DENIED:
        return False
    arch, *lists = DENIED[platform.machine()]
    numbers = [n for part in lists for n in part]
    deny, kill, allow = 0x00050001, 0x80000000, 0x7FFF0000
    rows = [(0x20, 0, 0, 4), (0x15, 1, 0, arch), (0x06, 0, 0, kill), (0x20, 0, 0, 0)]
    rows.append((0x35, len(numbers) + 1, 0, 0x40000000))  # the x32 numbers, too
    rows += [(0x15, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    rows += [(0x06, 0, 0, allow), (0x06, 0, 0, deny)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    program = struct.pack("HxxxxxxP", len(rows), ctypes.addressof(code))
    LIBC.prctl(38, 1, 0, 0, 0)
    return bool(LIBC.prctl(22, 2, program, 0, 0) == 0)


class TooLong(BaseException):
    """A single call passed its limit; no `except Exception` of the program catches it."""


def alarm(number: int, frame: FrameType | None) -> None:
    raise TooLong


def said(error: BaseException) -> str:
    """The error in one line, with the line of the program where it arose."""
    line, trace = None, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<program>" else line
        trace = trace.tb_next
    line = error.lineno if isinstance(error, SyntaxError) else line
    text = str(error.msg if isinstance(error, SyntaxError) else error)[:160]
    return f"{type(error).__name__}{': ' + text if text else ''}{f' (line {line})' if line else ''}"


def timed(seconds: float, work: Callable[[], Any]) -> list[str]:
    """What `work` gives, as ('value', repr) or ('error', words)."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        value = work()
        return ["value", shown(value)]
    except TooLong:
        return ["error", f"took longer than {seconds:g} s"]
    except MemoryError:
        return ["error", "MemoryError: more memory than allowed"]
    except RecursionError:
        return ["error", "RecursionError: calls itself without end"]
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return ["error", said(error)]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def evaluated(call: str, space: dict[str, Any]) -> Any:
    return eval(compile(call, "<call>", "eval"), space)


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 20_000 else text[:20_000] + "…"


def main() -> None:
    job = json.loads(sys.stdin.read())
    # The answer leaves by a copy of stdout that the program is not told of; what it prints is dropped.
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.chdir(job["folder"])
    sys.stdout = sys.stderr = io.StringIO()
    limit(job)
    fences = {"files": fence_files(job["folder"]), "calls": fence_calls()}
    answer: dict[str, Any] = {"fences": fences, "load": None, "calls": []}
    if all(fences.values()) or job["unfenced"]:
        signal.signal(signal.SIGPROF, alarm)
        sys.setrecursionlimit(2000)
        space = {"__name__": "program", "__builtins__": builtins}
        load = timed(job["each"], lambda: exec(compile(job["source"], "<program>", "exec"), space))
        answer["load"] = load[1] if load[0] == "error" else None
        for call in job["calls"] if load[0] == "value" else ():
            answer["calls"].append(timed(job["each"], functools.partial(evaluated, call, space)))
    out.write(json.dumps(answer))
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
