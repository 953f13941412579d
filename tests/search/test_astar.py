"""A* that listens: what its costs are, when it may stop, what it proves, and that its order is optimal."""

from __future__ import annotations

import heapq
import math
import random
from typing import Any

import pytest
from golden_trees import order_of
from not_none import not_none
from walker import Likelihood, Walker

from treewright.envs import Action, Observation, Task, TreewrightError
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.rules import rule
from treewright.search.rules.astar import PathCosts, followed, lcs_row, told_bound
from treewright.search.rules.base import Rule
from treewright.search.rules.by_cost import ByCost, ratio
from treewright.search.rules.plan_memory import Plan, PlanMemory
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Budget, Completion, Draft, Expansion, NodeStatus, Outcome, Spent

PLAN = PlanMemory((Plan("golden", "g", ("look", "take", "go", "done")),))


def world(**scores: Any) -> dict[str, Any]:
    """look, take, go, done in this order is the plan; `done` at once ends it."""
    score = {"look": 0.5, "early": 0.5, "other": 0.5, "take": 0.5, "go": 0.5, "done": 0.5, **scores}

    def row(name: str, say: str | None = None, end: bool = False) -> dict[str, Any]:
        return {"name": name, "say": say or name, "score": score[name], "end": end}

    return {
        "goal": "g",
        "nodes": {
            "root": [row("look"), row("early", "done", True), row("other", "wait")],
            "look": [row("take")],
            "take": [row("go")],
            "go": [row("done", "done", True)],
            "other": [],
        },
    }


def node_of(tree: Tree, name: str) -> int:
    return next(i for i in range(1, len(tree)) if tree.text[i].split()[0] == name)


def test_a_path_of_a_plans_last_step_alone_is_not_free() -> None:
    _, _, tree = order_of(rule("uniform_cost"), world())
    costs = PathCosts(tree, PLAN)
    early, look, done = (node_of(tree, name) for name in ("early", "look", "done"))
    # g1 = 1 match / the beginning of 4 it reaches; g2 = 1 of 3 draws
    assert costs.g(early) == pytest.approx((3 / 4) ** 0.5 * (2 / 3) ** 0.5)
    # h1: one of four matched; h2: one done, three left
    assert costs.h(early) == pytest.approx((3 / 4) ** 0.5 * (3 / 4) ** 0.5)
    assert costs.f(early) > costs.f(look) > costs.f(done) == 0.0


def test_how_far_a_plan_is_followed_by_hand() -> None:
    row = [0.0] * 4
    for step, value in (("b", 1 / 2), ("c", 2 / 3), ("a", 2 / 3)):
        row = lcs_row(row, step, ["a", "b", "c"])
        length = "bca".index(step) + 1
        assert followed(row, length) == pytest.approx(value)


def test_the_evaluators_estimate_joins_step_and_rest_by_trust() -> None:
    _, _, tree = order_of(rule("uniform_cost"), world(early=0.2))
    early = node_of(tree, "early")
    alone = PathCosts(tree, PlanMemory(), trust=1.0, step_trust=1.0)
    assert alone.h(early) == pytest.approx(0.8)
    assert alone.g(early) == pytest.approx(-math.log(0.2))
    both = PathCosts(tree, PLAN, trust=0.5, step_trust=0.25)
    assert both.h(early) == pytest.approx(0.5 * 0.75 + 0.5 * 0.8)
    assert both.g(early) == pytest.approx(0.75 * (0.75 * 2 / 3) ** 0.5 - 0.25 * math.log(0.2))
    tree.score[early] = math.nan
    unjudged = PathCosts(tree, PLAN, trust=0.5, step_trust=0.25)
    assert unjudged.f(early) == PathCosts(tree, PLAN).f(early)
    tree.score[early] = 0.0
    assert PathCosts(tree, PlanMemory(), step_trust=1.0).g(early) == pytest.approx(-math.log(1e-4)), "never infinite"


