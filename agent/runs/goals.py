"""Goals in a model's words for paths that an exploration found; the template's words where the model's do not do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from treewright.agent.policies.policy import Writer
from treewright.envs.types import seed_of
from treewright.search.types import PolicyFault

__all__ = ["PROMPT", "fits", "worded"]

PROMPT = """Somebody did this on a web site, step by step:
{steps}
In the end the page {page} showed:
{texts}
Write the goal that this person had, in one sentence of at most 30 words that begins with a verb, as an order to \
somebody who does not know these steps. Name what must be true in the end, with its own words. Write \
that sentence alone."""
LENGTH = (8, 300)  # characters of a goal
TOKENS = 80
_MARK = re.compile(r"^(?:[-*•]|\d+[.)]|goal:)\s*", re.IGNORECASE)
_REF = re.compile(r"\be\d+\b")
_WORD = re.compile(r"\w{3,}")


async def worded(tasks: Sequence[Mapping[str, Any]], writer: Writer, seed: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The tasks, each with the model's goal where it says what is checked, and how many have one.

    A goal that two tasks share tells neither from the other: both keep the template's. So does a task for which the
    model gives no answer.
    """
    written = [await _written(task, writer, seed) for task in tasks]
    counts = Counter(written)
    goals = [goal if goal and counts[goal] == 1 else "" for goal in written]
    out = [{**task, "goal": goal or task["goal"]} for task, goal in zip(tasks, goals, strict=True)]
    return out, sum(map(bool, goals))


async def _written(task: Mapping[str, Any], writer: Writer, seed: int) -> str:
    reward = task["reward"]
    steps = "\n".join(f"- {step}" for step in task["goal"].split("; then "))
    texts = "\n".join(f"- {text}" for text in reward.get("text", ())) or "- (nothing new)"
    asked = PROMPT.format(steps=steps, page=reward.get("url", ""), texts=texts)
    try:
        said = await writer.write(asked, seed_of(seed, asked) & 0x7FFFFFFF, TOKENS)
    except PolicyFault:
        return ""
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    goal = _MARK.sub("", line).strip().strip("\"'“”`").strip()
    return goal if fits(goal, task) else ""


def fits(goal: str, task: Mapping[str, Any]) -> bool:
    """Whether a goal is of a usable length, names no reference of an element, and holds a word of the outcome: of the
    texts and the address that are checked, or of the last step."""
    if not LENGTH[0] <= len(goal) <= LENGTH[1] or _REF.search(goal):
        return False
    reward = task["reward"]
    told = " ".join((*reward.get("text", ()), reward.get("url", ""), task["goal"].split("; then ")[-1]))
    plain = {"the", "and", "open", "link", "button", "html"}
    return bool((_words(goal) & _words(told)) - plain)


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}
