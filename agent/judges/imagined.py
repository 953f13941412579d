"""How far an episode has come, by the plan that a model imagines from there on: `search.evaluator=imagined:POLICY`.

ToolChain* (arXiv 2310.13227) asks the model for the steps that are still to come, and takes the length so far over the
length of the whole as what the rule `astar` calls h2. Here it is the score, so that it is kept in the tree, counted as
judge tokens, and there after a resume:

    treewright run office/3 --set search.rule=astar --set search.evaluator=imagined:POLICY \
        --set search.options.step_trust=0
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from treewright.agent.policies.once import Once
from treewright.agent.policies.policy import Writer
from treewright.envs.types import Task, digest, seed_of
from treewright.envs.waiting import together
from treewright.search.types import Candidate, NodeStatus, Score

__all__ = ["Imagined", "steps_left"]

LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*\S")
NOTHING = re.compile(r"\b(nothing|none|done|finished|no more)\b", re.IGNORECASE)
REMEMBERED = 65_536


class Imagined:
    """The evaluator: steps done over steps of the imagined whole, in [0, 1]; 0 for invalid output.

    max_tokens  of an imagined plan, which is what each one is charged, cached ones nothing
    turns, letters  how many of the last turns a prompt shows, and how much of an observation
    """

    def __init__(self, model: Writer, *, max_tokens: int = 160, turns: int = 8, letters: int = 600) -> None:
        self.model, self.max_tokens, self.turns, self.letters = model, max_tokens, turns, letters
        self.asked = 0
        self._known: Once[str, int] = Once(REMEMBERED)

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        return await together(self._one(task, c) for c in candidates)

    async def _one(self, task: Task, candidate: Candidate) -> Score:
        done = len(candidate.turns) + 1
        if candidate.action is None or candidate.error is not None:
            return Score(0.0)
        if candidate.status is NodeStatus.TERMINAL:
            return Score(1.0)
        prompt = self._prompt(task, candidate)
        key = digest(prompt)
        made = key not in self._known
        self.asked += made
        left = await self._known.get(key, lambda: self._imagined(prompt, task))
        return Score(done / (done + left), self.max_tokens if made else 0)

    async def _imagined(self, prompt: str, task: Task) -> int:
        seed = seed_of(task.seed, "imagined") & 0x7FFFFFFF
        return steps_left(await self.model.write(prompt, seed, self.max_tokens))

    def _prompt(self, task: Task, candidate: Candidate) -> str:
        lines = [f"Task: {task.goal}", "", "Done so far:"]
        for turn in candidate.turns[-self.turns :]:
            lines += [f"> {turn.response.strip()}", turn.observation.text[: self.letters]]
        lines.append(f"> {candidate.completion.text.strip()}")
        if candidate.observation is not None:
            lines.append(candidate.observation.text[: self.letters])
        lines += [
            "",
            "Which steps are still to be taken until the task is done? Write one per line, each beginning with '- ', "
            "and nothing else. If the task is done, write: nothing",
        ]
        return "\n".join(lines)


def steps_left(text: str) -> int:
    """Lines that begin with a dash, a bullet or a number; 0 where the text says that nothing is left, and 1 where it
    says neither."""
    lines = [line for line in text.splitlines() if LINE.match(line)]
    if lines:
        return 0 if len(lines) == 1 and NOTHING.fullmatch(lines[0].strip(" -*•.")) else len(lines)
    return 0 if NOTHING.search(text) else 1
