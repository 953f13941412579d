"""Least-cost plans in AND/OR graphs that may hold circles: goals, steps that need other goals, budgets of questions.

    found = await plan("soup", solver, routes=3)

A goal is reached by one of its steps; a step costs something and needs all of its parts. Parts are goals too, shared
where their names are equal, and a goal may need, steps below, itself: such a circle reaches nothing. The solver is
asked for the steps of a goal at most once, and only of goals that the most promising plan needs: AO* (Nilsson 1980) on
graphs with circles, as LAO* does it (Hansen and Zilberstein 2001). Where an answer raises what a goal costs at least,
only the goals that lean on it are computed anew, in the order of Knuth's generalisation of Dijkstra's algorithm (1977;
the repair after Ramalingam and Reps 1996), so that nothing leans on itself.

A plan costs what its steps cost, each counted as often as it is needed; `Route.shared` counts each once: intermediates
that are made once for all. Several routes come in order of cost, each exact: the best that differs from all before it
(Lawler 1972). Everything gives other tasks their turn every few milliseconds.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from treewright.envs.errors import TreewrightError
from treewright.envs.waiting import together

__all__ = ["Found", "Route", "Step", "plan"]

TURN = 0.005  # seconds after which other tasks get their turn
OFTEN = 128  # goals between two looks at the clock


@dataclass(frozen=True, slots=True)
class Step:
    """One way to reach a goal: what it costs and the goals it needs, none if it is there at once."""

    parts: tuple[str, ...] = ()
    cost: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        if not self.cost >= 0 or math.isinf(self.cost):
            raise TreewrightError(f"step {self.name or self.parts} costs {self.cost}; a cost is a number from 0 on")


Solver = Callable[[str], Awaitable[Sequence[Step]] | Sequence[Step]]
"""The steps of a goal, at once or to be awaited."""


@dataclass(frozen=True, slots=True)
class Route:
    """A whole plan: the step taken for each goal, from the targets down, and its cost.

    shared  what it costs where every goal is made once, however often it is needed
    """

    cost: float
    shared: float
    steps: Mapping[str, Step]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gave.

    routes  in order of cost; empty where there is none or the budget ran out before one was complete
    bound   no plan costs less; infinite where no plan exists
    asked   goals that the solver was asked for, in order;  known  their steps
    """

    routes: tuple[Route, ...]
    bound: float
    asked: tuple[str, ...]
    known: Mapping[str, Sequence[Step]] = field(repr=False)

    @property
    def proved(self) -> bool:
        """The first route costs no more than any other plan, known or not."""
        return bool(self.routes) and self.routes[0].cost <= self.bound + 1e-9 * max(1.0, abs(self.bound))


async def plan(
    targets: str | Sequence[str],
    solver: Solver,
    *,
    estimate: Callable[[str], float] = lambda goal: 0.0,
    budget: int = 1000,
    routes: int = 1,
    at_once: int = 8,
) -> Found:
    """The cheapest plans that reach all targets, asking the solver for at most `budget` distinct goals.

    estimate  what a goal that was not asked yet costs at least; plans are the best ones if it is never too high
    routes    how many plans, the cheapest first
    at_once   goals that the solver is asked for side by side. With more than 1 it is asked for all that the cheapest
              plan still needs, with 1 for one of them, and then the cheapest plan is looked up anew: the fewest
    Raises TreewrightError for no target, a budget or numbers below 1, and an estimate below 0.
    """
    wanted = (targets,) if isinstance(targets, str) else tuple(dict.fromkeys(targets))
    if not wanted or min(budget, routes, at_once) < 1:
        raise TreewrightError(
            f"a plan needs a target, and budget = {budget}, routes = {routes}, at_once = {at_once} of at least 1"
        )
    graph = _Graph(wanted, estimate)
    asking = _Asking(graph, solver, budget, at_once)
    await _search(graph, asking)
    bound = graph.value[0]
    found = await _ranked(graph, asking, routes)
    return Found(tuple(found), bound, tuple(asking.order), {graph.names[g]: graph.steps[g] for g in asking.ids})


