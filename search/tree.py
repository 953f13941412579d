"""The tree: a struct of arrays that only grows, with read-only node views.

`node_id` is the creation index, so a parent's id is always smaller than its children's. Nothing is re-parented.
Truth rewards are sealed until `reveal()`: rules, evaluators and the choice of the answer cannot read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Effect, Observation, Task, digest, seed_of
from treewright.search.growing import Growing
from treewright.search.header import TreeHeader
from treewright.search.schema import COLUMNS, Columns
from treewright.search.sealed import Sealed
from treewright.search.types import Completion, Draft, Exchange, Expansion, NodeKind, NodeStatus, Outcome, Spent

__all__ = ["Node", "Tree", "TreeHeader"]

DISTANT = "arrivals were accepted at a distance"
"""Siblings of such a tree may have started from states that differed, which one of them may have caused."""
OPEN, TERMINAL = NodeStatus.OPEN, NodeStatus.TERMINAL
FINISHED = frozenset({NodeStatus.TERMINAL, NodeStatus.TRUNCATED, NodeStatus.COMMITTED})


class Tree(Columns, Growing, Sealed):
    """Columns indexed by node id, see `Columns` for their names; read them freely, write them only through `apply`.

    A step that is taken again after a divergence is a new child of the same parent in the same slot: it supersedes the
    older one, whose whole subtree becomes UNREACHABLE (see `supersedes`).
    """

    def __init__(self, header: TreeHeader) -> None:
        super().__init__()
        self.header = header
        self.pops: list[int] = []
        self.spent = Spent()
        self.chosen: int | None = None
        self.stopped_by: str | None = None
        self.reasons: list[str] = []
        self.repaired = False
        self._untrainable = False  # some draw is, and the reasons say so

    @classmethod
    def start(cls, header: TreeHeader) -> Tree:
        """A tree with its root: the state after reset."""
        tree = cls(header)
        said = Completion("", finish_reason="", policy_version=header.policy_version)
        root = Draft(
            after=0, slot=0, mult=1, share=1.0, seed=seed_of(header.seed, "root"), completion=said, action=None,
            error=None, effect=Effect.READ,
        )  # fmt: skip
        tree._push((-1,), -1, (root,), False)
        tree._execute(0, header.root)
        return tree

    def __repr__(self) -> str:
        """Short: asyncio spells out what a task returned, and a tree can be large."""
        task = self.header.task
        fault = f", never began: {self.fault[0]:.200}" if self.fault[0] is not None else ""
        return f"<Tree {self.tree_id} of {task.suite}/{task.id}: {len(self)} nodes, {len(self.pops)} pops{fault}>"

    def __getitem__(self, node: int) -> Node:
        if not 0 <= node < len(self.parent):
            raise IndexError(f"node {node} is not in this tree of {len(self.parent)} nodes")
        return Node(self, node)

    def __iter__(self) -> Iterator[Node]:
        return (Node(self, i) for i in range(len(self.parent)))

    @property
    def tree_id(self) -> str:
        return self.header.tree_id

    @property
    def task(self) -> Task:
        return self.header.task

    @property
    def exact(self) -> bool:
        """True if every assumption of the unbiased estimator holds; `reasons` says what broke it."""
        return not self.reasons

    @property
    def lost(self) -> bool:
        """No episode ended, and faults of world or server are why: whether the task can be solved is unknown."""
        return self.chosen is None and NodeStatus.FAULT in self.status

    def inexact(self, reason: str) -> None:
        """Marks the tree inexact; the same reason is kept once."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    # -- growing ------------------------------------------------------------------------------------------------

    def apply(self, expansion: Expansion) -> range:
        """Adds the result of one pop and returns the ids it was given.

        Raises TreewrightError if the expansion is out of order or hangs on an unknown node.
        """
        if expansion.seq != len(self.pops):
            raise TreewrightError(f"expansion {expansion.seq} applied where {len(self.pops)} was expected")
        node = expansion.node
        if not 0 <= node < len(self):
            raise TreewrightError(f"expansion {expansion.seq} expands node {node}; the tree has {len(self)}")
        self.pops.append(node)
        self.spent = self.spent + expansion.spent
        first, outcome = len(self), expansion.outcome
        if outcome is not None:
            self._seen(node, outcome)
        if drafts := expansion.drafts:
            above = [node if draft.after == 0 else first + draft.after - 1 for draft in drafts]
            self._push(above, expansion.seq, drafts, expansion.closing)
            for new, draft in enumerate(drafts, first):
                self._added(new, draft)
        self._pop(
            node,
            expansion.closing,
            expansion.drawn,
            first,
            len(expansion.drafts),
            None if outcome is None else outcome.status,
            expansion.fault is not None,
        )
        if expansion.fault is not None:
            self.fault[len(self) - 1 if expansion.drafts else node] = expansion.fault
            self.inexact("a fault persisted")
        return range(first, len(self))

    def _added(self, node: int, draft: Draft) -> None:
        outcome = draft.outcome
        if outcome is None:
            if draft.effect is Effect.IRREVERSIBLE:
                self._wait(node, draft.effect)
        elif (outcome.status is OPEN or outcome.status is TERMINAL) and not outcome.observation.parts:  # most are
            self._record(node, outcome)
            self.status[node] = outcome.status
        else:
            self._execute(node, outcome)
        if not (draft.completion.trainable or self._untrainable):
            self._untrainable = True
            self.inexact("draws not made at temperature 1 without truncation or grammar, or without log-probs")

    def _slots(self) -> list[int]:
        return self.slot

    def _below(self) -> list[list[int]]:
        return self.children

    def _superseded(self, node: int) -> None:
        self.repaired = True
        self.inexact("a replay diverged")

    def _pooled(self, node: int) -> None:
        for i in range(node + 1, len(self)):
            self.mass[i] = self.mass[self.parent[i]] * self.share[i]
        self.inexact("draws were added to a node after its first ones were seen")

    def toss(self, node: int, keep: float) -> None:
        """Keeps the open `node` with probability `keep` by a coin of its own seed; both are recorded.

        A node that is dropped is PRUNED, its value the control 0. Raises TreewrightError for keep outside (0, 1].
        """
        if not 0 < keep <= 1:
            raise TreewrightError(f"node {node} would be kept with probability {keep}; it must lie in (0, 1]")
        self.keep_prob[node] = keep
        if seed_of(self.seed[node], "keep") / 2.0**63 >= keep:
            self.status[node], self.kept[node] = NodeStatus.PRUNED, False

    def _execute(self, node: int, outcome: Outcome) -> None:
        self._seen(node, outcome)
        if outcome.status is not NodeStatus.DRAFT:
            self.status[node] = outcome.status

    def _seen(self, node: int, outcome: Outcome) -> None:
        """What executing a node gave, but for its status."""
        if outcome.status is NodeStatus.DRAFT:
            self._wait(node, outcome.effect)
            return
        self._record(node, outcome)
        if outcome.observation.parts and outcome.observation.distance:
            self.inexact(DISTANT)
        if outcome.status is NodeStatus.FAULT:
            self.inexact("a fault persisted")
        elif outcome.status is NodeStatus.UNREACHABLE:
            self.inexact("a replay diverged")

    def _wait(self, node: int, effect: Effect) -> None:
        """An irreversible draft of a live world: valued unexecuted, executed only by commit."""
        self.effect[node] = effect
        self.inexact("irreversible drafts wait for commit")

    def shown_by(self, node: int) -> Outcome:
        """What executing a node gave, for a sibling that may share it: its reward stays sealed in both."""
        seen = self.observation[node]
        if seen is None:
            raise TreewrightError(f"node {node} was not executed")
        status = NodeStatus.OPEN if self.status[node] is NodeStatus.EXPANDED else self.status[node]
        return Outcome(observation=seen, status=status, reward=self._truth[node], effect=self.effect[node])

    def mark(
        self, node: int, status: NodeStatus, observation: Observation | None = None, reward: float = math.nan
    ) -> None:
        """Records what a commit did with `node`: COMMITTED or IN_DOUBT; keeps what the search had seen there.

        Raises TreewrightError for another status.
        """
        if status not in (NodeStatus.COMMITTED, NodeStatus.IN_DOUBT):
            raise TreewrightError(f"a commit marks nodes committed or in doubt, not {status.value}")
        self.status[node] = status
        if self.observation[node] is None and observation is not None:
            self.observation[node], self._truth[node] = observation, reward

    def prune(self, nodes: Sequence[int], reason: str) -> None:
        """Gives up nodes that were never expanded; without a recorded keep probability the tree is inexact."""
        for node in nodes:
            self.status[node] = NodeStatus.PRUNED
        self.inexact(reason)

    # -- reading ------------------------------------------------------------------------------------------------
    def path(self, node: int) -> list[int]:
        """Ids from the root to `node`, both included."""
        out = []
        while node >= 0:
            out.append(node)
            node = self.parent[node]
        return out[::-1]

    def in_turn(self, node: int) -> bool:
        """True for a segment: the response goes on behind it, and nothing was executed."""
        return self.kind[node] is NodeKind.SEGMENT

    def turns(self, node: int) -> int:
        """Turns taken up to and including `node`: its depth, where no turn has segments."""
        return sum(not self.in_turn(i) for i in self.path(node)[1:])

    def exchanges(self, node: int) -> tuple[Exchange, ...]:
        """The whole turns from the episode's first to `node`; unexecuted ones have an empty observation."""
        empty = Observation("")
        turns = (i for i in self.path(node)[1:] if not self.in_turn(i))
        own = (Exchange(self.text[i], self.action[i], self.observation[i] or empty) for i in turns)
        return (*self.header.turns, *own)

    def context_ids(self, node: int) -> tuple[int, ...]:
        """Token ids of the prompt that the children of `node` are drawn from; () without tokens."""
        ids: tuple[int, ...] = ()
        for i in self.path(node):
            ids = (ids + self.ids[i])[: self.keep[i]] + self.delta[i]
        return ids

    def prompt_hash(self, node: int) -> str:
        """32 hex digits that name the prompt which the children of `node` are drawn from; "" without token ids.

        Equal for equal tokens, in whatever tree or store they are.
        """
        ids = self.context_ids(node)
        return digest(*map(str, ids)) if ids else ""

    def key(self, node: int) -> int:
        """The step key of `node`: it derives from the draw seed, which is unique along the path.

        Ids are given when a result is applied, after the step was taken; seeds are known before.
        """
        return seed_of(self.seed[node], "step")

    def supersedes(self, node: int) -> int | None:
        """The older node that `node` does again after a divergence here or above; None for every other node.

        The last one that was expanded, if the step was taken more than twice.
        """
        if not self.repaired:
            return None
        below: list[int] = []
        while node > 0:
            older = [c for c in self.children[self.parent[node]] if c < node and self.slot[c] == self.slot[node]]
            if older:
                return self._same_way(max(older, key=lambda c: (self.drawn[c] > 0, c)), below[::-1])
            below.append(node)
            node = self.parent[node]
        return None

    def _same_way(self, start: int, steps: Sequence[int]) -> int | None:
        """Down from `start` by children of the slots and tokens of `steps`; None where there is no such child."""
        for step in steps:
            same = [
                c
                for c in self.children[start]
                if (self.slot[c], self.text[c], self.ids[c]) == (self.slot[step], self.text[step], self.ids[step])
            ]
            if not same:
                return None
            start = max(same, key=lambda c: (self.drawn[c] > 0, c))
        return start

    def leaves(self) -> list[int]:
        """Executed nodes without children that ended an episode."""
        return [i for i in range(len(self)) if not self.children[i] and self.status[i] in FINISHED]

    def waiting(self) -> list[int]:
        """Irreversible drafts of a live world: only a commit may execute them."""
        return [
            i
            for i in range(1, len(self))
            if self.status[i] is NodeStatus.DRAFT
            and self.effect[i].needs_commit
            and self.effect[i] is not Effect.UNKNOWN
        ]

    def digest(self) -> str:
        """A hash of structure, tokens, actions, fingerprints, rewards, statuses and weights; no times, no scores."""
        rows = []
        for i in range(len(self)):
            seen, action = self.observation[i], self.action[i]
            rows.append(
                repr((
                    self.parent[i], self.kind[i].value, self.slot[i], self.mult[i], self.drawn[i],
                    self.ids[i], self.text[i], self.keep[i], self.delta[i],
                    action.key if action else None, self.error[i],
                    seen.fingerprint if seen else None, f"{self._truth[i]:.6f}",
                    self.status[i].value, f"{self.share[i]:.6f}", f"{self.keep_prob[i]:.6f}",
                ))
            )  # fmt: skip
        return digest(self.tree_id, *rows)


