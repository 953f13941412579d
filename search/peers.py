"""Messages between branches: a prompt that tells what other branches did and what came of it. Off by default.

    await search(task, suite, policy, settings=Settings(peers=3))        # at most three branches are told of

After LeaP (arXiv 2505.07787), where reasoning paths exchange short summaries. Here a message stands behind the newest
observation of a node when its children are drawn. It holds actions, observations, the evaluator's estimates and faults,
never a reward. The children themselves go on from the plain prompt.

With width W the message of pop j is a function of what the pops up to j − W gave, so it does not depend on timing or on
the number of sessions, and the stored expansions give it back exactly (`told_in`). Draws that were told of others are
not independent: they are not trained on, and the tree is inexact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from treewright.envs.types import Observation, Task, ToolSpec, digest
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Context, Exchange, Expansion, NodeStatus, Proposer

__all__ = ["TOLD", "Peers", "Told", "told_context", "told_in"]

TOLD = "prompts told of other branches"
STEPS, CHARS = 4, 160  # actions of a branch, and letters of an action or observation, that a message shows
WORDS = {
    NodeStatus.TERMINAL: "ended",
    NodeStatus.TRUNCATED: "ran out of turns",
    NodeStatus.FAULT: "failed",
    NodeStatus.UNREACHABLE: "failed",
}


@dataclass(frozen=True, slots=True)
class Told:
    """One message: the last node of each branch that it tells of, and its text; both empty where there was none."""

    sources: tuple[int, ...] = ()
    text: str = ""

    @property
    def digest(self) -> str:
        """32 hex digits that name the text."""
        return digest(self.text)


@dataclass(slots=True)
class Peers:
    """What the branches of one tree may tell each other.

    most   branches that a message tells of
    width  of the search: pop j knows of the pops up to j − width
    ends   for each executed node: the pop that executed it, and the status that it had then
    """

    most: int
    width: int
    ends: dict[int, tuple[int, NodeStatus]] = field(default_factory=dict)

    def note(self, tree: Tree, expansion: Expansion, new: range) -> None:
        """An expansion is in the tree: its nodes can be told of from now on."""
        if expansion.drawn and not expansion.closing and self.tell(tree, expansion.node, expansion.seq).sources:
            tree.inexact(TOLD)
        if expansion.outcome is not None:
            self.ends[expansion.node] = (expansion.seq, expansion.outcome.status)
        for node, draft in zip(new, expansion.drafts, strict=True):
            if draft.outcome is not None:
                self.ends[node] = (expansion.seq, draft.outcome.status)

    def tell(self, tree: Tree, node: int, seq: int) -> Told:
        """The message for the draws that pop `seq` makes at `node`: the nearest branches first, of those that leave
        the path at the same node the highest estimate; each by how far it got."""
        known = {i for i, (pop, _) in self.ends.items() if pop <= seq - self.width}
        path = tree.path(node)
        found: list[tuple[int, int]] = []  # (first node of a branch, its last one)
        for above, on in zip(path[-2::-1], path[:0:-1], strict=True):
            branches = [(i, self._last(tree, i, known)) for i in tree.children[above] if i != on and i in known]
            found += sorted(branches, key=lambda b: (-_estimate(tree, b[1]), b[0]))
        lines: dict[str, int] = {}
        for first, last in found:
            lines.setdefault(self._line(tree, first, last), last)
        some = list(lines.items())[: self.most]
        if not some:
            return Told()
        return Told(tuple(last for _, last in some), "\n".join(["Other attempts so far:", *(line for line, _ in some)]))

    def _last(self, tree: Tree, first: int, known: set[int]) -> int:
        """The node that stands for a branch: an end before what goes on, then the highest estimate, the deepest."""
        branch, waiting = [], [first]
        while waiting:
            at = waiting.pop()
            branch.append(at)
            waiting += [i for i in tree.children[at] if i in known]
        return min(branch, key=lambda i: (self.ends[i][1] not in WORDS, -_estimate(tree, i), -tree.depth[i], i))

    def _line(self, tree: Tree, first: int, last: int) -> str:
        nodes = tree.path(last)[tree.depth[first] :]
        said = [_short(tree.text[i]) for i in nodes]
        steps = said if len(said) <= STEPS else [*said[: STEPS - 1], "…", said[-1]]
        seen = tree.observation[last]
        notes = [WORDS[self.ends[last][1]]] if self.ends[last][1] in WORDS else []
        if not math.isnan(tree.score[last]):
            notes.append(f"estimate {tree.score[last]:.2f}")
        after = f" ({', '.join(notes)})" if notes else ""
        return f"- {'; '.join(steps)} → {_short(seen.text) if seen is not None else ''}{after}"


def _estimate(tree: Tree, node: int) -> float:
    return 0.0 if math.isnan(tree.score[node]) else tree.score[node]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CHARS else f"{line[: CHARS - 1]}…"


def told_context(
    policy: Proposer,
    task: Task,
    tools: Sequence[ToolSpec],
    first: Observation,
    turns: Sequence[Exchange],
    base: Sequence[int],
    message: str,
) -> Context:
    """The prompt at a node with a message behind its newest observation; the arguments are those of
    `Proposer.context`."""
    if not turns:
        return policy.context(task, tools, _with(first, message), turns, base)
    newest = replace(turns[-1], observation=_with(turns[-1].observation, message))
    return policy.context(task, tools, first, (*turns[:-1], newest), base)


def _with(seen: Observation, message: str) -> Observation:
    return replace(seen, text=f"{seen.text}\n\n{message}")


def told_in(header: TreeHeader, expansions: Sequence[Expansion]) -> dict[int, Told]:
    """The messages of a stored tree by pop, of the pops that had one; a node's is that of the pop `tree.born[node]`.

    told = told_in(store.header(tree_id), store.expansions(tree_id))
    """
    peers, tree = Peers(header.settings.get("peers", 0), header.settings["width"]), Tree.start(header)
    out: dict[int, Told] = {}
    for expansion in expansions:
        if expansion.drawn and not expansion.closing:
            told = peers.tell(tree, expansion.node, expansion.seq)
            if told.sources:
                out[expansion.seq] = told
        new = tree.apply(expansion)
        peers.note(tree, expansion, new)
    return out
