"""Training rows out of trees, in TRL's dataset types: prompt-completion, preference, stepwise; and PrefixRL's starts.

    >>> rows = list(dpo_rows(View(tree), min_gap=0.25))

Every function reads one revealed tree and yields plain dictionaries with the columns of `columns.columns`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise, takewhile
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.search.types import Origin
from treewright.training.export.view import FOREIGN, Row, View, known

__all__ = ["SOLVED", "couples_of", "dpo_rows", "known_gap", "prefix_rows", "prm_rows", "sft_rows"]

SOLVED = 1.0 - 1e-6
NO_IDS = "no token ids: the policy gave text alone, and the tokens style needs ids"


UNTRAINED = -100
"""The label of a token that is read and not learned, as torch and transformers have it."""


def tokens_of(row: Row) -> int:
    """Token ids in a row of sft or dpo, prompt and the longer completion; 0 where it has none."""
    own = max((len(row.get(name, ())) for name in ("completion_ids", "chosen_ids", "rejected_ids")), default=0)
    return len(row["input_ids"]) if "input_ids" in row else len(row.get("prompt_ids", ())) + own


def _worth(view: View, paths: str, min_outcome: float) -> list[int]:
    """The leaves to imitate; a tree without any is counted as left out."""
    found = view.best(paths, min_outcome)
    if not found:
        kind = "trees whose chosen path does not return" if paths == "chosen" else "trees without a path that returns"
        view.skip(f"{kind} {min_outcome:g} or more")
    return found


def sft_rows(view: View, paths: str = "best", min_outcome: float = SOLVED) -> Iterator[Row]:
    """One row for each step of the paths worth imitating; a step that several paths share comes once.

    The prompt is everything up to the step, the completion is the step alone, so that no observation is ever a
    target. Invalid output is not imitated: it stays in later prompts, where the policy saw it.

    paths  best | chosen | all, see View.best
    """
    tree, done = view.tree, set[int]()
    for leaf in _worth(view, paths, min_outcome):
        for above, node in pairwise(tree.path(leaf)):
            if node in done:
                continue
            done.add(node)
            if tree.in_turn(node) and view.style != "tokens":
                continue  # the node that ends the turn has all of its text
            if tree.error[node] is not None:
                view.skip("invalid output on a good path is not imitated")
                continue
            if tree.origin[node] in FOREIGN:
                view.skip("injected text on a good path is not imitated")
                continue
            if view.style == "tokens" and not tree.ids[node]:
                view.skip(NO_IDS)
                continue
            prompt_ids, own_ids = list(tree.context_ids(above)), list(tree.ids[node])
            if view.style == "tokens":
                said: Row = {
                    "input_ids": prompt_ids + own_ids,
                    "labels": [UNTRAINED] * len(prompt_ids) + own_ids,
                    "completion_mask": [0] * len(prompt_ids) + [1] * len(own_ids),
                }
            else:
                said = {
                    "prompt": view.prompt(above),
                    "completion": view.completion(node),
                    **view.tools(),
                    "prompt_ids": prompt_ids if own_ids else [],
                    "completion_ids": own_ids,
                }
            yield {
                **said,
                "depth": tree.depth[node],
                "origin": tree.origin[node].value,
                "on_policy": view.on_policy(node),
                "outcome": known(tree.outcome_of(leaf)),
                "value": known(view.q[node]),
                **view.common(node),
            }


def dpo_rows(
    view: View, min_gap: float = 0.1, pairs: str = "extremes", min_ess: float = 0.0, on_policy: bool = False
) -> Iterator[Row]:
    """Preference pairs at branches: two executed siblings whose values differ by at least `min_gap`.

    A sibling's value is the reward of its step plus its SPLIT-LOO value, the mean return of what was drawn below it;
    siblings of unknown value take no part. Siblings of which the style writes the same are no pair: equal messages or
    texts, equal ids in the tokens style.

    pairs      extremes: of each branch the best against the worst, of those that differ; all: every pair of a branch
    min_ess    effective finished leaves that must stand behind both values
    on_policy  leave out pairs with a side that the tree's own weights did not draw; else they are marked
    Raises TreewrightError for a gap that is negative or no number.
    """
    said = (lambda node: view.tree.ids[node]) if view.style == "tokens" else view.completion
    for node, chosen, rejected, gap in couples_of(view, said, min_gap, pairs, min_ess, on_policy):
        yield _pair(view, node, chosen, rejected, gap)


def known_gap(min_gap: float) -> float:
    """The gap. Raises TreewrightError for one that is negative or no number."""
    if not min_gap >= 0:
        kind = "no number" if math.isnan(min_gap) else "negative"
        raise TreewrightError(f"min_gap = {min_gap} is {kind}; 0 takes every pair whose values differ")
    return min_gap


def couples_of(
    view: View, said: Callable[[int], Any], min_gap: float = 0.1, pairs: str = "extremes", min_ess: float = 0.0,
    on_policy: bool = False,
) -> Iterator[tuple[int, int, int, float]]:  # fmt: skip
    """(branch, better child, worse child, gap) of the pairs that `dpo_rows` writes, by the same options.

    said  what is written of a node: children of which it is equal are no pair
    """
    tree, branches = view.tree, 0
    known_gap(min_gap)
    for node in range(len(tree)):
        if len(tree.children[node]) < 2:
            continue
        sides = [
            c
            for c in tree.children[node]
            if view.executed(c)
            and tree.origin[c] not in FOREIGN
            and not math.isnan(view.q[c])
            and view.ess[c] >= min_ess
            and (view.on_policy(c) or not on_policy)
        ]
        sides.sort(key=lambda c: (-view.q[c], c))
        if len(sides) < 2 or not view.readable(node):
            continue
        branches += 1
        good, wrong, words = list[tuple[int, int, int, float]](), list[str](), {c: said(c) for c in sides}
        for better, worse in _by_gap(view, sides) if pairs == "extremes" else combinations(sides, 2):
            gap = float(view.q[better] - view.q[worse])
            if gap <= 0 or gap < min_gap:
                wrong.append("siblings whose values are closer than the minimum gap")
            elif view.style == "tokens" and not (tree.ids[better] and tree.ids[worse]):
                wrong.append(NO_IDS)
            elif words[better] == words[worse]:
                wrong.append("siblings that say the same")
            else:
                good.append((node, better, worse, gap))
        if pairs == "extremes":
            good, wrong = good[:1], wrong[: not good]
        for why in wrong:
            view.skip(why)
        yield from good
    if not branches:
        view.skip("trees without a branch of two executed siblings whose values are known")


def _by_gap(view: View, sides: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs out of nodes that are sorted by value, the widest gap first; of equal gaps the outermost."""
    places = sorted(
        combinations(range(len(sides)), 2), key=lambda at: (view.q[sides[at[1]]] - view.q[sides[at[0]]], at[0], -at[1])
    )
    return [(sides[a], sides[b]) for a, b in places]


