"""Growth schedules as rules of the engine: `--set search.rule=late_branch`, with `search.options` for their options.

    name            draws and order                                                       trees
    random          open nodes in an order that depends on nothing                        exact
    fan             K by depth                                                            exact
    late_branch     several at the root, one on the way, several late                     exact
    split           K where the evaluator's estimate is high, one elsewhere               exact
    entropy_gated   K where the policy has become less sure after a tool result           exact
    fork_until_n    every path forks in two as long as n allows                           exact
    roulette        best first; unlikely nodes are dropped by a recorded coin             exact
    adaptive        chains, fan or split by success; or what has the least noise for cost exact
    segments        slots fall back to an earlier turn when they end; loops are stopped   inexact
    reexpand        chains first, then further draws at random nodes                      inexact

Exact means: the unbiased estimator may be used once the open nodes are closed. What is inexact says so in its tree.
They count a turn as a segment. What branches within turns is `segmented.py`, for searches with search.segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.envs.types import seed_of
from treewright.search.meter import AXES
from treewright.search.rules import schedules
from treewright.search.rules.adapting import Adapting
from treewright.search.rules.base import Rule, estimate, spell
from treewright.search.rules.growth import random_on_policy
from treewright.search.tree import Node, Tree
from treewright.search.types import NodeStatus

__all__ = [
    "GROWTH",
    "adaptive",
    "at_least_one",
    "entropy_gated",
    "fan",
    "fork_until_n",
    "late_branch",
    "reexpand",
    "roulette",
    "segments",
    "split",
]

ENDED = (NodeStatus.TERMINAL, NodeStatus.TRUNCATED)
REPEATED = "a path that repeated itself was stopped"


def at_least_one(**widths: int) -> None:
    """Raises TreewrightError for a number of draws below 1."""
    for name, width in widths.items():
        if width < 1:
            raise TreewrightError(f"{name} = {width}; a node gets at least one draw")


def _shallow_first(node: Node) -> float:
    return -float(node.depth)


def _by_depth(widths: Sequence[int]) -> Callable[[Node], int]:
    return lambda node: widths[min(node.depth, len(widths) - 1)]


def fan(widths: Sequence[int] = (4, 1, 2), eager: bool | None = None) -> Rule:
    """K by depth: `widths[d]` draws at depth d, the last width below that; shallow nodes first."""
    if not widths or min(widths) < 1:
        raise TreewrightError(f"widths must be at least 1 at every depth, they are {list(widths)}")
    return Rule(
        name=spell("fan", widths=list(widths), eager=eager),
        priority=_shallow_first,
        draws=_by_depth(tuple(widths)),
        eager=eager,
    )


def late_branch(draws: int = 2, root_draws: int = 4, steps: int | None = None, eager: bool | None = None) -> Rule:
    """`root_draws` at the root, single draws on the way, `draws` at the last step: 4, 1, 1, 2 for four steps.

    steps  how many an episode usually takes; None: the task's horizon, which most episodes never reach
    """
    at_least_one(draws=draws, root_draws=root_draws)
    if steps is not None and steps < 1:
        raise TreewrightError(f"steps = {steps}; an episode has at least one")

    def width(node: Node) -> int:
        horizon = steps or max(node.tree.task.horizon, 1)
        return _by_depth(schedules.late_branch(horizon, first=root_draws, last=draws))(node)

    return Rule(
        name=spell("late_branch", draws=draws, root_draws=root_draws, steps=steps, eager=eager),
        priority=_shallow_first,
        draws=width,
        eager=eager,
    )


def split(draws: int = 4, root_draws: int = 4, threshold: float = 0.5, eager: bool | None = None) -> Rule:
    """`draws` at nodes whose estimate is at least `threshold`, one at the others; nothing is dropped."""
    at_least_one(draws=draws, root_draws=root_draws)

    def width(node: Node) -> int:
        return int(schedules.split(estimate(node), draws, threshold=threshold)) if node.depth else root_draws

    return Rule(
        name=spell("split", draws=draws, root_draws=root_draws, threshold=threshold, eager=eager),
        priority=_shallow_first,
        draws=width,
        eager=eager,
    )


def entropy_gated(
    draws: int = 2, root_draws: int = 4, threshold: float = 0.0, usual: float | None = None, eager: bool | None = True
) -> Rule:
    """`draws` where the entropy after a tool result exceeds the usual one by more than `threshold`, else one.

    After ARPO (arXiv 2507.19849). The node's score must be that entropy: use it with search.evaluator=entropy, which
    gives the entropy of the next token's distribution over its largest possible value. It is known before the draws and
    says nothing about which of them come, so trees stay exact. Drafts must be executed to have one: eager by default.

    usual  what to compare with; None: the mean over the turns before it, or over its siblings for a first turn
    """
    at_least_one(draws=draws, root_draws=root_draws)

    def width(node: Node) -> int:
        if node.depth == 0:
            return root_draws
        before = _usual(node) if usual is None else usual
        if math.isnan(node.score) or math.isnan(before):
            return 1
        return int(schedules.entropy_gated(node.score, before, draws, threshold=threshold))

    name = spell("entropy_gated", draws=draws, root_draws=root_draws, threshold=threshold, usual=usual, eager=eager)
    return Rule(name=name, priority=_shallow_first, draws=width, eager=eager)


def _usual(node: Node) -> float:
    tree, up = node.tree, node.tree.parent[node.id]
    known = tree.path(up)[1:] or tree.children[up]
    scores = [tree.score[i] for i in known if not math.isnan(tree.score[i])]
    return math.fsum(scores) / len(scores) if scores else math.nan


def fork_until_n(n: int = 8, eager: bool | None = None, factor: int = 2) -> Rule:
    """Every unfinished path forks in `factor` while finished and running paths number less than n.

    After PORTool (arXiv 2510.26020), which draws both forks of every path and keeps n minus the finished ones. Here K
    is decided before the draws, so that the forks that would be dropped are never made, and the tree stays exact.
    With search.in_flight above 1 pops in flight may pass n by less than that width.
    """
    at_least_one(n=n, factor=factor)

    def width(node: Node) -> int:
        status = node.tree.status
        live = sum(s is NodeStatus.OPEN or s is NodeStatus.DRAFT for s in status)
        done = sum(s in ENDED for s in status)
        return max(1, min(factor, 1 + n - live - done))

    other = {"factor": factor} if factor != 2 else {}  # trees begun before there was a factor have none in their name
    return Rule(
        name=spell("fork_until_n", n=n, eager=eager, **other), priority=_shallow_first, draws=width, eager=eager
    )


def roulette(
    draws: int = 2, root_draws: int = 4, reference: float = 0.5, least: float = 0.1, eager: bool | None = None
) -> Rule:
    """Best first by w·√h; a new open node is kept with probability min(1, h/reference), at least `least`.

    The probability is fixed before the coin and recorded with the node, so that what is dropped is weighted for.
    Measured on small tasks, dropping lost against splitting in every case: use it to bound cost.
    """
    at_least_one(draws=draws, root_draws=root_draws)
    if not (0 < least <= 1 and reference > 0):
        raise TreewrightError(f"need 0 < least <= 1 and reference > 0, got least={least}, reference={reference}")
    name = spell("roulette", draws=draws, root_draws=root_draws, reference=reference, least=least, eager=eager)
    return Rule(
        name=name,
        priority=lambda n: n.mass * math.sqrt(estimate(n)),
        draws=lambda n: draws if n.depth else root_draws,
        eager=eager,
        keep_prob=lambda n: float(schedules.roulette_keep(estimate(n), reference, least=least)),
    )


def adaptive(
    draws: int = 2,
    root_draws: int = 4,
    rates: Mapping[str, float] | None = None,
    unknown: float = 0.1,
    threshold: float = 0.5,
    eager: bool | None = None,
    by: str = "success",
    cost: str = "sampled_tokens",
    steps: int | None = None,
    expand: int = 4,
) -> Rule:
    """Chains where a suite is often solved, a fan where sometimes, a split of what the evaluator likes where rarely.

    rates  running success rate of each suite, in [0, 1]; the loop gives those of its last iteration. `unknown` stands
           for the others. A split's width is one over the success of a step, rate^(1/horizon).
    by     success: as said; noise: each tree is grown by one of the ARMS, chosen before its first draw with chances
           that the loop learns from the noise of earlier trees' gradients for what they cost, by the axis `cost` of the
           meter; all alike outside of a loop. `steps` is late_branch's, `expand` how many pops of best_first branch
    """
    at_least_one(draws=draws, root_draws=root_draws, expand=expand)
    if by not in ("success", "noise"):
        raise TreewrightError(f"by = {by!r}; adaptive goes by 'success' or by 'noise'")
    if cost not in AXES:
        raise TreewrightError(f"cost = {cost!r}; {nearest(cost, AXES)}")
    known = {suite: round(min(1.0, max(0.0, rate)), 3) for suite, rate in sorted((rates or {}).items())}

    def width(node: Node) -> int:
        task = node.tree.task
        rate = known.get(task.suite, unknown)
        if node.depth == 0:
            return root_draws
        schedule = schedules.choose_schedule(rate)
        if schedule == "chains":
            return 1
        if schedule == "fan":
            return 1 if node.depth == 1 else draws
        liked = schedules.split_width(rate ** (1 / max(task.horizon, 1)) if rate else 0.0)
        return int(schedules.split(estimate(node), max(liked, draws), threshold=threshold))

    told = dict(draws=draws, root_draws=root_draws, rates=known, unknown=unknown, threshold=threshold, eager=eager)
    if by == "noise":
        arms = Adapting(known, draws, root_draws, threshold, steps, expand)
        name = spell("adaptive", **told, by=by, cost=cost, steps=steps, expand=expand)
        return Rule(name=name, priority=arms.priority, draws=arms.width, eager=eager)
    name = spell("adaptive", **told)
    return Rule(name=name, priority=lambda n: n.mass * math.sqrt(estimate(n)), draws=width, eager=eager)


def segments(root_draws: int = 4, times: int = 3, eager: bool | None = None) -> Rule:
    """`root_draws` slots of single draws; a slot that has ended restarts from a turn of its path chosen at random.

    After TreePO (arXiv 2508.17445), with a turn as the segment. A path whose last `times` responses are the same is
    stopped. Both make the tree inexact: restarts add draws after others were seen, and a stopped path has no reward.
    Restarts begin when all slots have ended, so give the search enough expansions.
    """
    at_least_one(root_draws=root_draws)
    if times < 2:
        raise TreewrightError(f"times = {times}; a repetition needs at least 2")

    def stop(node: Node) -> str | None:
        said = [node.tree.text[i] for i in node.tree.path(node.id)[1:]]
        return REPEATED if schedules.repeats(said, span=1, times=times) else None

    def again(tree: Tree) -> int | None:
        ended = [i for i in range(1, len(tree)) if tree.status[i] in (*ENDED, NodeStatus.PRUNED)]
        restarts = len(tree.pops) - len(set(tree.pops))
        if restarts >= len(ended):
            return None
        leaf = ended[restarts]
        u = seed_of(tree.seed[leaf], "fallback") / 2.0**63
        return tree.path(leaf)[schedules.fallback_depth(tree.depth[leaf], u)]

    return Rule(
        name=spell("segments", root_draws=root_draws, times=times, eager=eager),
        priority=_shallow_first, draws=_first_then_one(root_draws), eager=eager, stop=stop, again=again,
    )  # fmt: skip


def reexpand(root_draws: int = 4, eager: bool | None = None) -> Rule:
    """`root_draws` chains to their ends, then single draws at random expanded nodes as long as the budget lasts.

    The way of Tree-GRPO (arXiv 2509.21240). Inexact: the new draws share the mass of those that were there. They begin
    when all chains have ended, so give the search enough expansions.
    """
    at_least_one(root_draws=root_draws)

    def again(tree: Tree) -> int | None:
        nodes = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.EXPANDED]
        return nodes[seed_of(tree.header.seed, "again", len(tree.pops)) % len(nodes)] if nodes else None

    name = spell("reexpand", root_draws=root_draws, eager=eager)
    return Rule(name=name, priority=_shallow_first, draws=_first_then_one(root_draws), eager=eager, again=again)


def _first_then_one(root_draws: int) -> Callable[[Node], int]:
    """`root_draws` at the root when it is first expanded, one everywhere else and ever after."""
    return lambda node: root_draws if node.depth == 0 and not node.tree.drawn[node.id] else 1


GROWTH: dict[str, Callable[..., Rule]] = {
    "random": random_on_policy,
    "fan": fan,
    "late_branch": late_branch,
    "split": split,
    "entropy_gated": entropy_gated,
    "fork_until_n": fork_until_n,
    "roulette": roulette,
    "adaptive": adaptive,
    "segments": segments,
    "reexpand": reexpand,
}
