"""Types command lines as a person would: in a terminal, watching what is printed and for how long nothing is."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

SILENCE = float(os.environ.get("TREEWRIGHT_SILENCE", "60"))  # seconds without a word that a person bears
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\r")
NEXT = re.compile(r"next: (treewright .*?)(?:   \(.*\))?\s*$", re.MULTILINE)
GO_ON = re.compile(r"Go on with:\s*(treewright .*?)\s*$", re.MULTILINE)


class Stopped(AssertionError):
    """What would have stopped a newcomer; the message shows the line that was typed and what it printed."""


class Terminal:
    """One empty folder. `type` fails on a traceback, another exit code than the expected, and a silent minute."""

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        here = [str(p) for p in (programs, Path(sys.executable).parent) if p is not None]
        path = os.pathsep.join([*here, os.environ.get("PATH", "")])
        hidden = ("PYTHONPATH", "NO_COLOR", "CI", "PYTEST_CURRENT_TEST")
        self.environment = {k: v for k, v in os.environ.items() if k not in hidden}
        self.environment |= {"PATH": path, "TERM": "xterm", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
        self.typed: set[str] = set()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def type(self, line: str, code: int | Sequence[int] = 0, stop_after: str | None = None) -> str:
        """What the line prints. `stop_after`: Ctrl-C once this text was printed."""
        print(f"  $ {line}", flush=True)
        began = time.monotonic()
        self.typed.add(line)
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        child = subprocess.Popen(
            shlex.split(line), cwd=self.folder, env=self.environment, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore Ctrl-C
        )  # fmt: skip
        os.close(slave)
        try:
            out = self._watch(child, master, line, stop_after)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            os.close(master)
        allowed = (code,) if isinstance(code, int) else tuple(code)
        if "Traceback (most recent call last)" in out:
            raise Stopped(f"a traceback\n$ {line}\n{out}")
        if child.returncode not in allowed:
            raise Stopped(f"exit code {child.returncode}, expected {code}\n$ {line}\n{out}")
        print(f"    {time.monotonic() - began:.0f} s", flush=True)
        return out

    def _watch(self, child: subprocess.Popen[bytes], master: int, line: str, stop_after: str | None) -> str:
        raw = b""
        while True:
            ready, _, _ = select.select([master], [], [], SILENCE)
            if not ready:
                raise Stopped(f"nothing was printed for {SILENCE:.0f} s\n$ {line}\n{_plain(raw)}")
            try:
                more = os.read(master, 65536)
            except OSError as error:  # Linux says so when the last writer has closed the terminal
                if error.errno != errno.EIO:
                    raise
                more = b""
            if not more:
                child.wait(SILENCE)
                return _plain(raw)
            raw += more
            if stop_after is not None and stop_after in _plain(raw):
                os.kill(child.pid, signal.SIGINT)
                stop_after = None

    def follow(self, out: str, most: int = 3) -> str:
        """Types the line after `next:`, and the one that it prints, until there is none or one was typed before."""
        for _ in range(most):
            found = NEXT.search(out)
            if found is None or found[1] in self.typed:
                return out
            out = self.type(found[1])
        return out


def next_line(out: str) -> str:
    """The line after `next:`. Raises Stopped where there is none."""
    found = NEXT.search(out)
    if found is None:
        raise Stopped(f"no `next:` line\n{out}")
    return found[1]


def go_on_line(out: str) -> str:
    """The line that goes on after Ctrl-C. Raises Stopped where there is none."""
    found = GO_ON.search(out)
    if found is None:
        raise Stopped(f"no line to go on with\n{out}")
    return found[1]


def expect(out: str, *patterns: str) -> str:
    """Raises Stopped where a pattern is not in what was printed."""
    for pattern in patterns:
        if re.search(pattern, out) is None:
            raise Stopped(f"expected {pattern!r} in\n{out}")
    return out


def _plain(raw: bytes) -> str:
    return ESCAPES.sub("", raw.decode("utf-8", "replace"))
