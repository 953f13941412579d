"""Plants one bug in the package while it is imported: in this process and in every one that it starts.

TREEWRIGHT_PLANTED is the name of a bug of `bugs.py`. Sources on disk stay as they are, and no byte code is written.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from pathlib import Path
from typing import Any

_NAME = os.environ.get("TREEWRIGHT_PLANTED", "")


def _plant() -> None:
    from bugs import BUGS  # type: ignore[import-not-found]

    bug = next(one for one in BUGS if one.name == _NAME)
    whole = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, fullname: str) -> Any:
        path = Path(self.path).resolve()
        if not path.as_posix().endswith("/" + bug.file) or not fullname.startswith("treewright."):
            return whole(self, fullname)
        source = path.read_text("utf-8")
        if source.count(bug.right) != 1:
            raise ImportError(f"planted bug {bug.name!r}: its line is not once in {bug.file}")
        return self.source_to_code(source.replace(bug.right, bug.wrong).encode(), str(path))

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


if _NAME:
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(Path(__file__).parent))
    _plant()
