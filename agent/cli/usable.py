"""Which of a run's trees an update can learn from, why not the others, and what to type then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from treewright.agent.cli.options import TASKS, again, say
from treewright.envs.errors import TreewrightError
from treewright.search.types import Origin

if TYPE_CHECKING:
    from treewright.agent.cli.training import Run
    from treewright.search.tree import Tree

__all__ = ["advice", "in_own_tokens", "nothing_learnt", "sort_trees"]

NO_TOKENS = "without the policy's tokens and log-probs"
OTHER, INEXACT, USED = "drawn by other weights", "inexact", "trained on before"
SOLVED = 1.0 - 1e-6


def sort_trees(run: Run, trees: Sequence[Tree]) -> tuple[list[Tree], Counter[str]]:
    """The trees that an update takes, and how many are left out for which reason."""
    usable, left_out = [], Counter[str]()
    for tree in trees:
        why = _why_not(run, tree)
        if why is None:
            usable.append(tree)
        else:
            left_out[why] += 1
    return usable, left_out


def _why_not(run: Run, tree: Tree) -> str | None:
    settings = run.config.train
    if not has_tokens(tree):
        return NO_TOKENS
    if (tree.tree_id, tree.header.policy_version) in run.trainer.consumed:
        return USED
    age = run.trainer.age_of(tree.header.policy_version)
    if age is None or age > settings.max_staleness:
        return OTHER
    return None if tree.exact or settings.allow_biased else INEXACT


def has_tokens(tree: Tree) -> bool:
    """Some draw of the policy has token ids and log-probs: without them there is nothing to push."""
    return any(tree.ids[i] and tree.logprobs[i] and tree.origin[i] is Origin.POLICY for i in range(1, len(tree)))


def in_own_tokens(run: Run, trees: Sequence[Tree]) -> list[Tree]:
    """The trees whose draws are in the tokens of the model that is trained; says how many others are left out.

    Raises TreewrightError where none is left.
    """
    from treewright.agent.runs.recipes import spoken_by

    own = list(filter(spoken_by(run.trainer.tokenizer), trees))
    if others := len(trees) - len(own):
        say(f"{others} of {len(trees)} trees are in the tokens of another policy and left out")
    if not own:
        raise TreewrightError(f"no tree to learn from; good paths can be imitated: {again(run.config, 'train sft')}")
    return own


def advice(run: Run, left_out: Counter[str]) -> str:
    """What to type when no tree is left, by the reason that most were left out for."""
    (why, _), *_ = left_out.most_common(1) or [("", 0)]
    if why == NO_TOKENS:
        return (
            "a policy that gives text alone cannot be trained by its trees' credit. Imitate the good paths: "
            f"{again(run.config, 'train sft')}"
        )
    if why == INEXACT:
        return f"to train on inexact trees all the same: {again(run.config, 'train')} --set train.allow_biased=true"
    if why == USED:
        return f"for other tasks: {again(run.config, 'collect')} --batch {_next_batch(sum(left_out.values()))}"
    return f"to draw with the newest weights: {again(run.config, 'collect')}"


def nothing_learnt(run: Run, trees: Sequence[Tree], many: int) -> str:
    """Every draw earned what the others did: no checkpoint is made of that. `many`: the trees that the run holds."""
    ends = [[end for leaf in tree.leaves() if (end := tree.outcome_of(leaf)) == end] for tree in trees]
    none = sum(bool(e) and max(e) < SOLVED for e in ends)
    every = sum(bool(e) and min(e) >= SOLVED for e in ends)
    told = f"nothing was learnt, so no checkpoint was made: in {none} of {len(trees)} trees no draw solves the task"
    told += f", in {every} all do, and no tree has draws of different reward to learn from"
    collect = f"{again(run.config, 'collect')} --batch {_next_batch(many)}"
    if none >= every:
        return f"{told}. More draws may help; next: {collect} --set search.root_draws=8"
    return f"{told}. Harder tasks may help; next: {collect}"


def _next_batch(trees: int) -> int:
    """A batch of as many tasks as `collect` takes by itself that begins behind so many trees."""
    return trees // TASKS + 1