def _pair(view: View, node: int, chosen: int, rejected: int, gap: float) -> Row:
    tree = view.tree
    said: Row = {}
    if view.style != "tokens":
        said = {
            "prompt": view.prompt(node),
            "chosen": view.completion(chosen),
            "rejected": view.completion(rejected),
            **view.tools(),
        }
    return {
        **said,
        "prompt_ids": list(tree.context_ids(node)) if tree.ids[chosen] else [],
        "chosen_ids": list(tree.ids[chosen]),
        "rejected_ids": list(tree.ids[rejected]),
        "chosen_value": float(view.q[chosen]),
        "rejected_value": float(view.q[rejected]),
        "gap": gap,
        "chosen_ess": float(view.ess[chosen]),
        "rejected_ess": float(view.ess[rejected]),
        "chosen_node": chosen,
        "rejected_node": rejected,
        "on_policy": view.on_policy(chosen) and view.on_policy(rejected),
        "depth": tree.depth[node],
        **view.common(node),
    }


def prm_rows(view: View, label_threshold: float = 0.0) -> Iterator[Row]:
    """One row for each finished path, successful or not, every step labelled.

    A step is labelled True if its value is above `label_threshold`; with 0 and rewards of 0 and 1 that is: if any
    rollout below it succeeded, the hard estimation of Math-Shepherd (Wang et al., arXiv 2312.08935). `values` are the
    soft labels. TRL joins prompt and completions and reads a label at the end of each completion, so a completion
    after the first opens with the observation that the policy saw before it.
    """
    tree, leaf = view.tree, None
    for leaf in view.leaves():
        path = [i for i in tree.path(leaf) if not tree.in_turn(i)]
        values = [float(view.q[i]) for i in path[1:]]
        if any(map(math.isnan, values)):
            view.skip("paths with a step of unknown value have no labels")
            continue
        shown = ["", *(view.seen(i) + "\n" for i in path[1:-1])]
        yield {
            "prompt": "\n\n".join([view.first(), *(m["content"] for m in view.past())]),
            "completions": [seen + view.said(i)["content"] for seen, i in zip(shown, path[1:], strict=True)],
            "labels": [value > label_threshold for value in values],
            "values": values,
            "nodes": path[1:],
            "outcome": known(tree.outcome_of(leaf)),
            **view.common(leaf),
        }
    if leaf is None:
        view.skip("trees without a finished path")