def test_a_memory_counts_as_far_as_it_knows_such_goals() -> None:
    near = Plan("golden", "fetch the red book", ("look", "take", "go", "done"))
    far = Plan("golden", "pay", ("early",))
    memory = PlanMemory((far, near))
    task = Task("golden", "1", "fetch the blue book")
    # 3 words and 1 pair of neighbours in common, of 5 words and 5 pairs in either
    assert memory.likeness(task) == pytest.approx(4 / 10)
    assert memory.likeness(Task("other", "1", "fetch the red book")) == 0.0, "plans of another suite"
    _, _, tree = order_of(rule("uniform_cost"), world(early=0.2) | {"goal": task.goal})
    early = node_of(tree, "early")
    named = PathCosts(tree, memory, trust=0.8, step_trust=0.8)
    score = rule("astar", memory=memory).priority(tree[early])
    assert score == pytest.approx(-named.f(early)), "1 - 0.4 / 2"
    fixed = rule("astar", memory=memory, trust=0.5).priority(tree[early])
    assert fixed == pytest.approx(-PathCosts(tree, memory, trust=0.5, step_trust=0.5).f(early)) != score


def test_by_the_evaluator_alone_the_path_most_probably_right_is_gone_on_from() -> None:
    """Against products of probabilities over all paths of random trees."""
    rng = random.Random(4)
    for _ in range(30):
        nodes: dict[str, list[dict[str, Any]]] = {"root": []}
        right, waiting = {"root": 1.0}, ["root"]
        while waiting:
            at = waiting.pop(0)
            for _ in range(rng.randrange(1, 4) if len(nodes) < 25 else 0):
                name = f"n{len(right)}"
                e = rng.choice([0.1, 0.3, 0.6, 0.9, 1.0]) * rng.uniform(0.9, 1.0)
                nodes[at].append({"name": name, "say": name, "score": e})
                right[name], nodes[name] = right[at] * e, []
                waiting.append(name)
        order, _, _ = order_of(rule("astar", trust=0, step_trust=1), {"goal": "g", "nodes": nodes})
        open_, want = ["root"], list[str]()
        while open_:
            best = max(open_, key=right.__getitem__)
            open_.remove(best)
            open_ += [row["name"] for row in nodes[best]]
            want.append(best)
        assert order == want


def test_without_memory_it_goes_where_the_evaluator_sends_it() -> None:
    good = world(look=0.9, take=0.9, go=0.9, done=1.0, early=0.1, other=0.3)
    assert order_of(rule("astar"), good)[0][:4] == ["root", "look", "take", "go"]
    deaf = order_of(rule("astar", trust=0.0), good)[0]
    assert deaf.index("other") < deaf.index("take"), "uniform cost goes by depth"


# -- against an independent slow version ----------------------------------------------------------------------------


def random_graph(rng: random.Random, nodes: int) -> dict[int, dict[int, float]]:
    """edges[a] = {b: cost}; h is admissible and often inconsistent: the truth times a random share."""
    edges: dict[int, dict[int, float]] = {a: {} for a in range(nodes)}
    for a in range(nodes):
        for b in rng.sample(range(nodes), min(3, nodes)):
            if a != b:
                edges[a][b] = rng.choice([1.0, 1.0, 2.0, 5.0, 9.0])
    return edges


def distances_to(edges: dict[int, dict[int, float]], goal: int) -> dict[int, float]:
    """Bellman and Ford, by hand."""
    far = {a: math.inf for a in edges}
    far[goal] = 0.0
    for _ in edges:
        for a, below in edges.items():
            far[a] = min([far[a], *(cost + far[b] for b, cost in below.items())])
    return far