class Node:
    """A read-only view of one row. Two views are equal if they show the same row of the same tree."""

    __slots__ = ("id", "tree")

    def __init__(self, tree: Tree, node: int) -> None:
        self.tree = tree
        self.id = node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other.tree is self.tree and other.id == self.id

    def __hash__(self) -> int:
        return hash((id(self.tree), self.id))

    def __repr__(self) -> str:
        said = self.action or self.text or "root"
        return f"<Node {self.id} depth {self.depth} {self.status.value} {said}>"

    def __getattr__(self, name: str) -> Any:
        """Every other field of the schema, under the name of its column."""
        if name in COLUMNS and not name.startswith("_"):
            return getattr(self.tree, name)[self.id]
        raise AttributeError(f"a node has no {name!r}; it has {', '.join(c for c in COLUMNS if c[0] != '_')}")

    @property
    def parent(self) -> Node | None:
        above = self.tree.parent[self.id]
        return Node(self.tree, above) if above >= 0 else None

    @property
    def children(self) -> Sequence[Node]:
        return [Node(self.tree, i) for i in self.tree.children[self.id]]

    @property
    def path(self) -> Sequence[Node]:
        """From the root to this node."""
        return [Node(self.tree, i) for i in self.tree.path(self.id)]

    @property
    def depth(self) -> int:
        return self.tree.depth[self.id]

    @property
    def status(self) -> NodeStatus:
        return self.tree.status[self.id]

    @property
    def action(self) -> Action | None:
        return self.tree.action[self.id]

    @property
    def text(self) -> str:
        return self.tree.text[self.id]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.tree.ids[self.id]

    @property
    def logprobs(self) -> tuple[float, ...]:
        return self.tree.logprobs[self.id]

    @property
    def prompt_hash(self) -> str:
        """Names the prompt that this node's children are drawn from."""
        return self.tree.prompt_hash(self.id)

    @property
    def observation(self) -> Observation | None:
        return self.tree.observation[self.id]

    @property
    def error(self) -> str | None:
        return self.tree.error[self.id]

    @property
    def score(self) -> float:
        """The evaluator's estimate of success; NaN if there is none."""
        return self.tree.score[self.id]

    @property
    def mass(self) -> float:
        """Product of the shares from the root: the weight w of this node."""
        return self.tree.mass[self.id]

    @property
    def path_logprob(self) -> float:
        """Sum of behaviour log-probs from the root, in nats."""
        return self.tree.path_logprob[self.id]

    @property
    def reward(self) -> float:
        """Truth; NaN while the tree is sealed."""
        return self.tree.reward(self.id)
