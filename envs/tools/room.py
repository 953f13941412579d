"""One path for a server's folder, whatever session it runs in.

Each session works on a copy of the folder somewhere else. Servers tell their paths, so a policy that reads one in one
session and writes it in another would be refused there. So the folder is mounted at one path in a mount namespace of
the server's own; where that is not allowed, the path is rewritten in what the server is told and says.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcp.client.stdio import StdioServerParameters

from treewright.envs.tools import launch
from treewright.envs.types import digest

__all__ = ["Place", "can_mount", "new_place"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session's folder is, and where its server and its policy see it."""

    folder: Path
    shown: Path
    mounted: bool

    @property
    def told(self) -> str:
        """The path that the server is given."""
        return str(self.shown if self.mounted else self.folder)

    @property
    def rewrite(self) -> tuple[str, str] | None:
        """(path, path as shown) where it has to be exchanged in what the server says and is told."""
        return None if self.mounted else (str(self.folder), str(self.shown))

    def parameters(self, server: StdioServerParameters) -> StdioServerParameters:
        """How to start the server so that it sees the folder at the shown path. Raises OSError."""
        if not self.mounted:
            return server
        cwd = str(server.cwd) if server.cwd is not None else None
        command, args = _launched(self.folder, self.shown, cwd, [server.command, *server.args])
        return server.model_copy(update={"command": command, "args": args, "cwd": None})


def new_place(first: Path) -> Place:
    """A new folder for a session whose first state is `first`; it is seen at the same path by all of them."""
    home = Path(tempfile.gettempdir()) / f"treewright-{os.getuid()}"
    shown = home / f"{first.name}-{digest(str(first.resolve()))[:8]}"
    # The real path: a server that looks up where it is tells this one.
    return Place(Path(tempfile.mkdtemp(prefix="treewright-mcp-")).resolve(), shown, can_mount())


def _launched(folder: Path, shown: Path, cwd: str | None, command: Sequence[str]) -> tuple[str, list[str]]:
    shown.parent.mkdir(mode=0o700, exist_ok=True)
    if shown.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{shown.parent} belongs to somebody else")
    shown.mkdir(mode=0o700, exist_ok=True)
    return sys.executable, ["-I", "-S", launch.__file__, str(folder), str(shown), cwd or "", *command]


@functools.cache
def can_mount() -> bool:
    """May this user mount a folder in a namespace of a child? Tried once, on an empty folder."""
    if not sys.platform.startswith("linux"):
        return False
    with tempfile.TemporaryDirectory(prefix="treewright-mount-") as folder:
        inside, shown = Path(folder, "inside"), Path(folder, "shown")
        inside.mkdir()
        (inside / "seen").touch()
        try:
            program, words = _launched(inside, shown, None, ["test", "-e", str(shown / "seen")])
            return subprocess.run([program, *words], capture_output=True, timeout=30, check=False).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False