def grow(
    edges: Any,
    goal: int,
    h: Any,
    weights: tuple[float, ...] = (1.0,),
    same: bool = True,
    pops: int = 400,
) -> tuple[ByCost, Tree, list[int], list[float]]:
    """Unfolds the graph with ByCost as a search would; (frontier, tree, where each node stands, g, order)."""
    tree = Tree.start(
        TreeHeader(run="g", task=Task("g", "1", "g", horizon=99), attempt=0, seed=1, policy_version="v", settings={},
                   root=Outcome(Observation("0", "0"), NodeStatus.OPEN))
    )  # fmt: skip
    at, g = [0], [0.0]
    front = ByCost(tree, lambda i: g[i], lambda i: h[at[i]], weights, (lambda i: str(at[i])) if same else None)
    front.offer(0)
    while len(tree.pops) < pops and not front.proved() and front.peek() is not None:
        node = front.take()
        below = sorted(edges[at[node]].items())
        drafts = tuple(
            Draft(after=0, slot=k, mult=1, share=1 / len(below), seed=k, completion=Completion(str(b)),
                  action=Action.of("go", to=str(b)),
                  outcome=Outcome(Observation(str(b), str(b)),
                                  NodeStatus.TERMINAL if b == goal else NodeStatus.OPEN))
            for k, (b, _) in enumerate(below)
        )  # fmt: skip
        for b, cost in below:
            at.append(b)
            g.append(g[node] + cost)
        new = tree.apply(
            Expansion(seq=len(tree.pops), node=node, closing=False, drawn=max(len(below), 1), outcome=None,
                      drafts=drafts, spent=Spent(expansions=1))
        )  # fmt: skip
        front.applied(node, new)
        for i in new:
            if tree.status[i] is NodeStatus.OPEN:
                front.offer(i)
    return front, tree, at, g


def test_a_proved_cost_is_the_least_on_random_graphs_with_inconsistent_estimates() -> None:
    rng, reopened, found = random.Random(0), 0, 0
    for _ in range(150):
        edges = random_graph(rng, 9)
        truth = distances_to(edges, 8)
        h = {a: (far if math.isfinite(far) else 50.0) * rng.choice([0.0, 0.3, 1.0]) for a, far in truth.items()}
        front, *_ = grow(edges, 8, h)
        reopened += front.reopened
        if math.isfinite(truth[0]):
            found += 1
            assert front.proved() and front.best() == pytest.approx(truth[0])
        else:
            assert math.isinf(front.best())
    assert found > 50 and reopened > 5, "else the inconsistent ones were not tried"


def test_a_state_is_opened_again_by_hand() -> None:
    """0→1 costs 4, 0→2→1 only 2, but h(2) is too large: 1 is expanded at the higher cost first."""
    edges = {0: {1: 4.0, 2: 1.0}, 1: {3: 5.0}, 2: {1: 1.0}, 3: {4: 1.0}, 4: {}}
    front, tree, at, _ = grow(edges, 4, {0: 0.0, 1: 0.0, 2: 6.0, 3: 0.0, 4: 0.0})
    assert [at[p] for p in tree.pops] == [0, 1, 2, 1, 3] and front.reopened == 1
    assert front.best() == 8.0 and front.proved()


@pytest.mark.parametrize("weight", [1.5, 3.0])
def test_a_weighted_search_keeps_its_promise_and_says_what_it_proved(weight: float) -> None:
    rng = random.Random(3)
    for _ in range(60):
        edges = random_graph(rng, 9)
        truth = distances_to(edges, 8)
        h = {a: (far if math.isfinite(far) else 50.0) * rng.choice([0.5, 1.0]) for a, far in truth.items()}
        front, *_ = grow(edges, 8, h, (weight,))
        if math.isfinite(truth[0]):
            assert front.bound() <= weight and front.best() <= weight * truth[0] + 1e-9
            assert front.best() <= front.bound() * truth[0] + 1e-9, "the bound that is told holds"


def test_anytime_weights_fall_and_end_at_the_best() -> None:
    edges = {0: {1: 1.0, 2: 1.0}, 1: {4: 9.0}, 2: {3: 2.0}, 3: {4: 3.0}, 4: {}}
    h = {0: 5.0, 1: 0.5, 2: 5.0, 3: 3.0, 4: 0.0}
    once, tree, at, _ = grow(edges, 4, h, (3.0,))
    assert once.best() == 10.0 and [at[p] for p in tree.pops] == [0, 1]
    front, tree, at, _ = grow(edges, 4, h, (3.0, 1.0))
    assert front.best() == 6.0 and front.weight == 1.0 and front.proved()


