"""Walks the ten jobs of a newcomer's first week, each in an empty folder, on the command line alone.

    make firstweek                          python tests/firstweek/walk.py [JOB…]

It fails on any traceback, on any `next:` line that does not work, and on any silent minute (TREEWRIGHT_SILENCE, in
seconds).
What servers the jobs start comes from TREEWRIGHT_SERVERS, or .venv-servers: `uvx` and `npx` are stood in for by what is
installed there, so that the lines of the documents work as they stand, without a network.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from jobs import JOBS, ROOT
from terminal import Stopped, Terminal

SERVERS = Path(os.environ.get("TREEWRIGHT_SERVERS", ROOT / ".venv-servers")).resolve()
UVX = '#!/bin/sh\nname=$1; shift\nexec "{servers}/bin/$name" "$@"\n'
NPX = (
    '#!/bin/sh\n[ "$1" = -y ] && shift\nname=${{1##*/server-}}; shift\n'
    'exec "{servers}/node_modules/.bin/mcp-server-$name" "$@"\n'
)


def programs(folder: Path) -> Path:
    """A folder with `uvx` and `npx`."""
    folder.mkdir()
    for name, text in (("uvx", UVX), ("npx", NPX)):
        (folder / name).write_text(text.format(servers=SERVERS))
        (folder / name).chmod(0o755)
    return folder


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in JOBS]
    if unknown:
        print(f"no job {unknown[0]!r}; there are {', '.join(JOBS)}")
        return 2
    failed = []
    with tempfile.TemporaryDirectory(prefix="firstweek-") as home:
        bin_ = programs(Path(home) / "bin")
        for name in names or list(JOBS):
            print(f"{name}: {(JOBS[name].__doc__ or '').splitlines()[0]}", flush=True)
            began = time.monotonic()
            try:
                JOBS[name](Terminal(Path(home) / name, bin_))
            except Stopped as error:
                failed.append(name)
                print(f"STOPPED in {name}: {error}", flush=True)
            else:
                print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"stopped in {', '.join(failed)}" if failed else "nothing stopped a newcomer")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
