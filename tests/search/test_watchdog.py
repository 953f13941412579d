"""No search holds the event loop: beside each of them another task gets its turn again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from walker import Likelihood, Walker
from watchdog import HOLD, Watched, watched

from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.evidence import Evidence
from treewright.search.planning.all_nodes import Answer, Option, Parts, solve
from treewright.search.planning.and_or import Step, plan
from treewright.search.planning.repair import Edge, Hop, Planner
from treewright.search.rules import known_rules, rule
from treewright.search.types import Budget

WAYS = Walker([(f'move {{"to": "{way}"}}', 0.2) for way in ("north", "east", "south", "west")] + [("stop {}", 0.2)])
ODD = "<evidence>" + " " * 40_000 + "<evidence>" * 4_000 + " " * 40_000 + "stop {}"


def fine(seen: Watched) -> bool:
    print(f"turns {seen.turns}, longest {seen.longest:.3f} s of {HOLD}")
    return seen.longest < HOLD


@pytest.mark.parametrize(
    ("name", "stop"),
    [*((name, "budget") for name in sorted(known_rules())), ("astar", "proved"), ("uniform_cost", "proved")],
)
async def test_another_task_gets_its_turn_beside_every_rule(name: str, stop: str) -> None:
    options = {"same_states": True, "weight": [2, 1]} if name == "astar" else {}
    growing = search(
        SUITE.tasks("train", 1)[0], SUITE, WAYS, rule=rule(name, **options), evaluator=Likelihood(),
        budget=Budget(expansions=60), settings=Settings(stop=stop),
    )  # fmt: skip
    tree, seen = await watched(growing)
    assert len(tree) > 1 and fine(seen)


async def test_a_layer_of_many_leaves_is_chosen_from_at_once() -> None:
    """The integer program of ets over some hundred leaves, of which most are alike."""
    await watched(_layer(4))  # scipy is read
    tree, seen = await watched(_layer(150))
    assert len(tree) > 5 and fine(seen)


async def _layer(draws: int) -> Any:
    moves = [f'move {{"to": "{way}", "note": "{i}"}}' for i in range(50) for way in ("north", "east", "x", "y")]
    table = [(move, 1 / len(moves)) for move in moves]
    return await search(
        SUITE.tasks("train", 1)[0], SUITE, Walker(table), rule=rule("ets", draws=draws, root_draws=draws),
        evaluator=Likelihood(), budget=Budget(expansions=4),
    )  # fmt: skip


async def test_evidence_is_read_in_one_pass_whatever_a_policy_wrote() -> None:
    growing = search(
        SUITE.tasks("train", 1)[0], SUITE, Walker([(ODD, 0.9), ("stop {}", 0.1)]), rule=rule("best_first"),
        evaluator=Likelihood(), budget=Budget(expansions=2), settings=Settings(max_tokens=200_000),
        evidence=Evidence(),
    )  # fmt: skip
    tree, seen = await watched(growing)
    assert ODD in tree.text and fine(seen)


# -- planners: their worlds and solvers answer at once, and so give no turn themselves -------------------------------


class Grid:
    """A square of states; the answer is always there at once."""

    steps = 0

    def __init__(self, side: int) -> None:
        self.side = side

    async def start(self) -> Edge:
        return Edge((0, 0), 0.0, ("right", "down"))

    async def look(self, state: Any, action: str, path: Callable[[], Sequence[Hop]]) -> Edge:
        at = (state[0] + (action == "right"), state[1] + (action == "down"))
        return Edge(at if max(at) < self.side else None, 1.0, ("right", "down"))


async def test_a_planner_gives_turns_while_it_grows_and_confirms() -> None:
    planner = Planner(Grid(200))
    await planner.start()
    _, seen = await watched(planner.grow())
    assert len(planner.cost) == 40_000 and fine(seen)
    cost, seen = await watched(planner.confirm((199, 199)))
    assert cost == 398 and fine(seen)


async def test_plans_with_circles_and_their_routes_are_sought_in_turns() -> None:
    def steps(goal: str) -> list[Step]:
        at = int(goal)
        below = [str(2 * at), str(2 * at + 1)]
        return [Step(("1",), 0.1), *([Step((part,), 1.0) for part in below] if at < 500 else [Step((), 1.0)])]

    found, seen = await watched(plan("1", steps, budget=20_000, routes=3))
    assert found.proved and len(found.routes) == 3 and found.routes[0].cost == 9.0 and fine(seen)


async def test_questions_that_need_each_other_are_sought_in_turns() -> None:
    names = [f"g{i}" for i in range(12)]

    async def options(goal: str) -> Sequence[Option]:
        return [Answer("maybe", 0.01), *(Parts((other,)) for other in names if other != goal)]

    found, seen = await watched(solve("g0", options, looks=3000))
    assert found.asked == 12 and fine(seen)
