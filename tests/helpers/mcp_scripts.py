"""MCP servers of tests that begin at once: scripts, run in a process forked from one that has imported `mcp`.

`command(script, …)` is what to start in place of `python script …`. The server is a process of its own; what it finds
is what the interpreter would give it, see `treewright/envs/tools/forking.py`.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

__all__ = ["command", "main"]


def command(script: str | Path, *words: str | Path) -> list[str]:
    import treewright
    from treewright.envs.tools import forked, relay

    path = os.pathsep.join([str(Path(treewright.__file__).parent.parent), str(Path(__file__).parent)])
    address = forked._address({"PYTHONPATH": path, "PYTHONSAFEPATH": "1"})
    return [sys.executable, "-I", "-S", relay.__file__, address, Path(__file__).stem, str(script), *map(str, words)]


def main() -> None:
    """Runs the script, in the process that was forked."""
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
