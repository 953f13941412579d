"""Trees rooted at a stored node: its turns are taken again, then the search goes on from there.

The turns above the start become a chain of nodes with single draws and origin stored or demo: they carry mass 1, are
never trained on unless a recipe says so, and leave the tree exact. The world repeats them with the keys it had then;
where it shows something else, the policy's prompt differs from the stored one, and the tree ends in a fault. In a live
world a turn that cannot be undone is not taken again: the node is UNREACHABLE, and the tree ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Effect, Environment, Observation, StepResult, Task, ToolSpec, seed_of
from treewright.search.engine import Keeper, Settings, search
from treewright.search.past import Past
from treewright.search.restore import Pool, refuse_repeat
from treewright.search.rules import Rule, best_first
from treewright.search.segments import Segments, parts_of, segmenting
from treewright.search.tree import Node, Tree
from treewright.search.types import (
    SEGMENT,
    Budget,
    Completion,
    Context,
    Evaluator,
    Exchange,
    Origin,
    PolicyFault,
    Proposer,
)

__all__ = ["Start", "prefix_ids", "prefix_length", "search_from", "start_at"]


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A turn to be taken again: what was said, after which prompt (() = not known), the world's key for it, and what it
    was seen to do."""

    said: Completion
    prompt: tuple[int, ...]
    key: int
    effect: Effect = Effect.READ


@dataclass(frozen=True, slots=True)
class Start:
    """A node of a stored tree to begin at.

    source    (tree id, node);  root_key  the world's key for reset
    mass      of the node in its tree, or of the paths that it stands for
    past      of its tree
    head      the beginning of one more turn, to be gone on from within; None: the start lies between turns
    """

    task: Task
    source: tuple[str, int]
    root_key: int
    turns: tuple[StoredTurn, ...]
    mass: float
    head: StoredTurn | None = None
    past: Past | None = None

    @property
    def given(self) -> tuple[StoredTurn, ...]:
        """The turns, and the beginning of one more."""
        return self.turns if self.head is None else (*self.turns, self.head)

    @property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        """The prefix as token ids, turn by turn: equal for equal prefixes."""
        return tuple(turn.said.token_ids for turn in self.given)


def start_at(tree: Tree, node: int, origin: Origin = Origin.STORED, tokens: int | None = None) -> Start:
    """The place of `node` in `tree`; a segment's lies within its turn.

    tokens  the place behind so many tokens of the turn that `node` belongs to, less than it has
    Raises TreewrightError for a node that an episode cannot go on from, and for a turn without so many tokens.
    """
    path = tree.path(node)
    if tokens is not None or tree.in_turn(node):
        first = parts_of(tree, node)[0]
        whole = start_at(tree, tree.parent[first], origin)
        said = _said(tree, node, origin)
        count = len(said.token_ids) if tokens is None else tokens
        if not 0 < count < len(said.token_ids) + tree.in_turn(node):
            raise TreewrightError(
                f"the turn of node {node} of tree {tree.tree_id} has {len(said.token_ids)} tokens; a start lies behind "
                f"at least one and before the last, not behind {count}"
            )
        said = replace(
            said, text="", token_ids=said.token_ids[:count], logprobs=said.logprobs[:count], finish_reason=SEGMENT
        )
        head = StoredTurn(said, tree.context_ids(tree.parent[first]), 0)
        return replace(whole, source=(tree.tree_id, node), mass=tree.mass[node], head=head)
    if any(tree.observation[i] is None or tree.fault[i] is not None for i in path):
        raise TreewrightError(f"node {node} of tree {tree.tree_id} was not executed; choose another one")
    turns = []
    for i in path[1:]:
        if not tree.in_turn(i):
            prompt = tree.context_ids(tree.parent[parts_of(tree, i)[0]])
            turns.append(StoredTurn(_said(tree, i, origin), prompt, tree.key(i), tree.effect[i]))
    past = tree.header.past
    return Start(tree.task, (tree.tree_id, node), tree.key(0), tuple(turns), tree.mass[node], past=past)


def _said(tree: Tree, node: int, origin: Origin) -> Completion:
    """What the turn of `node` said, from its first segment down to there."""
    parts = parts_of(tree, node)
    # Origin already keeps these tokens out of policy gradients; `trainable` speaks of draws only.
    return Completion(
        tree.text[node],
        tuple(token for i in parts for token in tree.ids[i]),
        tuple(x for i in parts for x in tree.logprobs[i]),
        finish_reason="stop",
        policy_version=tree.header.policy_version,
        trainable=True,
        origin=origin if tree.origin[node] is Origin.POLICY else tree.origin[node],
    )


def prefix_length(tree: Tree) -> int:
    """How many nodes of a tree, in a chain from its root on, were not drawn by its policy."""
    node, length = 0, 0
    while len(tree.children[node]) == 1 and tree.origin[tree.children[node][0]] is not Origin.POLICY:
        node = tree.children[node][0]
        length += 1
    return length


def prefix_ids(tree: Tree) -> tuple[tuple[int, ...], ...]:
    """The token ids of those nodes; () for a tree that begins at the beginning."""
    return tuple(tree.ids[i] for i in range(1, prefix_length(tree) + 1))