class _Graph:
    """Goals by number, 0 the targets together. `value` is what each costs at least, `best` the step that says so."""

    def __init__(self, wanted: Sequence[str], estimate: Callable[[str], float]) -> None:
        self.estimate = estimate
        self.names: list[str] = [""]
        self.number: dict[str, int] = {}
        self.steps: dict[int, Sequence[Step]] = {}  # of the goals that were asked
        self.ways: dict[int, list[tuple[float, tuple[int, ...]]]] = {}  # their costs and parts
        self.users: list[list[tuple[int, int]]] = [[]]  # (goal, way) that need this one
        self.low: list[float] = [0.0]  # the estimates
        self.value: list[float] = [0.0]
        self.best: list[int] = [-1]  # −1: not asked, or no way is known
        self.turn = time.monotonic() + TURN
        self.add(0, [Step(tuple(wanted))])

    def _new(self, name: str) -> int:
        low = self.estimate(name)
        if not low >= 0:
            raise TreewrightError(f"the estimate of goal {name!r} is {low}; it must be at least 0")
        number = self.number[name] = len(self.names)
        self.names.append(name)
        self.users.append([])
        self.low.append(low)
        self.value.append(low)
        self.best.append(-1)
        return number

    def add(self, goal: int, steps: Sequence[Step]) -> bool:
        """What the solver said of a goal. True if its value and its support are right as they stand.

        They are where the best way leans on goals alone that nobody knew before, and costs what was thought.
        """
        before, number, value = len(self.names), self.number, self.value
        self.steps[goal], settled = tuple(steps), False
        ways = self.ways[goal] = []
        for way, step in enumerate(steps):
            parts = tuple([number[part] if part in number else self._new(part) for part in step.parts])
            ways.append((step.cost, parts))
            for part in parts if len(parts) < 2 else set(parts):
                self.users[part].append((goal, way))
            if not settled and (not parts or min(parts) >= before):
                cost = step.cost  # summed as `settle` does, to the last bit
                for part in parts:
                    cost += value[part]
                if settled := cost <= value[goal]:
                    self.best[goal] = way
        return settled

    async def breathe(self) -> None:
        if time.monotonic() > self.turn:
            await asyncio.sleep(0)
            self.turn = time.monotonic() + TURN

    async def settle(self, raised: Iterable[int]) -> None:
        """New values of these goals and of all that lean on them; the others stay as they are."""
        value, best, users, every, low = self.value, self.best, self.users, self.ways, self.low
        affected, waiting = set(raised), list(raised)
        while waiting:
            goal = waiting.pop()
            for user, way in users[goal]:
                if best[user] == way and user not in affected:
                    affected.add(user)
                    waiting.append(user)
            if not len(affected) % OFTEN:
                await self.breathe()
        for goal in affected:
            value[goal], best[goal] = math.inf, -1
        heap = []
        for goal in affected:
            for number, (cost, parts) in enumerate(every[goal]):
                for part in parts:
                    cost += value[part]
                if cost < math.inf:
                    heap.append((cost if cost > low[goal] else low[goal], goal, number))
        heapq.heapify(heap)
        popped = 0
        while heap:
            cost, goal, way = heapq.heappop(heap)
            if goal not in affected:
                continue
            affected.discard(goal)
            value[goal], best[goal] = cost, way
            for user, number in users[goal]:
                if user in affected:
                    cost, parts = every[user][number]
                    if affected.isdisjoint(parts):
                        for part in parts:
                            cost += value[part]
                        if cost < math.inf:
                            heapq.heappush(heap, (cost if cost > low[user] else low[user], user, number))
            popped += 1
            if not popped % OFTEN:
                await self.breathe()


class _Asking:
    """The solver, each goal once, within the budget."""

    def __init__(self, graph: _Graph, solver: Solver, budget: int, at_once: int) -> None:
        self.graph, self.solver, self.left, self.at_once = graph, solver, budget, at_once
        self.ids: list[int] = []

    @property
    def order(self) -> list[str]:
        return [self.graph.names[goal] for goal in self.ids]

    async def __call__(self, tips: Sequence[int]) -> list[int]:
        """Asks for these goals, as many as the budget has; those whose values may have changed."""
        some = list(tips[: max(self.left, 0)])
        self.left -= len(some)
        self.ids += some
        changed = []
        for start in range(0, len(some), self.at_once):
            goals = some[start : start + self.at_once]
            names = [self.graph.names[goal] for goal in goals]
            said = [self.solver(name) for name in names]
            waits = [answer for answer in said if isinstance(answer, Awaitable)]
            late = iter(await together(map(_awaited, waits)))
            steps = [next(late) if isinstance(answer, Awaitable) else answer for answer in said]
            changed += [goal for goal, some in zip(goals, steps, strict=True) if not self.graph.add(goal, some)]
            await self.graph.breathe()
        return changed


async def _awaited(answer: Awaitable[Sequence[Step]]) -> Sequence[Step]:
    return await answer


async def _search(graph: _Graph, ask: _Asking) -> None:
    """Asks for what the cheapest plan needs until one is whole, none is left, or the budget is spent."""
    await graph.settle([0])
    while math.isfinite(graph.value[0]) and ask.left > 0:
        if not await _asked_some(graph, ask):
            return


async def _asked_some(graph: _Graph, ask: _Asking) -> bool:
    """One walk down the cheapest plan; False where it is whole. Where answers change no value, the walk goes on."""
    seen, stack, tips, count = {0}, [0], list[int](), 0
    while stack or tips:
        if not stack or (tips and ask.at_once == 1):
            changed = await ask(tips)
            if changed or ask.left <= 0:
                await graph.settle(changed)
                return True
            stack, tips = [*stack, *tips], []
        goal = stack.pop()
        if goal not in graph.ways:
            tips.append(goal)
            continue
        for part in reversed(graph.ways[goal][graph.best[goal]][1]):
            if part not in seen:
                seen.add(part)
                stack.append(part)
        count += 1
        if not count % OFTEN:
            await graph.breathe()
    return False


