"""A backward curriculum: some trees of a round begin at nodes of stored successes, first near the end, later before it.

The objective of a round is fixed before its first draw. With n trees from the root, of the tasks that the loop would
have taken anyway, and m trees from starts s₁ … s_m,

    J = (1 − α) · mean V(root of a task) + α · mean V(s_j)        α = m / (n + m)

Which starts are used depends on earlier rounds alone, so each tree's credit is an unbiased estimate of its own term and
their sum over n + m trees of the gradient of J, the starts held fixed. A policy that is best everywhere maximises every
term at once; as α < 1, whatever maximises J then maximises the value from the root too: the consistency of PrefixRL,
whose prefixes come from successes, so that success can be gone on to from each of them. When all starts have moved to
the root, J is the loop's own objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from treewright.envs.types import seed_of
from treewright.search.rooted import Start, prefix_length
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus, Origin
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.export.rows import SOLVED
from treewright.training.export.view import View
from treewright.training.recipes.fronts import front_at, units_of
from treewright.training.sections import CurriculumSection

__all__ = ["Curriculum", "Front", "start_value"]


@dataclass(slots=True)
class Front:
    """How far the stored success of a task is given at present.

    tree, leaf  the path;  units  its turns, or response tokens;  kept  how many are given, 0 = the root
    visits      trees grown from it;  failed  of those, the last ones in a row without any success
    lost        the last ones in a row that did not come back to it, or whose world or policy failed
    left        nothing succeeds even near its end, or the world does not come back to it: it is left alone
    """

    tree: str
    leaf: int
    suite: str
    task: str
    units: int
    kept: int
    visits: int = 0
    failed: int = 0
    lost: int = 0
    left: bool = False

    @property
    def active(self) -> bool:
        return self.kept > 0 and not self.left


def start_value(tree: Tree) -> float:
    """The value of the node that a tree began at, without the rewards of given turns; NaN where faults hide it."""
    node = prefix_length(tree)
    if tree.lost or tree.status[node] in (NodeStatus.FAULT, NodeStatus.UNREACHABLE):
        return float("nan")
    return float(estimate("split_loo", tree_arrays([tree]), allow_biased=True).value[node])


class Curriculum:
    """The starts of one loop; all that it knows is in `state`, which checkpoints keep.

    load  a stored tree by its id
    """

    def __init__(self, settings: CurriculumSection, load: Callable[[str], Tree], seed: int = 0) -> None:
        self.settings, self.seed, self._load = settings, seed, load
        self.fronts: dict[tuple[str, str], Front] = {}
        self.rounds = 0
        self._tasks: dict[tuple[str, str], tuple[int, float]] = {}  # trees from the root, and the sum of their values
        self._suites: dict[str, float] = {}  # mean root value of the last round

    # -- what a checkpoint keeps --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "rounds": self.rounds,
            "fronts": [asdict(front) for front in self.fronts.values()],
            "tasks": [[*key, *seen] for key, seen in self._tasks.items()],
            "suites": dict(self._suites),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self.rounds, self._suites = int(state["rounds"]), dict(state["suites"])
        self.fronts = {(f["suite"], f["task"]): Front(**f) for f in state["fronts"]}
        self._tasks = {(suite, task): (int(n), float(total)) for suite, task, n, total in state["tasks"]}

    # -- between rounds -----------------------------------------------------------------------------------------

    def gather(self, trees: Iterable[Tree]) -> None:
        """Takes up the best success of each tree whose task has no start yet, or one that was left alone."""
        for tree in trees:
            if self.wanted(tree.task.suite, tree.task.id):
                for leaf in View(tree, style="tokens").best("best", SOLVED):
                    units = units_of(tree, leaf, self.settings.unit)
                    self.take_up(tree.tree_id, leaf, tree.task.suite, tree.task.id, units)

    def wanted(self, suite: str, task: str) -> bool:
        """Whether a success of this task would become a start."""
        have = self.fronts.get((suite, task))
        return have is None or have.left

    def take_up(self, tree: str, leaf: int, suite: str, task: str, units: int) -> None:
        """A success as a start near its end; one that was left alone is not taken up again."""
        have = self.fronts.get((suite, task))
        if units > 1 and (have is None or (have.tree, have.leaf) != (tree, leaf)):
            kept = max(1, units - self.settings.step)
            self.fronts[suite, task] = Front(tree, leaf, suite, task, units, kept)

    def rate(self, suite: str, task: str) -> float:
        """How often a task is solved from the root: what its trees gave, and its suite's rate as one more."""
        count, total = self._tasks.get((suite, task), (0, 0.0))
        return (total + self._suites.get(suite, 0.0)) / (count + 1)

    def choose(self, roots: int) -> list[tuple[Front, Start]]:
        """The starts of the next round beside `roots` trees from the root, with their fronts: see `chosen`."""
        return [(front, self._start(front)) for front in self.chosen(roots)]

    def chosen(self, roots: int) -> list[Front]:
        """The fronts of the next round beside `roots` trees from the root: the rarely visited ones of rare tasks.

        Nothing of the round has been drawn yet; a round that is begun again gets the same ones.
        """
        share, rare = self.settings.share, self.settings.rare
        room = round(share / (1 - share) * roots)
        open_ = [f for f in self.fronts.values() if f.active and self.rate(f.suite, f.task) < rare]
        open_.sort(key=lambda f: (f.visits, seed_of(self.seed, self.rounds, f.suite, f.task)))
        return open_[:room]

    def _start(self, front: Front) -> Start:
        tree = self._load(front.tree)
        own = tree.origin[tree.path(front.leaf)[1]]
        origin = Origin.DEMO if own is Origin.DEMO else Origin.STORED
        return front_at(tree, front.leaf, front.kept, unit=self.settings.unit, origin=origin)

    def note(self, roots: Sequence[Tree], begun: Sequence[Tree], chosen: Sequence[Front]) -> dict[str, float]:
        """Moves the starts by what came of them, after a round; what to log.

        roots  trees from the root;  begun  those from the starts of `chosen`, in their order
        """
        given = [front.kept / front.units for front in chosen]
        values = [start_value(tree) for tree in begun]
        self.learn([(t.task.suite, t.task.id, start_value(t)) for t in roots], chosen, values)
        self.gather(roots)
        known = [v for v in values if np.isfinite(v)]
        told = {"starts": float(len(chosen)), "starts_waiting": float(sum(f.active for f in self.fronts.values())),
                "starts_left": float(sum(f.left for f in self.fronts.values()))}  # fmt: skip
        if given:
            told["starts_given"] = float(np.mean(given))
        return told | ({"starts_success": float(np.mean(known))} if known else {})

    def learn(self, roots: Sequence[tuple[str, str, float]], chosen: Sequence[Front], values: Sequence[float]) -> None:
        """Ends a round: (suite, task, value) of its trees from the root, values of those from the fronts `chosen`."""
        self.rounds += 1
        for suite in dict.fromkeys(suite for suite, _, _ in roots):
            known = []
            for task, value in ((task, value) for its, task, value in roots if its == suite and np.isfinite(value)):
                known.append(value)
                count, total = self._tasks.get((suite, task), (0, 0.0))
                self._tasks[suite, task] = (count + 1, total + value)
            if known:
                self._suites[suite] = float(np.mean(known))
        for front, value in zip(chosen, values, strict=True):
            self._move(front, value)

    def _move(self, front: Front, value: float) -> None:
        """Towards the root after success, towards the end after failures in a row; else it stays."""
        s = self.settings
        front.visits += 1
        if not np.isfinite(value):  # a fault says nothing of success
            front.lost += 1
            front.left = front.lost >= s.patience
            return
        front.lost, front.failed = 0, 0 if value > 0 else front.failed + 1
        if value >= s.target:
            front.kept = max(0, front.kept - s.step)
        elif front.failed >= s.patience:
            front.left = front.kept >= front.units - 1
            front.failed, front.kept = 0, min(front.units - 1, front.kept + s.step)
