"""The line that goes on after a command, true in every situation."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from treewright.agent.cli.options import again, say
from treewright.agent.cli.usable import has_tokens
from treewright.agent.config import SETTLED

if TYPE_CHECKING:
    from treewright.agent.config import Config
    from treewright.search.tree import Tree

__all__ = ["after_collecting", "collect_anew", "tell_of_invalid", "valid_share"]

SOLVED = 1.0 - 1e-6
TRAINABLE = ("seedling", "hf", "vllm")


def after_collecting(cfg: Config, trees: Sequence[Tree]) -> str:
    """What to type once trees are there: to train on them if that can be, else to use them in another way."""
    if any(tree.task.split != "train" for tree in trees):
        return again(cfg, "show")  # held-out tasks are looked at, not trained on
    if cfg.policy.spec.partition(":")[0] in TRAINABLE and any(map(has_tokens, trees)):
        reasons = Counter(reason for tree in trees for reason in tree.reasons)
        line = again(cfg, "train")
        if trees and not any(tree.exact for tree in trees):
            (why, _), *_ = reasons.most_common(1)
            return f"{line} --set train.allow_biased=true   (no tree is exact: {why})"
        return line
    if any(tree.outcome_of(leaf) >= SOLVED for tree in trees for leaf in tree.leaves()):
        folder = shlex.quote(f"data/{cfg.name}")  # text alone: no credit without the policy's tokens
        return f"{again(cfg, f'export {folder}')} --formats sft --file-type jsonl"
    return again(cfg, "show")


def collect_anew(cfg: Config, what: str, *settings: str) -> str:
    """A collection in the same worlds under another name: finished trees are not grown again in another way."""
    words = ["treewright", "collect", "--name", f"{cfg.name}-{what}"]
    if (kept := cfg.home / SETTLED).is_file():
        words += ["--config", str(kept)]
    return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])


def valid_share(trees: Sequence[Tree]) -> float:
    """Share of the draws that were actions of the world, each counted as often as it was made; NaN without draws."""
    nodes = [(tree, i) for tree in trees for i in range(1, len(tree))]
    valid = sum(tree.mult[i] for tree, i in nodes if tree.action[i] is not None and tree.error[i] is None)
    draws = sum(tree.mult[i] for tree, i in nodes)
    return valid / draws if draws else math.nan


def tell_of_invalid(trees: Sequence[Tree]) -> None:
    """Says which worlds the policy cannot act in at all, and what may help."""
    for suite in dict.fromkeys(tree.task.suite for tree in trees):
        if valid_share([tree for tree in trees if tree.task.suite == suite]) == 0:
            say(
                f"{suite}: no draw was an action of this world, so nothing was explored. The packaged model knows its "
                "own suites alone: name another policy, hold it to the grammar (--set policy.options.grammar=true), or "
                "show it examples (--set 'policy.contexts=[\"examples:2\"]' --set policy.memory=STORE)"
            )
