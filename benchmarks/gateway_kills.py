"""Processes that record an agent are killed at random moments: what was acknowledged is kept, and nothing goes on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treewright.agent.gateway.draws import Draws
from treewright.agent.gateway.process import begin
from treewright.agent.gateway.server import make_app, running
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.figures import write_result
from treewright.envs.types import Task, ToolSpec
from treewright.search.store import TreeStore
from treewright.search.types import Exchange

__all__ = ["held_in", "kills"]

KEY = "tw-kill-key-0123456789"
AGENT = """
import json, os, subprocess, sys, urllib.request
subprocess.Popen(["sleep", "600"], start_new_session=True)
said = [{"role": "user", "content": "go"}]
while True:
    body = json.dumps({"model": "m", "messages": said}).encode()
    head = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, head)) as got:
        message = json.load(got)["choices"][0]["message"]
    with open(sys.argv[1], "a") as log:
        log.write(message["content"] + "\\n")
    said += [message, {"role": "user", "content": "on"}]
"""
MARK = "TREEWRIGHT_KILL_MARK"
EARLY = 0.1  # share of kills at any time after the start; the others come once a call was acknowledged
PATIENCE = 10.0  # seconds in which everything of a killed process must be gone


def _says(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random) -> str:
    return secrets.token_hex(8)


async def _record(folder: Path, mark: str) -> None:
    script = folder / "agent.py"
    script.write_text(AGENT)
    with TreeStore.open(folder / "trees.sqlite") as store:
        async with running(make_app(Draws(ScriptedPolicy(_says), store=store), KEY)) as at:
            base = {"OPENAI_BASE_URL": f"{at}/s/run/v1", "OPENAI_API_KEY": KEY, MARK: mark}
            words = [sys.executable, "-I", "-S", str(script), str(folder / "acknowledged")]
            run = await begin(words, {**os.environ, **base})
            await run.ended()


def kills(count: int, seed: int = 0) -> dict[str, tuple[float, str]]:
    """`count` processes, each killed after a random time: calls lost, processes left, calls that were acknowledged."""
    rng = random.Random(seed)
    lost = orphans = acknowledged = done = 0
    for _ in range(count):
        with tempfile.TemporaryDirectory() as name:
            folder, mark = Path(name), secrets.token_hex(8)
            pid = os.fork()
            if pid == 0:
                try:
                    asyncio.run(_record(folder, mark))
                finally:
                    os._exit(1)
            log = folder / "acknowledged"
            if early := rng.random() < EARLY:  # while server, store and agent are still being started
                time.sleep(rng.uniform(0.0, 0.5))
            until = time.monotonic() + PATIENCE
            while not early and not log.exists() and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.0 if early else rng.expovariate(1 / 0.05))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            orphans += _left(mark)
            done += 1
            if done % 100 == 0:
                print(f"{done} kills: {lost} calls lost, {orphans} processes left", flush=True)
            told = log.read_text().split("\n")[:-1] if log.exists() else []
            acknowledged += len(told)
            if told:
                with TreeStore.open(folder / "trees.sqlite", read_only=True) as store:
                    kept = {text for row in store.trees() for text in store.load(row.tree_id).text}
                lost += len(set(told) - kept)
    return {
        "gateway_lost_calls": (float(lost), "calls"),
        "gateway_orphans": (float(orphans), "processes"),
        "gateway_kills": (float(count), "processes"),
        "gateway_kills_acknowledged": (float(acknowledged), "calls"),
    }


def held_in(
    path: Path, figures: dict[str, tuple[float, str]], agents: dict[str, Any] | None = None, **more: Any
) -> None:
    """Puts figures, and what agents were searched, beside those that the file holds."""
    held = json.loads(path.read_text()) if path.exists() else {}
    rows = {**held.get("agents", {}), **(agents or {})}
    shown = {**held.get("figures", {}), **{name: {"value": v, "unit": u} for name, (v, u) in figures.items()}}
    if any(":" not in name for name in rows):
        gain = min(row["gain"] for name, row in rows.items() if ":" not in name)
        shown["agent_search_gain_min"] = {"value": gain, "unit": "times"}
    write_result(path, {**held, "figures": shown, "agents": rows, **more})


def _left(mark: str) -> int:
    """Processes with the mark in their environment that outlive the patience; they are then killed."""
    until = time.monotonic() + PATIENCE
    while (found := _marked(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)


def _marked(mark: str) -> list[int]:
    out = []
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0") and b"Z" not in _state(path.parent):
                out.append(int(path.parent.name))
        except OSError:
            continue
    return out


def _state(path: Path) -> bytes:
    return (path / "stat").read_bytes().rpartition(b")")[2].split()[0]


if __name__ == "__main__":
    held_in(Path(sys.argv[2]), kills(int(sys.argv[1])))
