"""What faults do to the gradient of trees that the real engine grows, in a world whose gradient can be enumerated.

    python -P tests/faults/fault_gradient.py [--quick] [--trees 4000] [--json FILE]

`mended`    nine in ten sessions die at a random call: opening, reset, step, snapshot or restore; another one takes over
`for_good`  nine in ten trees lose their sessions, or the policy its server, at a random moment and for good: such trees
            are unknown, and credit leaves them out
`as_zero`   the same, with the lost endings taken as rewards of 0: the mistake that this is about, as a control

The shift of a mean gradient from that of undisturbed trees is told over its noise, sqrt(sum of both standard errors²)
over all parameters: about 1 where nothing has shifted.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from choices import STATES, Choices, Guide, Softmax, tree_gradient

from treewright.agent.runs.figures import write_figures
from treewright.envs import Observation, SessionDied, Snapshot, StepResult, Task
from treewright.envs.types import Action
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Context, NodeStatus, PolicyFault
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Found", "Kills", "grown", "measure", "shift_over_noise"]

SHARE = 0.9
CALLS = 3  # calls that every tree makes of its world, and draws of its policy, before its first episode can end


@dataclass(slots=True)
class Kills:
    """Who dies when. `mended` draws for each session, `for_good` once for each tree."""

    rng: random.Random
    for_good: bool
    sessions: int = 0
    died: int = 0
    doom: str = ""  # of the present tree: "", "world" or "policy"
    left: int = 0  # calls until then

    def next_tree(self) -> None:
        hit = self.for_good and self.rng.random() < SHARE
        self.doom = self.rng.choice(["world", "policy"]) if hit else ""
        self.left = self.rng.randrange(CALLS)

    def strikes(self, who: str) -> bool:
        """One call by the world or the policy of a tree that dies for good."""
        if self.doom != who:
            return False
        self.left -= 1
        return self.left < 0


class Mortal(Choices):
    """A session that may be killed at any of its calls, before or after the call has taken effect."""

    def __init__(self, kills: Kills) -> None:
        self.kills = kills
        kills.sessions += 1
        # Long enough to get anywhere and on by one step: a session that always died before would never mend anything.
        self.left = kills.rng.randrange(8) if not kills.for_good and kills.rng.random() < SHARE else -1

    def _call(self) -> None:
        if self.kills.strikes("world"):
            raise SessionDied("the server is gone for good")
        if self.left == 0:
            self.kills.died += 1
            raise SessionDied("killed")
        self.left -= 1

    async def reset(self, task: Task, key: int) -> Observation:
        self._call()
        return await super().reset(task, key)

    async def step(self, action: Action, key: int) -> StepResult:
        after = self.kills.rng.random() < 0.5
        if not after:
            self._call()
        result = await super().step(action, key)
        if after:
            self._call()
        return result

    async def snapshot(self) -> Snapshot:
        self._call()
        return await super().snapshot()

    async def restore(self, snapshot: Snapshot) -> Observation:
        self._call()
        return await super().restore(snapshot)


class Cut(Softmax):
    """The policy of `choices`, whose server may be gone for good."""

    def __init__(self, kills: Kills) -> None:
        self.kills = kills

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        if self.kills.strikes("policy"):
            raise PolicyFault("the model server is gone for good")
        return await super().draw(context, seeds, max_tokens)


@dataclass(slots=True)
class Found:
    """Gradients [trees, states] of one way, and what became of its trees."""

    gradients: NDArray[np.float64]
    trees: int
    lost: int = 0
    sessions: int = 0
    died: int = 0
    zero_rewards: int = 0  # steps that no one saw the end of and that have a reward all the same
    digests: list[str] = field(default_factory=list)


async def grown(way: str, trees: int, seed: int = 1) -> Found:
    """`trees` trees by best first, disturbed in this way: quiet, mended, for_good or as_zero."""
    kills = Kills(random.Random(seed), way in ("for_good", "as_zero"))
    found, out = Found(np.zeros((0, len(STATES))), trees), []
    task = Task("choices", "t", "choose", horizon=3)

    async def opened() -> Choices:
        return Choices() if way == "quiet" else Mortal(kills)

    for i in range(trees):
        kills.next_tree()
        pool = Pool(opened, 1)  # nothing of the tree before: what this one dies of is its own
        policy = Softmax() if way == "quiet" else Cut(kills)
        tries = 2 if way != "mended" else 60
        try:
            tree = await search(
                replace(task, id=f"t{i}"), pool, policy, rule=best_first(draws=2, root_draws=3), evaluator=Guide(),
                budget=Budget(expansions=3), settings=Settings(seed=seed, close=True, retries=tries),
            )  # fmt: skip
        except (SessionDied, PolicyFault):  # not even a root: told by the caller, as a task without a result
            found.lost += 1
            if way == "as_zero":
                out.append(np.zeros(len(STATES)))
            continue
        found.zero_rewards += sum(map(_made_up, [tree] * len(tree), range(len(tree))))
        found.digests.append(tree.digest())
        if not tree.exact:
            found.lost += 1
            if way == "as_zero":
                out.append(_gradient(tree, as_zero=True))
            continue
        out.append(_gradient(tree))
    found.sessions, found.died = kills.sessions, kills.died
    found.gradients = np.array(out).reshape(-1, len(STATES))
    return found


def _made_up(tree: Tree, node: int) -> bool:
    """A node whose step failed and that has a reward. One whose step was seen, and whose draws failed, may have one."""
    seen = tree.observation[node]
    lost = tree.status[node] is NodeStatus.FAULT and not (seen is not None and seen.fingerprint)
    return lost and not math.isnan(tree.reward(node))


def _gradient(tree: Tree, as_zero: bool = False) -> Any:
    arrays = tree_arrays([tree])
    if as_zero:
        reward = np.where(np.isnan(arrays.reward), 0.0, arrays.reward)
        arrays = arrays.with_(reward=reward)
    return tree_gradient(tree, estimate("split_loo", arrays, root_baseline=0.3, allow_biased=as_zero))


def shift_over_noise(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """|mean − mean| over its noise; 0 where both are the same trees."""
    if one.shape == other.shape and (one == other).all():
        return 0.0
    variance = sum(float(x.var(0, ddof=1).sum()) / len(x) for x in (one, other))
    return float(np.linalg.norm(one.mean(0) - other.mean(0))) / math.sqrt(variance)


def measure(trees: int, seed: int = 1) -> dict[str, tuple[float, str]]:
    """The figures of all ways; the disturbed trees that stay known are of other seeds than the undisturbed ones."""
    quiet = asyncio.run(grown("quiet", trees, seed))
    mended = asyncio.run(grown("mended", trees, seed))
    good = asyncio.run(grown("for_good", round(trees / (1 - SHARE)), seed + 1))
    zero = asyncio.run(grown("as_zero", trees, seed + 1))
    shifts = {name: shift_over_noise(f.gradients, quiet.gradients) for name, f in
              (("mended", mended), ("for_good", good), ("as_zero", zero))}  # fmt: skip
    return {
        "fault_gradient_shift_over_noise": (max(shifts["mended"], shifts["for_good"]), "1"),
        "fault_gradient_shift_over_noise_mended": (shifts["mended"], "1"),
        "fault_gradient_shift_over_noise_for_good": (shifts["for_good"], "1"),
        "fault_gradient_shift_over_noise_as_zero": (shifts["as_zero"], "1"),
        "fault_gradient_trees": (float(trees), "trees"),
        "fault_gradient_sessions_killed": (mended.died / max(mended.sessions, 1), "1"),
        "fault_gradient_trees_changed": (float(_changed(quiet, mended)), "trees"),
        "fault_gradient_trees_unknown": (good.lost / good.trees, "1"),
        "fault_zero_rewards": (float(mended.zero_rewards + good.zero_rewards), "nodes"),
    }


def _changed(quiet: Found, shaken: Found) -> int:
    """Trees that a mended fault has changed; one that was lost counts."""
    pairs = zip(quiet.digests, shaken.digests, strict=False)
    return abs(len(quiet.digests) - len(shaken.digests)) + shaken.lost + sum(a != b for a, b in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trees")
    parser.add_argument("--trees", type=int, help="4,000; 400 with --quick")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures = measure(asked.trees or (400 if asked.quick else 4000))
    for name, (value, unit) in figures.items():
        print(f"{name:44} {value:.4g} {unit}")
    if asked.json:
        write_figures(asked.json, figures, quick=asked.quick)
    held = figures["fault_gradient_trees_changed"][0] == figures["fault_zero_rewards"][0] == 0
    return 0 if held and figures["fault_gradient_shift_over_noise"][0] < 3 else 1


if __name__ == "__main__":
    sys.exit(main())
