"""Where the processor time of a step of `market` goes: by the processes that take part."""

from __future__ import annotations

import os
from pathlib import Path

from treewright.benchmarks.web_work import market, processes

__all__ = ["kind_of", "where"]

KINDS = ("python", "driver", "browser", "renderer", "network", "other")


async def where(size: int) -> dict[str, float]:
    """Milliseconds of processor of a step, by kind, and their `sum`; `size` tasks as the expert does them."""
    seen: list[dict[int, float]] = []
    kinds: dict[int, str] = {}

    def mark() -> None:
        seen.append(processes())
        kinds.update({pid: kind_of(pid) for pid in seen[-1]})

    steps = int((await market(size, mark))["steps"])
    before, after = seen
    spent = dict.fromkeys(KINDS, 0.0)
    for pid, seconds in after.items():
        spent[kinds[pid]] += 1000 * (seconds - before.get(pid, 0.0)) / steps
    return {**spent, "sum": sum(spent.values())}


def kind_of(pid: int) -> str:
    """What a process does for a step, by its command line; a page's process is a `renderer`."""
    if pid == os.getpid():
        return "python"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()
    except OSError:
        return "other"
    kind = next((word.removeprefix("--type=") for word in words if word.startswith("--type=")), "")
    if kind == "utility":
        return "network" if any("NetworkService" in word for word in words) else "other"
    if kind:
        return kind if kind in KINDS else "other"
    if any(word.startswith("--remote-debugging-pipe") for word in words):
        return "browser"
    if any(word.endswith(("/driver/node", "run-driver")) for word in words):
        return "driver"
    return "other"
