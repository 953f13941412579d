"""One call of a command line: with a deadline, with bounded output, and with the end of everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from treewright.envs.errors import EnvFault

__all__ = ["Bounded", "Called", "call"]

BOXED = Path(__file__).with_name("boxed.py")
CHUNK = 1 << 16
ROOM = "/var/tmp"  # images are built there, which may be large
ERRORS = 4000  # bytes of stderr that are kept
PATIENCE = 10.0  # seconds in which a killed command must be gone
KEPT = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|XDG_\w+|\w*_proxy|\w*_PROXY|\w*AUTH_FILE|SSL_\w+|(STORAGE|CONTAINERS|BUILDAH)_\w+"
)
GRACE = 2.0  # seconds in which one that has said all may end by itself


@dataclass(slots=True)
class Bounded:
    """The first and the last `limit` bytes of an output, and how many there were."""

    limit: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    size: int = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self.limit - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        del self.tail[: -self.limit or len(self.tail)]

    @property
    def end(self) -> bytes:
        """The last bytes, at most `limit` of them."""
        return bytes((self.head + self.tail)[-self.limit :]) if self.limit else b""

    def text(self) -> str:
        """All of it, with a line in the middle that says what was left out."""
        left = self.size - len(self.head) - len(self.tail)
        middle = f"\n[… {left} bytes left out …]\n".encode() if left else b""
        return (bytes(self.head) + middle + bytes(self.tail)).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Called:
    """How a call ended.

    code    its exit code; None where it had to be ended: past the deadline, or once `until` was read
    out     what it wrote;  err  the end of what it wrote to stderr;  late  it was ended by the deadline
    """

    code: int | None
    out: Bounded
    err: str
    late: bool = False

    @property
    def why(self) -> str:
        """The last line of what it had to say, for people."""
        lines = (self.err.strip() or self.out.text().strip()).splitlines()
        return lines[-1][:300] if lines else "it said nothing"


async def call(
    words: Sequence[str],
    *,
    deadline: float,
    limit: int = 1 << 20,
    until: re.Pattern[bytes] | None = None,
    boxed: str | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Called:
    """Runs a command until it ends, `until` is found in the last 200 bytes of its output, or the deadline passes.

    deadline  seconds;  limit  bytes of output kept at either end
    boxed     run it in namespaces of its own (boxed.py), with the machine's network ('host') or none ('none')
    environment  variables added to ours;  stdin  what the command reads
    Whatever it started is killed when this returns, where it is boxed; else its process group. A boxed command has a
    TMPDIR of its own, and of our variables only what an engine reads. Raises EnvFault where it cannot be started.
    """
    if boxed is None:
        return await _call(words, deadline, limit, until, None, {**os.environ, **(environment or {})}, stdin)
    place = await asyncio.to_thread(tempfile.mkdtemp, prefix="treewright-box-", dir=ROOM)
    try:
        known = {key: value for key, value in os.environ.items() if KEPT.fullmatch(key)}
        known |= {**(environment or {}), "TMPDIR": place}
        return await _call(words, deadline, limit, until, boxed, known, stdin)
    finally:
        await asyncio.to_thread(shutil.rmtree, place, True)


async def _call(
    words: Sequence[str],
    deadline: float,
    limit: int,
    until: re.Pattern[bytes] | None,
    boxed: str | None,
    environment: Mapping[str, str],
    stdin: bytes,
) -> Called:
    reading, writing = os.pipe() if boxed is not None else (-1, -1)
    inherited = () if boxed is None else (reading,)
    if boxed is not None:
        words = [sys.executable, "-I", "-S", str(BOXED), str(reading), boxed, *words]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=inherited,
            env=dict(environment),
        )
    except OSError as error:
        if boxed is not None:
            os.close(writing)
        raise EnvFault(f"{words[0]} could not be started: {error}") from error
    finally:
        if boxed is not None:
            os.close(reading)
    assert process.stdout is not None and process.stderr is not None
    if process.stdin is not None:
        process.stdin.write(stdin)  # what nobody reads any more is dropped without a word
        process.stdin.close()
    out, err, late = Bounded(limit), Bounded(ERRORS), False
    listening = asyncio.create_task(_read(process.stderr, err, None))
    ended = False
    try:
        async with asyncio.timeout(deadline):
            marked = await _read(process.stdout, out, until)
            if not marked:
                await process.wait()
                ended = True
        if marked:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE)
    except TimeoutError:
        late = True
    finally:
        if boxed is not None:
            os.close(writing)
        await _end(process, patient=boxed is not None)
        listening.cancel() if not ended else await asyncio.wait([listening], timeout=1.0)
        await asyncio.gather(listening, return_exceptions=True)
    return Called(process.returncode if ended else None, out, err.text(), late)


async def _read(stream: asyncio.StreamReader, into: Bounded, until: re.Pattern[bytes] | None) -> bool:
    """Reads to the end, False, or to where `until` was read, True."""
    while data := await stream.read(CHUNK):
        into.add(data)
        if until is not None and until.search(into.end[-200:]):
            return True
    return False


async def _end(process: asyncio.subprocess.Process, patient: bool) -> None:
    """Ends the command; one in a box ends by itself, together with all in it."""
    if patient:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