def prefix_rows(view: View, paths: str = "best", min_outcome: float = SOLVED) -> Iterator[Row]:
    """Starts for prefix-conditioned reinforcement learning: prompt, and the front of a good path up to each turn.

    `prompt_ids + prefix_ids` is exactly what the policy read at `node`; any shorter front of `prefix_ids` is a start
    too. `prefix_mask` is 1 where the policy wrote the token. `actions` lead an environment to the node.
    """
    tree, done = view.tree, set[int]()
    for leaf in _worth(view, paths, min_outcome):
        for node in tree.path(leaf)[1:-1]:
            if node in done:
                continue
            done.add(node)
            ids, written = _context(view, node)
            if view.style == "tokens" and not ids:
                view.skip(NO_IDS)
                continue
            # A template that rewrites old turns may not keep all of the first prompt.
            cut = sum(1 for _ in takewhile(lambda ab: ab[0] == ab[1], zip(tree.delta[0], ids, strict=False)))
            yield {
                **_texts(view, node, ids, cut),
                "prompt_ids": ids[:cut],
                "prefix_ids": ids[cut:],
                "prefix_mask": written[cut:],
                "actions": [action.key for i in tree.path(node)[1:] if (action := tree.action[i]) is not None],
                "depth": tree.depth[node],
                "value": known(view.q[node]),
                "outcome": known(tree.outcome_of(leaf)),
                "origin": _origin(view, node),
                **view.common(node),
            }


def _context(view: View, node: int) -> tuple[list[int], list[int]]:
    """The prompt at `node` and which of its tokens are responses."""
    tree = view.tree
    ids: list[int] = []
    written: list[int] = []
    for i in tree.path(node):
        ids = (ids + list(tree.ids[i]))[: tree.keep[i]] + list(tree.delta[i])
        written = (written + [1] * len(tree.ids[i]))[: tree.keep[i]] + [0] * len(tree.delta[i])
    return ids, written


def _texts(view: View, node: int, ids: list[int], cut: int) -> Row:
    if view.style == "tokens":
        return {}
    if view.style == "text" and view.decode is not None and ids:
        return {"prompt": view.decode(ids[:cut]), "prefix": view.decode(ids[cut:])}
    start, whole = view.prompt(0), view.prompt(node)
    return {"prompt": start, "prefix": whole[len(start) :]}


def _origin(view: View, node: int) -> str:
    """The origin of the turns down to `node`: one name, or 'mixed'."""
    found = {view.tree.origin[i] for i in view.tree.path(node)[1:]}
    return found.pop().value if len(found) == 1 else "mixed" if found else Origin.POLICY.value
