"""Proposers around a policy: several contexts for one node, and draws without replacement.

A policy alone draws i.i.d. from one prompt: the default, and what training needs. For acting, variety pays:

    Variety(policy, [plain, history(2), examples(memory_of(store)), rephrased(say)])
    Distinct(policy)

Which context draw i is made under is fixed before any draw: variant i modulo their number. Draws under another prompt
than the plain one are not trained on, since the tree keeps the plain prompt. Distinct draws are made by sampling until
enough different ones were seen, which is sampling without replacement in order, as Gumbel top-k gives it (Kool et al.,
1903.06059); the share of each is its unordered-set weight ω (Kool et al., 2002.06043), and the token log-probs that ω
and the credit by `training.credit.graphs.without_replacement` need are those of the draws.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from treewright.agent.config import PolicySection
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import Policy
from treewright.agent.policies.wrapped import Wrapped
from treewright.envs.doors import Door
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec, seed_of
from treewright.envs.waiting import together
from treewright.search.tree import Tree
from treewright.search.types import Completion, Context, Costly, Exchange, PolicyFault, layers

__all__ = [
    "Distinct",
    "Memory",
    "Past",
    "Variant",
    "Variety",
    "examples",
    "history",
    "memory_of",
    "open_proposer",
    "plain",
    "rephrased",
]


def _built_in() -> dict[str, Any]:
    from treewright.agent.policies.code_tree import CodeTree

    return {"codetree": CodeTree}


DOOR = Door(kind="proposer", group="treewright.proposers", built_in=_built_in)
"""What is put around a policy: module:function(policy, **options) or an entry point; it gives a Policy."""

MOST_DISTINCT = 12  # unordered-set weights cost 2 to the power of the number of draws


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to show a node: None in `show` is the policy's own prompt, else the goal text that replaces the task's.

    What `show` returns stands in the place of the goal; the newest observation follows it, earlier turns are only there
    if `show` writes them.
    """

    name: str
    show: Callable[[Task, Sequence[Exchange]], str] | None = None


plain = Variant("plain")


def history(turns: int) -> Variant:
    """The goal and the last `turns` turns in words; 0 shows the newest observation alone."""
    return Variant(f"history-{turns}", lambda task, past: _told(task.goal, past[len(past) - turns :] if turns else ()))


def rephrased(say: Callable[[Task], str]) -> Variant:
    """The goal in other words, and all turns."""
    return Variant("rephrased", lambda task, past: _told(say(task), past))


def examples(memory: Memory, count: int = 2) -> Variant:
    """What was done on the `count` nearest tasks that were solved before, then the goal and all turns."""

    def show(task: Task, past: Sequence[Exchange]) -> str:
        found = memory.nearest(task, count)
        shown = [f"Example: {one.goal}\n" + "\n".join(f"> {said}" for said in one.said) for one in found]
        return "\n\n".join([*shown, _told(task.goal, past)])

    return Variant(f"examples-{count}", show)


def _told(goal: str, turns: Sequence[Exchange]) -> str:
    lines = [goal]
    for turn in turns:
        lines += [f"> {turn.response.strip()}", turn.observation.text]
    return "\n".join(lines)


# -- past successes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Past:
    """A solved task: its suite, goal and what the policy said on the way."""

    suite: str
    goal: str
    said: tuple[str, ...]


class _Trees(Protocol):
    def trees(self, *, split: str | None, success: bool | None, status: str | None) -> Sequence[object]: ...
    def load(self, tree_id: str) -> Tree: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """Solved tasks; `nearest` goes by the words that goals share, rare words counting more."""

    past: tuple[Past, ...]

    def nearest(self, task: Task, count: int) -> list[Past]:
        """At most `count` solved tasks of the same suite, nearest first; never one with the same goal."""
        known = [p for p in self.past if p.suite == task.suite and p.goal != task.goal]
        often: dict[str, int] = {}
        for one in known:
            for word in set(one.goal.casefold().split()):
                often[word] = often.get(word, 0) + 1
        words = set(task.goal.casefold().split())

        def near(one: Past) -> tuple[float, float]:
            shared = words & set(one.goal.casefold().split())
            rare = math.fsum(1.0 / often[word] for word in shared)
            return rare, difflib.SequenceMatcher(None, one.goal, task.goal).quick_ratio()

        return sorted(known, key=near, reverse=True)[:count]


def memory_of(store: _Trees, split: str = "train", limit: int = 500) -> Memory:
    """The chosen paths of a store's successful trees, newest first; of train tasks, so that tests stay unseen."""
    past: list[Past] = []
    for row in list(store.trees(split=split, success=True, status="done"))[::-1][:limit]:
        tree = store.load(row.tree_id)  # type: ignore[attr-defined]
        if tree.chosen is not None:
            said = tuple(turn.response for turn in tree.exchanges(tree.chosen))
            past.append(Past(tree.task.suite, tree.task.goal, said))
    return Memory(tuple(past))


def open_proposer(section: PolicySection, model: Any = None) -> Policy:
    """The policy of the configuration, with its contexts and distinct draws around it.

    model  of a trainer, for a policy of this process: it is drawn from as it is, and there is no second copy

    Raises TreewrightError for a context that is not known, and for examples without `policy.memory`.
    """
    variants = [_variant(name, section) for name in section.contexts]
    more = {} if model is None else {"model": model}
    policy = open_policy(section.spec, **section.options, **more)
    if section.proposer is not None:
        policy = DOOR.make(section.proposer, section.proposer_options, policy=policy)
    elif section.proposer_options:
        raise TreewrightError("policy.proposer_options without policy.proposer; name the proposer that takes them")
    if variants != [plain]:
        policy = Variety(policy, variants)
    return Distinct(policy) if section.distinct else policy


