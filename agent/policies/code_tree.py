"""The roles of CodeTree (Li et al. 2024, arXiv 2411.04329) around one policy: thinker, solver and debugger.

`policy.proposer=codetree`: before the first program the thinker writes strategies, and each draw of that node solves
along another one; where public tests failed, it writes what may be wrong, and each draw repairs along another
reflection. The critic is an evaluator, `search.evaluator=critic:POLICY`, and with the rule `depth_first_critic` decides
whether to go on, to try a sibling, or to go back. Draws are made under other prompts than the tree records and are not
trained on. In other worlds than `code`, where no tests are reported, strategies at the root are all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from treewright.agent.policies.once import Once
from treewright.agent.policies.policy import Policy, Writer
from treewright.agent.policies.prompt_text import read_items
from treewright.agent.policies.wrapped import Wrapped
from treewright.envs.code.world import share_passed
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec, seed_of
from treewright.envs.waiting import together
from treewright.search.types import Completion, Context, Exchange, layers

__all__ = ["CodeTree"]

REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place(Context):
    """The policy's own context at a node, and what is needed to make others."""

    own: Context
    task: Task
    tools: tuple[ToolSpec, ...]
    first: Observation
    turns: tuple[Exchange, ...]


class CodeTree(Wrapped):
    """The proposer. Raises TreewrightError where neither policy nor thinker writes texts.

    thinker     of strategies and reflections, a policy as `--policy` names it; None: the policy itself
    most        lines that it is asked for;  max_tokens  of its answer
    """

    def __init__(self, policy: Policy, thinker: str | None = None, most: int = 4, max_tokens: int = 300) -> None:
        super().__init__(policy)
        if most < 1 or max_tokens < 1:
            raise TreewrightError("codetree: most and max_tokens must be at least 1")
        self.most, self.max_tokens = most, max_tokens
        self._opened: Any = None
        if thinker is not None:
            from treewright.agent.policies.opening import open_policy

            self._opened = open_policy(thinker)
        found = next((p for p in layers(self._opened or policy) if isinstance(p, Writer)), None)
        if found is None:
            raise TreewrightError(
                f"codetree: {thinker or policy.name} writes no texts; set policy.proposer_options.thinker to an hf:, "
                "openai: or vllm: policy"
            )
        self.thinker: Writer = found
        self._thoughts: Once[str, list[str]] = Once(REMEMBERED)

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        own = self.inner.context(task, tools, first, turns, base)
        return _Place(
            keep=own.keep, delta=own.delta, ids=own.ids, messages=own.messages, own=own,
            task=task, tools=tuple(tools), first=first, turns=tuple(turns),
        )  # fmt: skip

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One completion for each seed, in order: draw i goes along thought i modulo their number."""
        if not isinstance(context, _Place):
            raise TreewrightError("this context was not made by this proposer; call its context(...) first")
        asked = _asked(context)
        thoughts = await self._thought(asked, seed_of(context.task.seed, asked)) if asked else []
        if not thoughts:
            return list(await self.inner.draw(context.own, seeds, max_tokens))
        head = "Repair it along this thought" if context.turns else "Solve it along this strategy"
        goals = [_goal(context, f"{head}: {thought}") for thought in thoughts[: len(seeds)]]
        seen = context.turns[-1].observation if context.turns else context.first
        shown = [self.inner.context(replace(context.task, goal=goal), context.tools, seen, (), ()) for goal in goals]
        groups = [list(range(v, len(seeds), len(shown))) for v in range(len(shown))]
        drawn = await together(
            self.inner.draw(c, [seeds[i] for i in g], max_tokens) for c, g in zip(shown, groups, strict=True)
        )
        out = {i: one for group, done in zip(groups, drawn, strict=True) for i, one in zip(group, done, strict=True)}
        return [replace(out[i], trainable=False) for i in range(len(seeds))]

    async def _thought(self, asked: str, seed: int) -> list[str]:
        """What the thinker says, asked once for equal prompts."""
        prompt = f"{asked}\n\nWrite at most {self.most} different ones, one per line, each beginning with '- '.\n"
        return await self._thoughts.get(prompt, lambda: self._written(prompt, seed & 0x7FFFFFFF))

    async def _written(self, prompt: str, seed: int) -> list[str]:
        return read_items(await self.thinker.write(prompt, seed, self.max_tokens))[: self.most]

    async def close(self) -> None:
        await self.inner.close()
        if self._opened is not None:
            await self._opened.close()


def _asked(place: _Place) -> str:
    """What the thinker is asked at a node; '' where there is nothing to think about."""
    goal = f"Task: {place.task.goal}"
    if not place.turns:
        return f"{goal}\n\nWhich strategies could solve it?"
    share = share_passed(place.turns[-1].observation.text)
    if share is None or share >= 1:
        return ""
    return f"{_past(goal, place.turns[-1])}\n\nWhat may be wrong, and how could it be repaired?"


def _goal(place: _Place, thought: str) -> str:
    if not place.turns:
        return f"{place.task.goal}\n\n{thought}"
    return f"{_past(place.task.goal, place.turns[-1])}\n\n{thought}"


def _past(goal: str, turn: Exchange) -> str:
    return f"{goal}\n\n> {turn.response.strip()}\n{turn.observation.text}"
