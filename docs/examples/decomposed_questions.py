"""Questions of `kg` taken apart: every hop is a part that is needed, and every hop may be looked up three times.

    python docs/examples/decomposed_questions.py

A look-up of `kg` is wrong one time in ten, so a chain of three single look-ups is right about .9³ of the time. The
search over ALL-nodes compares plans by confidence: one look-up per hop, or a vote among three.
"""

from __future__ import annotations

import asyncio
import itertools
import re

from treewright.envs.registry import suite
from treewright.envs.types import Action, Task, seed_of
from treewright.search.planning.all_nodes import Answer, Option, Parts, Solution, majority, solve

MORE = ", then "
HOPS = re.compile(r"start (\S+), then (.*)\. who is it \?")


def look_ups(task: Task, votes: int):
    """A solver for one task: a chain becomes a first hop and the rest, a hop is looked up, alone or `votes` times."""
    asked = itertools.count()

    async def solver(goal: str) -> list[Option]:
        again = re.match(r"vote \d+: (.*)", goal)
        start, chain = HOPS.match(again[1] if again else goal).groups()  # type: ignore[union-attr]
        first, *rest = chain.split(MORE)
        if rest:
            return [
                Parts((f"start {start}, then {first}. who is it ?", f"start #1, then {MORE.join(rest)}. who is it ?"))
            ]
        if votes > 1 and not again:
            return [Parts(tuple(f"vote {i + 1}: {goal}" for i in range(votes)), "reduce", majority)]
        env = await world.open()
        await env.reset(task, 0)
        seen = await env.step(
            Action.of("search", entity=start, relation=first), seed_of(task.seed, "look", next(asked))
        )
        return [Answer(seen.observation.text.split()[-1], 1 - task.data["noise"])]

    world = suite("kg")
    return solver


async def answer(task: Task, votes: int) -> Solution:
    return await solve(task.goal, look_ups(task, votes))


def main(tasks: int = 100) -> dict[int, tuple[float, float]]:
    """votes → (share of right answers, goals asked per question), printed and returned."""
    found = {}
    for votes in (1, 3):
        done = [(task, asyncio.run(answer(task, votes))) for task in suite("kg").tasks("test", tasks)]
        right = sum(s.answer is not None and s.answer.text == task.truth["answer"] for task, s in done) / tasks
        found[votes] = (right, sum(s.asked for _, s in done) / tasks)
        print(f"{votes} look-up(s) per hop: {right:.0%} right, {found[votes][1]:.1f} goals asked per question")
    return found


if __name__ == "__main__":
    main()
