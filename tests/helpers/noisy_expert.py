"""Policies that are right about half the time: the suite's expert among plausible other actions."""

from __future__ import annotations

from typing import Any

from not_none import not_none

from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.envs.registry import suite
from treewright.envs.types import Action, Task, Turn

MOVES = [f'move {{"to": "{way}"}}' for way in ("north", "east", "south", "west")]


def noisy(name: str, right: float = 0.5) -> ScriptedPolicy:
    """A policy for `maze` or `kg`."""
    expert = suite(name).oracle

    def choices(task: Task, turns: Any, tools: Any) -> list[Any]:
        best = str(not_none(expert)(task, [Turn(t.action, t.observation) for t in turns], tools))
        others = [text for text in _others(name, task, turns) if text != best]
        return [(best, right), *((text, (1 - right) / len(others)) for text in others)]

    return scripted_choice(choices, name=f"noisy-{name}", version="1")


def _others(name: str, task: Task, turns: Any) -> list[Any]:
    if name == "maze":
        return [*MOVES, "stop {}"]
    last = turns[-1].observation.text.split()[-1] if turns else task.data["start"]
    looks = [str(Action.of("search", entity=last, relation=r)) for r in task.data["relations"]]
    return [*dict.fromkeys(looks), str(Action.of("answer", text=last))]


maze = noisy("maze")
