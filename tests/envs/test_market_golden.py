"""The market as the packaged model learned it: its pages, tasks and action formats stay byte for byte what they were.

The stored sample is rewritten by `python tests/envs/test_market_golden.py`, and only when a new model is trained.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs import Turn
from treewright.envs.web.browser import find_chromium
from treewright.envs.web.market import SUITE, open_live

GOLDEN = Path(__file__).parent / "data" / "market_golden.json"


async def sample() -> dict[str, Any]:
    """What the oracle sees on the first eight test tasks, and three wrong steps; then the tasks and the tools."""
    episodes = []
    for open_session in (SUITE.open, open_live):
        env: Any = await open_session()
        for task in SUITE.tasks("test", 8):
            history = [Turn(None, await env.reset(task, 0))]
            shown = [[history[0].observation.text, [tool.name for tool in await env.actions()]]]
            for _ in range(task.horizon):
                result = await env.step(action := not_none(SUITE.oracle)(task, history, env.tools), 0)
                history.append(Turn(action, result.observation))
                tools = [] if result.terminated else [tool.name for tool in await env.actions()]
                shown.append([action.key, result.observation.text, str(result.effect), result.reward, tools])
                if result.terminated:
                    break
            episodes.append({"task": task.id, "sandboxed": env.sandboxed, "shown": shown})
        tools = [tool.to_openai() for tool in env.tools]
        await env.close()
    tasks = [json.loads(json.dumps(asdict(t))) for split in ("train", "test") for t in SUITE.tasks(split, 24)]
    await not_none(SUITE.close)()
    return {"tools": tools, "tasks": tasks, "episodes": episodes}


async def test_market_shows_the_packaged_model_what_it_was_trained_on() -> None:
    if find_chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell")
    found, golden = await sample(), json.loads(GOLDEN.read_text())
    assert found["tools"] == golden["tools"]
    assert found["tasks"] == golden["tasks"]
    for mine, theirs in zip(found["episodes"], golden["episodes"], strict=True):
        assert mine == theirs, mine["task"]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(asyncio.run(sample()), indent=1, ensure_ascii=False) + "\n")
