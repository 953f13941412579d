"""A rule of your own: which node is expanded next.

    python examples/own_rule.py
    treewright run maze/0 --policy scripted:own_rule:walker --set search.rule=own_rule:deepest \\
        --set search.options.draws=3

A rule is a pure function of a node and its tree. It sees estimates, depths and texts, never a reward; how many draws a
node gets is fixed before its first draw. That keeps trees exact, so that they can be trained on.
"""

from __future__ import annotations

import asyncio

import treewright
from treewright.agent.policies.scripted import scripted_choice
from treewright.search import Budget, Rule, Settings, rule

WAYS = ("north", "east", "south", "west")
walker = scripted_choice([*((f'move {{"to": "{way}"}}', 0.24) for way in WAYS), ("stop {}", 0.04)], name="walker")


def deepest(draws: int = 2) -> Rule:
    """Depth first. The name holds all options: a resume with others is refused."""
    return Rule(name=f"deepest(draws={draws})", priority=lambda node: float(node.depth), draws=lambda node: draws)


async def main() -> None:
    suite = treewright.suite("maze")
    for shown in (deepest(), rule("breadth_first", draws=2)):
        depths = []
        for task in suite.tasks("train", 8):
            tree = await treewright.search(
                task, suite, walker, rule=shown, budget=Budget(expansions=12), settings=Settings(close=True)
            )  # close: open nodes end by one rollout each, which exact trees need
            depths.append(max(tree[i].depth for i in range(len(tree)) if tree.drawn[i] > 1))
        print(f"{shown.name}: {sum(depths) / len(depths):.1f} turns deep on average, exact: {tree.exact}")


if __name__ == "__main__":
    asyncio.run(main())