# -- routes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wish:
    """Plans that take these ways for these goals, and none of those for those."""

    taken: Mapping[int, int]
    barred: Mapping[int, frozenset[int]]


async def _ranked(graph: _Graph, ask: _Asking, count: int) -> list[Route]:
    """The `count` cheapest whole plans; fewer where there are no more, or what more of them need cannot be asked."""
    if count == 1 and math.isfinite(graph.value[0]):
        taken, tips = _followed(graph, dict(enumerate(graph.best)))
        if not tips:
            return [_route(graph, taken)]
    heap: list[tuple[float, int, _Wish, dict[int, int]]] = []
    serial = 0

    async def offer(wish: _Wish) -> None:
        nonlocal serial
        cost, taken = await _cheapest(graph, ask, wish)
        if taken is not None:
            heapq.heappush(heap, (cost, serial, wish, taken))
            serial += 1

    await offer(_Wish({}, {}))
    out: list[Route] = []
    while heap and len(out) < count:
        _, _, wish, taken = heapq.heappop(heap)
        out.append(_route(graph, taken))
        if len(out) == count:
            break
        fixed = dict(wish.taken)
        for goal, way in taken.items():  # from the targets down: each differs from this route at one goal first
            if goal not in wish.taken:
                barred = {**wish.barred, goal: wish.barred.get(goal, frozenset()) | {way}}
                await offer(_Wish(dict(fixed), barred))
                fixed[goal] = way
    return out


def _route(graph: _Graph, taken: Mapping[int, int]) -> Route:
    """The plan that these ways make; targets come first in `taken`, and each goal before what only it needs."""
    costs = _costs(graph, taken)
    steps = {graph.names[g]: graph.steps[g][way] for g, way in taken.items() if g}
    return Route(costs[0], math.fsum(step.cost for step in steps.values()), steps)


def _costs(graph: _Graph, taken: Mapping[int, int]) -> dict[int, float]:
    """What each goal of a plan costs, its steps counted as often as they are needed."""
    cost = dict[int, float]()
    waiting = [0]
    while waiting:
        goal = waiting[-1]
        own, parts = graph.ways[goal][taken[goal]]
        missing = [part for part in parts if part not in cost]
        if missing:
            waiting += missing
        else:
            cost[waiting.pop()] = own + sum([cost[part] for part in parts])
    return cost


async def _cheapest(graph: _Graph, ask: _Asking, wish: _Wish) -> tuple[float, dict[int, int] | None]:
    """The cheapest whole plan under a wish and the way it takes for each of its goals, targets first. Asks for what the
    cheapest one needs; where the budget does not allow it, the cheapest of what is known."""
    while True:
        whole = ask.left <= 0
        value, best = await _from_scratch(graph, wish, whole)
        if math.isinf(value.get(0, math.inf)):
            return math.inf, None
        taken, tips = _followed(graph, best)
        if not tips:
            return value[0], taken
        await graph.settle(await ask(tips[:1] if ask.at_once == 1 else tips))


async def _from_scratch(graph: _Graph, wish: _Wish, whole: bool) -> tuple[dict[int, float], dict[int, int]]:
    """Knuth's algorithm over what is known: value and best way of every goal that can be reached.

    whole  goals that were not asked count as unreachable, in place of their estimates
    """
    left: dict[tuple[int, int], int] = {}
    heap: list[tuple[float, int, int]] = []
    for goal in range(len(graph.names)):
        if not goal % OFTEN:
            await graph.breathe()
        if goal not in graph.ways:
            if not whole:
                heap.append((graph.value[goal], goal, -1))
            continue
        barred = wish.barred.get(goal, frozenset())
        first = {step: way for way, step in reversed([*enumerate(graph.steps[goal])])}  # equal steps are one
        for way in first.values():
            if wish.taken.get(goal, way) == way and way not in barred:
                cost, parts = graph.ways[goal][way]
                left[goal, way] = len(set(parts))
                if not parts:
                    heap.append((cost, goal, way))
    heapq.heapify(heap)
    value, best = dict[int, float](), dict[int, int]()
    while heap:
        cost, goal, way = heapq.heappop(heap)
        if goal in value:
            continue
        value[goal], best[goal] = cost, way
        for user, number in graph.users[goal]:
            if (user, number) in left and user not in value:
                left[user, number] -= 1
                if not left[user, number]:
                    own, parts = graph.ways[user][number]
                    heapq.heappush(heap, (own + sum(value[p] for p in parts), user, number))
        if not len(value) % OFTEN:
            await graph.breathe()
    return value, best


def _followed(graph: _Graph, best: Mapping[int, int]) -> tuple[dict[int, int], list[int]]:
    """The goals that the best plan needs with their ways, targets first, and those of them that were not asked."""
    taken, tips, waiting, seen = dict[int, int](), list[int](), [0], {0}
    for goal in waiting:
        if goal not in graph.ways:
            tips.append(goal)
            continue
        taken[goal] = best[goal]
        for part in graph.ways[goal][best[goal]][1]:
            if part not in seen:
                seen.add(part)
                waiting.append(part)
    return taken, tips
