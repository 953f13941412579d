"""The agent of agents/walker.py as a world: what it is asked, how it is run and what a policy may say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from treewright.agent.gateway.agents import agent_suite
from treewright.envs.types import Action, Suite, Task

__all__ = ["PLACES", "TASK", "choices", "go", "say", "walker_suite"]

WALKER = f"{sys.executable} {Path(__file__).parents[1] / 'agent' / 'agents' / 'walker.py'}"
TASK = Task("agent", "walk", "find the inn", horizon=8)
PLACES = ["mill", "lake", "inn"]


def choices(task: Task, turns: Any, tools: Any) -> list[Any]:
    """Knows a little: the right word with probability 0.4 in each turn."""
    at = turns[-1].observation.text.rpartition(" ")[2] if turns else "home"
    right = {"home": 'go {"to": "mill"}', "mill": 'go {"to": "lake"}', "lake": 'go {"to": "inn"}', "inn": "here"}
    wrong = [text for text in ('go {"to": "sea"}', "nowhere", "lost") if text != right.get(at)]
    return [(right.get(at, "here"), 0.4), *((text, 0.2) for text in wrong)]


def walker_suite(**options: Any) -> Suite:
    return agent_suite(WALKER, **{"sandboxed": True, **options})


def go(to: str) -> Action:
    return Action.of("go", to=to)


def say(text: str) -> Action:
    return Action.of("say", text=text)