async def search_from(
    start: Start,
    open_session: Callable[[], Any],
    policy: Proposer,
    *,
    rule: Rule | None = None,
    evaluator: Evaluator | None = None,
    budget: Budget | None = None,
    settings: Settings | None = None,
    store: Keeper | None = None,
    respond: Callable[[str], Sequence[int]] | None = None,
) -> Tree:
    """`search` from a stored node. The rule sees depth 0 there, and the budget counts from there.

    open_session  opens a session of the task's world, such as `suite.open`
    respond       text to response token ids, for turns without ids (conversations that were imported)
    Raises TreewrightError for rules that need to see the whole tree, and for turns without ids and `respond`.
    """
    rule, budget, settings = rule or best_first(), budget or Budget(expansions=24), settings or Settings()
    height = len(start.given)
    turns = tuple(_with_ids(turn, respond, start) for turn in start.given)
    seeds = [seed_of(seed_of(settings.seed, start.task.suite, start.task.id, settings.attempt), "root")]
    for _ in turns:
        seeds.append(seed_of(seeds[-1], 0))
    taken = {seed_of(seed, "step"): turn for seed, turn in zip(seeds[1:], turns, strict=True)}
    root = (seed_of(seeds[0], "step"), start.root_key)
    spoken = dict(zip(seeds[1:], turns, strict=True))

    async def opened() -> Environment:
        return cast(Environment, _Rekeyed(await open_session(), root, taken))

    pool = Pool(opened)
    try:
        return await search(
            start.task, pool, _Rooted(policy, spoken), rule=_below(rule, height, start.source), evaluator=evaluator,
            budget=_more(budget, height, sum(len(t.said.token_ids) for t in turns), settings.max_tokens),
            settings=settings, store=store, continues=start.source, past=start.past,
        )  # fmt: skip
    finally:
        await pool.close()


def _with_ids(turn: StoredTurn, respond: Callable[[str], Sequence[int]] | None, start: Start) -> StoredTurn:
    if turn.said.token_ids:
        return turn
    if respond is None:
        raise TreewrightError(
            f"a turn of tree {start.source[0]} has no token ids; give `respond`, which encodes text as the policy would"
        )
    return replace(turn, said=replace(turn.said, token_ids=tuple(respond(turn.said.text)), logprobs=()), prompt=())


def _more(budget: Budget, turns: int, tokens: int, max_tokens: int) -> Budget:
    """The budget with room for the prefix, whose tokens are counted when they are 'drawn'."""

    def plus(value: int | None, more: int) -> int | None:
        return None if value is None else value + more

    return replace(
        budget,
        expansions=plus(budget.expansions, turns),
        env_steps=plus(budget.env_steps, turns),
        policy_tokens=plus(budget.policy_tokens, tokens + (max_tokens if turns else 0)),
    )


class _Rekeyed:
    """A session that repeats stored steps with the keys they had, where the world lets steps be repeated."""

    def __init__(self, env: Any, root: tuple[int, int], taken: Mapping[int, StoredTurn]) -> None:
        self._env, self._root, self._taken = env, root, taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    async def reset(self, task: Task, key: int) -> Observation:
        now, then = self._root
        seen: Observation = await self._env.reset(task, then if key == now else key)
        return seen

    async def step(self, action: Any, key: int) -> StepResult:
        turn = self._taken.get(key)
        if turn is not None:
            await refuse_repeat(self._env, action, turn.effect)
        done: StepResult = await self._env.step(action, key if turn is None else turn.key)
        return done


class _Rooted:
    """A policy that says what was said at the draws of the prefix, known by their seeds, and draws elsewhere."""

    def __init__(self, policy: Proposer, spoken: Mapping[int, StoredTurn]) -> None:
        self.inner, self._spoken = policy, spoken

    @property
    def version(self) -> str:
        return self.inner.version

    def said(self, ids: Sequence[int]) -> str:
        """As the policy around which this is put, which must go on within responses."""
        return segmenting(self.inner).said(ids)

    async def draw_segment(
        self, context: Context, seeds: Sequence[int], max_tokens: int, head: Sequence[int], segments: Segments | None
    ) -> Sequence[Completion]:
        """What was said, at the draws of the prefix; elsewhere the policy goes on from the response under way."""
        if (given := self._given(context, seeds)) is not None:
            return [given]
        return await segmenting(self.inner).draw_segment(context, seeds, max_tokens, head, segments)

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        return self.inner.context(task, tools, first, turns, base)

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        given = self._given(context, seeds)
        return [given] if given is not None else await self.inner.draw(context, seeds, max_tokens)

    def _given(self, context: Context, seeds: Sequence[int]) -> Completion | None:
        turn = self._spoken.get(seeds[0]) if len(seeds) == 1 else None
        if turn is not None and turn.prompt and turn.prompt != context.ids:
            raise PolicyFault("the stored prefix does not repeat: the prompt differs from the one it was drawn from")
        return turn.said if turn is not None else None


class _Below(Node):
    """A node as it looks from the start: depth counts from there."""

    __slots__ = ("_height",)

    def __init__(self, node: Node, height: int) -> None:
        super().__init__(node.tree, node.id)
        self._height = height

    @property
    def depth(self) -> int:
        return self.tree.depth[self.id] - self._height


def _below(rule: Rule, height: int, source: tuple[str, int]) -> Rule:
    """The rule for what is below the start; above it single draws."""
    if rule.again is not None or rule.frontier is not None:
        raise TreewrightError(f"rule {rule.name} looks at the whole tree; take another one to grow from a stored node")

    def priority(node: Node) -> float | None:
        return 1e9 if node.depth < height else rule.priority(_Below(node, height))

    def draws(node: Node) -> int:
        return 1 if node.depth < height else rule.draws(_Below(node, height))

    def keep(node: Node) -> float:
        return 1.0 if node.depth <= height or rule.keep_prob is None else rule.keep_prob(_Below(node, height))

    def stop(node: Node) -> str | None:
        return None if node.depth <= height or rule.stop is None else rule.stop(_Below(node, height))

    return replace(
        rule,
        name=f"from({source[0]}, {source[1]}) {rule.name}",
        priority=priority,
        draws=draws,
        keep_prob=keep if rule.keep_prob is not None else None,
        stop=stop if rule.stop is not None else None,
    )