def _variant(name: str, section: PolicySection) -> Variant:
    kind, _, rest = name.partition(":")
    if name == "plain":
        return plain
    if kind == "history" and rest.isdigit():
        return history(int(rest))
    if kind == "rephrased" and rest:
        from treewright.envs.custom import load_named

        return rephrased(load_named(rest, "policy.contexts"))
    if kind == "examples" and rest.isdigit() and int(rest):
        if section.memory is None:
            raise TreewrightError(f"context {name!r} needs solved tasks; set policy.memory = runs/NAME/trees.sqlite")
        from treewright.search.store import TreeStore

        with TreeStore.open(section.memory, read_only=True) as store:
            return examples(memory_of(store), int(rest))
    raise TreewrightError(f"no context {name!r}; write plain, history:N, examples:N or rephrased:MODULE:FUNCTION")


# -- proposers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contexts(Context):
    """The policy's own context at a node, and one for each variant (None: the policy's own)."""

    own: Context | None = None
    others: tuple[Context | None, ...] = ()


class Variety(Wrapped):
    """Draw i of every node is made under variant i modulo their number. Raises TreewrightError for no variants."""

    def __init__(self, policy: Policy, variants: Sequence[Variant]) -> None:
        super().__init__(policy)
        if not variants:
            raise TreewrightError("variety needs at least one context; give [plain] for the policy's own")
        self.variants = tuple(variants)

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        own = self.inner.context(task, tools, first, turns, base)
        seen = turns[-1].observation if turns else first
        others = tuple(
            None if v.show is None else self.inner.context(replace(task, goal=v.show(task, turns)), tools, seen, (), ())
            for v in self.variants
        )
        return _Contexts(keep=own.keep, delta=own.delta, ids=own.ids, messages=own.messages, own=own, others=others)

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One completion for each seed, in order. Draws under another prompt than the plain one are untrainable."""
        if not isinstance(context, _Contexts) or context.own is None:
            raise TreewrightError("this context was not made by this proposer; call its context(...) first")
        count = len(self.variants)
        groups = [list(range(v, len(seeds), count)) for v in range(min(count, len(seeds)))]
        shown = [context.others[v] or context.own for v in range(len(groups))]
        drawn = await together(
            self.inner.draw(c, [seeds[i] for i in g], max_tokens) for c, g in zip(shown, groups, strict=True)
        )
        out: dict[int, Completion] = {}
        for v, (group, done) in enumerate(zip(groups, drawn, strict=True)):
            for i, one in zip(group, done, strict=True):
                out[i] = one if context.others[v] is None else replace(one, trainable=False)
        return [out[i] for i in range(len(seeds))]


class Distinct(Wrapped):
    """K different draws, as far as the policy has them: sampled until K were seen, in the order of their first sight.

    Seeds beyond the first K derive from the last one. Where `patience` × K draws did not show K different ones, they
    are repeated from the first, so that the node keeps its K. Distinct draws act and are not trained on by default: a
    tree of them is inexact, and its shares are the unordered-set weights. Those need token log-probs; without them each
    draw has 1/K.
    """

    def __init__(self, policy: Policy, patience: int = 8) -> None:
        super().__init__(policy)
        if patience < 1:
            raise TreewrightError(f"patience = {patience}; it must be at least 1")
        self.patience = patience

    def dearest(self, max_tokens: int) -> float:
        """The most money that one draw can cost: with all that are made to find it."""
        costly = next((p for p in layers(self.inner) if isinstance(p, Costly)), None)
        return self.patience * costly.dearest(max_tokens) if costly is not None else 0.0

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        return self.inner.context(task, tools, first, turns, base)

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        if len(seeds) > MOST_DISTINCT:
            raise PolicyFault(f"{len(seeds)} distinct draws were asked for; at most {MOST_DISTINCT} can be weighted")
        found: dict[tuple[int, ...] | str, Completion] = {}
        asked, money = 0, 0.0
        wanted = list(seeds)
        while len(found) < len(seeds) and asked < self.patience * len(seeds):
            for one in await self.inner.draw(context, wanted, max_tokens):
                money += one.money
                if len(found) < len(seeds):
                    found.setdefault(one.token_ids or one.text, one)
            asked += len(wanted)
            wanted = [seed_of(seeds[-1], "more", asked + i) for i in range(len(seeds) - len(found))]
        drawn = _weighted([replace(one, money=0.0) for one in found.values()], len(seeds))
        return [replace(drawn[0], money=money), *drawn[1:]]


def _weighted(drawn: Sequence[Completion], count: int) -> list[Completion]:
    """The draws with their shares ω, repeated from the front where there are fewer than `count`."""
    from treewright.training.credit.graphs import without_replacement

    known = all(one.logprobs for one in drawn)
    p = [math.exp(min(0.0, one.logprob)) for one in drawn] if known else []
    if known and len(drawn) > 1 and math.fsum(p) < 1.0 + 1e-9 and min(p) > 0:
        share = without_replacement(p, [0.0] * len(p)).share.tolist()
    else:
        share = [1.0 / len(drawn)] * len(drawn)
    weighted = [replace(one, trainable=False, share=w) for one, w in zip(drawn, share, strict=True)]
    return [weighted[i % len(weighted)] for i in range(count)]