def test_ratios_at_the_edges() -> None:
    assert ratio(0.0, 0.0) == 1.0 and ratio(2.0, 1.0) == 2.0 and ratio(1.0, 2.0) == 1.0
    assert math.isinf(ratio(1.0, 0.0)) and math.isinf(ratio(math.inf, 1.0))


def test_uniform_cost_pops_as_a_plain_heap_does() -> None:
    rng = random.Random(5)
    edges = random_graph(rng, 8)
    _, tree, at, _ = grow(edges, -1, dict.fromkeys(edges, 0.0), same=False, pops=60)
    order: list[Any]
    heap, made, order = [(0.0, 0)], 1, []
    place, cost = [0], [0.0]
    while len(order) < 60:
        _, node = heapq.heappop(heap)
        order.append(place[node])
        for b, step in sorted(edges[place[node]].items()):
            place.append(b)
            cost.append(cost[node] + step)
            heapq.heappush(heap, (cost[-1], made))
            made += 1
    assert [at[p] for p in tree.pops] == order


# -- in the engine --------------------------------------------------------------------------------------------------

WAYS = Walker([(f'move {{"to": "{way}"}}', 0.2) for way in ("north", "east", "south", "west")] + [("stop {}", 0.2)])


async def grown(
    name: str = "astar", width: int = 1, options: dict[str, Any] | None = None, **settings: Any
) -> tuple[Tree, Rule]:
    order = rule(name, draws=8, root_draws=8, **(options or {}))
    return await search(
        SUITE.tasks("train", 1)[0], SUITE, WAYS, rule=order, evaluator=Likelihood(), budget=Budget(expansions=40),
        settings=Settings(in_flight=width, **settings),
    ), order  # fmt: skip


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", ["astar", "uniform_cost"])
async def test_proved_stops_where_no_open_node_is_cheaper(name: str, width: int) -> None:
    tree, order = await grown(name, width, stop="proved")
    assert tree.stopped_by == "proved" and len(tree.pops) < 40
    front: Any = not_none(order.frontier)(tree)  # anew, from the finished tree
    for i in range(len(tree)):
        if tree.status[i] is NodeStatus.OPEN:
            front.offer(i)
    front.applied(0, range(1, len(tree)))
    assert front.best() <= front.least()
    assert tree.chosen is not None and tree.status[tree.chosen] is NodeStatus.TERMINAL


async def test_first_stops_at_an_end_and_budget_goes_on() -> None:
    first, _ = await grown(stop="first")
    whole, _ = await grown()
    assert first.stopped_by == "first" and whole.stopped_by == "expansions" and len(first.pops) < len(whole.pops)
    ended = [first.born[i] for i in first.leaves() if first.status[i] is NodeStatus.TERMINAL]
    assert min(ended) == len(first.pops) - 1


async def test_a_finished_search_tells_its_bound() -> None:
    tree, order = await grown(stop="proved")
    assert "proved" in not_none(order.tells)(tree)
    tree, order = await grown(options={"weight": 4.0}, stop="first")
    assert "A*" in not_none(order.tells)(tree)
    tree.chosen = None
    assert "no end" in told_bound(tree, PathCosts(tree, PlanMemory()))


async def test_stop_proved_is_refused_for_rules_that_prove_nothing() -> None:
    with pytest.raises(TreewrightError, match=r"search.stop=proved is for .*astar"):
        await grown("best_first", stop="proved")
    with pytest.raises(TreewrightError, match=r"settings\.stop"):
        Settings(stop="sometime")


@pytest.mark.parametrize(
    "options", [{"weight": 0.5}, {"weight": []}, {"weight": [1, 2]}, {"trust": 2}, {"step_trust": -1}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TreewrightError):
        rule("astar", **options)
