"""A revealed tree as the exporters read it: prompts at nodes, values of nodes, which paths may be shown."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.search.segments import said_at
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus, Origin
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

__all__ = ["FOREIGN", "Decode", "Message", "Row", "View", "clean", "known", "plain_json"]

Row = dict[str, Any]
Message = dict[str, str]
Decode = Callable[[Sequence[int]], str]

EXECUTED = frozenset(
    {NodeStatus.OPEN, NodeStatus.EXPANDED, NodeStatus.TERMINAL, NodeStatus.TRUNCATED, NodeStatus.COMMITTED}
)
FOREIGN = frozenset({Origin.INJECTED, Origin.ENV})


def clean(text: str) -> str:
    """The text as UTF-8 can hold it; half surrogates become '?'."""
    return text.encode("utf-8", "replace").decode()


def plain_json(value: Any) -> Any:
    """JSON with texts that UTF-8 can hold, from mappings, lists and tuples."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return [plain_json(one) for one in value]
    return {clean(str(key)): plain_json(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def known(value: float) -> float | None:
    """The number; None for NaN."""
    return None if math.isnan(value) else float(value)


@dataclass(slots=True)
class View:
    """One tree, how to write it, and a count of what was left out and why.

    tree      with its rewards revealed
    style     conversational | text | tokens
    system    system message in front of every conversation; None: that of the task's data, if it has one
    decode    token ids to text, so that the text style shows exactly what the policy read; None: texts are joined
    versions  [N] weights that each node was drawn from; empty: those of the tree
    q         [N] float64, reward of the edge plus SPLIT-LOO value of the node; NaN where unknown
    ess       [N] float64, effective number of finished leaves behind it
    coef      [N] float64, SPLIT-LOO's factor of ∇ log π of each node's draw; 0 where it has none
    """

    tree: Tree
    style: str = "conversational"
    system: str | None = None
    decode: Decode | None = None
    versions: Sequence[str] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    q: NDArray[np.float64] = field(init=False)
    ess: NDArray[np.float64] = field(init=False)
    value: NDArray[np.float64] = field(init=False)
    coef: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        arrays = tree_arrays([self.tree])
        try:
            # Only values are read; they are right for what is known of an inexact tree too, and `exact` is a column.
            credit = estimate("split_loo", arrays, allow_biased=True)
        except TreewrightError:
            self.skip("trees whose nodes need all their children have no value for each child")
            self.value = np.full(len(self.tree), np.nan)
            self.ess = self.coef = np.zeros(len(self.tree))
        else:
            self.value, self.ess, self.coef = credit.value, credit.ess, credit.coef
        self.q = self.value + np.where(arrays.parent < 0, 0.0, arrays.reward.astype(np.float64))

    def skip(self, reason: str) -> None:
        self.skipped[reason] += 1

    # -- which nodes ----------------------------------------------------------------------------------------------

    def executed(self, node: int) -> bool:
        """Executed without a fault; drafts, pruned, unreachable and doubtful nodes are never shown as steps."""
        return self.tree.status[node] in EXECUTED

    def readable(self, node: int) -> bool:
        """Every observation down to `node` is text alone; counts it as left out if not."""
        header, own = self.tree.header, (self.tree.observation[i] for i in self.tree.path(node))
        if any(o is not None and o.shown for o in (header.first, *(t.observation for t in header.turns), *own)):
            self.skip("an observation holds images or other parts, which text formats cannot show")
            return False
        return True

    def on_policy(self, node: int) -> bool:
        """Drawn at temperature 1, untruncated, from the weights that the tree belongs to."""
        tree = self.tree
        version = self.versions[node] if self.versions else tree.header.policy_version
        return tree.origin[node] is Origin.POLICY and tree.trainable[node] and version == tree.header.policy_version

    def leaves(self) -> Iterator[int]:
        """Finished leaves whose whole path was executed and can be read."""
        for leaf in self.tree.leaves():
            path = self.tree.path(leaf)[1:]
            if path and all(map(self.executed, path)) and self.readable(leaf):
                yield leaf

    def best(self, which: str, min_outcome: float) -> list[int]:
        """Leaves to imitate, best first. Those whose return is not known are left out, and counted.

        best    the leaf of the highest return, the likelier one of equals; none below `min_outcome`
        chosen  the leaf that search chose without seeing rewards, if it reached `min_outcome`
        all     every leaf of at least `min_outcome`
        """
        tree = self.tree
        ends = {i: tree.outcome_of(i) for i in self.leaves() if which != "chosen" or i == tree.chosen}
        for _ in filter(math.isnan, ends.values()):
            self.skip("paths whose reward is not known")
        good = [i for i, end in ends.items() if end >= min_outcome]
        good.sort(key=lambda i: (-ends[i], -tree.path_logprob[i], i))
        return good[:1] if which == "best" else good

    # -- what the policy read -------------------------------------------------------------------------------------

    def first(self) -> str:
        """The opening of the conversation: the goal and what the episode began with."""
        return clean("\n\n".join(t for t in (self.tree.task.goal, self.tree.header.first.text) if t))

    def past(self) -> list[Message]:
        """What the episode did before the tree, which goes on from a commit then."""
        return [
            {"role": role, "content": clean(text)}
            for turn in self.tree.header.turns
            for role, text in (("assistant", turn.response), ("user", turn.observation.text))
        ]

    def seen(self, node: int) -> str:
        shown = self.tree.observation[node]
        return clean(shown.text) if shown else ""

    def messages(self, node: int) -> list[Message]:
        """The conversation in which the children of `node` are drawn."""
        system = self.system if self.system is not None else self.tree.task.data.get("system")
        out = [{"role": "system", "content": clean(system)}] if isinstance(system, str) and system else []
        out += [{"role": "user", "content": self.first()}, *self.past()]
        for i in self.tree.path(node)[1:]:
            if self.tree.in_turn(i):
                continue  # said by the node that ends the turn
            out += [self.said(i), {"role": "user", "content": self.seen(i)}]
        return out

    def tools(self) -> Row:
        """The column of the tools that a conversation lists, as JSON, which TRL gives to the chat template."""
        found = self.tree.task.data.get("tools")
        return {"tools": json.dumps(found, ensure_ascii=False) if found else None} if self.style != "tokens" else {}

    def said(self, node: int) -> Message:
        return {"role": "assistant", "content": clean(said_at(self.tree, node))}

    def prompt(self, node: int) -> Any:
        """The prompt at `node` in the style: messages or text."""
        if self.style == "conversational":
            return self.messages(node)
        if self.decode is not None and self.tree.delta[0]:
            return clean(self.decode(self.tree.context_ids(node)))
        return "\n\n".join([m["content"] for m in self.messages(node)]) + "\n\n"

    def completion(self, node: int) -> Any:
        """What the policy wrote at `node` in the style."""
        if self.style == "conversational":
            return [self.said(node)]
        if self.decode is not None and self.tree.ids[node]:
            return clean(self.decode(self.tree.ids[node]))
        return clean(said_at(self.tree, node))

    def common(self, node: int) -> Row:
        """The columns that every row has."""
        header = self.tree.header
        return {
            "tree_id": self.tree.tree_id,
            "node": node,
            "run": clean(header.run),
            "suite": clean(header.task.suite),
            "task_id": clean(header.task.id),
            "split": clean(header.task.split),
            "policy_version": clean(self.versions[node] if self.versions else header.policy_version),
            "exact": self.tree.exact,
        }
