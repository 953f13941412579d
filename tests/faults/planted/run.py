"""Plants bugs one at a time and says which tests noticed: `python tests/faults/planted/run.py [NAME …] [--json F]`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE))

from bugs import BUGS, Bug  # type: ignore[import-not-found]  # noqa: E402

PATIENCE = 600.0


def caught(bug: Bug, patience: float = PATIENCE) -> str:
    """The test that failed first with the bug planted, '' where none did.

    Raises RuntimeError where the tests did not run at all, as where the bug's line has changed.
    """
    for tests in bug.tests:
        line = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly",
                "--tb=no", "-rfE", tests]  # fmt: skip
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        own = {**os.environ, "TREEWRIGHT_PLANTED": bug.name, "PYTHONPATH": path}
        done = subprocess.run(line, cwd=ROOT, env=own, capture_output=True, text=True, timeout=patience, check=False)
        if done.returncode not in (0, 1, 5):
            raise RuntimeError(f"{bug.name}: {tests} did not run: {(done.stdout + done.stderr)[-800:]}")
        failed = [row for row in done.stdout.splitlines() if row.startswith(("FAILED ", "ERROR "))]
        if done.returncode == 1 and failed:
            return failed[0].split()[1]
    return ""


def main(words: Sequence[str]) -> int:
    path = words[words.index("--json") + 1] if "--json" in words else None
    names = [word for word in words if not word.startswith("-") and word != path]
    rows, began = [], time.monotonic()
    for bug in [one for one in BUGS if not names or one.name in names]:
        by = caught(bug)
        rows.append({"bug": bug.name, "promise": bug.promise, "file": bug.file, "caught_by": by})
        print(f"{bug.name:32} {by or 'NOT CAUGHT'}", flush=True)
    found = sum(bool(row["caught_by"]) for row in rows)
    print(f"{found} of {len(rows)} planted bugs caught, {time.monotonic() - began:.0f} s")
    if path:
        from treewright.agent.runs.figures import write_result

        figures = {"planted_bugs": {"value": len(rows), "unit": "bugs"},
                   "planted_bugs_caught": {"value": found, "unit": "bugs"}}  # fmt: skip
        write_result(Path(path), {"figures": figures, "bugs": rows})
    return 0 if found == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
