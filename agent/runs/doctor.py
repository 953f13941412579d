"""Why a policy's draws are no actions, and what may help: what `treewright doctor` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treewright.agent.runs.collect import World, tokens_for
from treewright.agent.runs.evaluate import evaluate
from treewright.envs.types import Task
from treewright.search.engine import Settings
from treewright.search.screen import OPEN
from treewright.search.tree import Tree
from treewright.search.types import Budget

__all__ = ["Finding", "causes", "examined", "proposals"]

KINDS = (  # what the message of an invalid action begins with, and what that is called here
    ("no action found", "no action in the text"),
    ("there is text after", "an action, then more text"),
    ("no tool named", "a tool that there is not"),
    ("the arguments are not valid JSON", "arguments that are not JSON"),
    (f"{OPEN} is not closed", "a tool call without its end"),
)
OTHER = "arguments that do not fit the tool"
REFUSED = "an action, which the world refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """One suite under one policy.

    draws, valid  completions, and those of them that were actions: calls of a tool with arguments that it takes
    refused       of these, those that the world refused, such as a look-up of what is not there
    cut           completions that ended because they were as long as they may be
    limit         that length, in tokens
    causes        why the others were none, and what was refused, with counts;  shown  a text of one as it was drawn
    prompt        the first prompt as text, its special tokens spelled out;  tokens  how many it has
    """

    suite: str
    draws: int
    valid: int
    refused: int
    cut: int
    limit: int
    solved: float
    causes: tuple[tuple[str, int], ...]
    shown: str
    prompt: str
    tokens: int

    @property
    def share(self) -> float:
        return self.valid / self.draws if self.draws else float("nan")


def causes(trees: Sequence[Tree]) -> list[tuple[str, int]]:
    """For which reasons draws were no actions, or refused, the commonest first, each draw counted as often as it was
    made."""
    found = Counter[str]()
    for tree in trees:
        for message, action, count in zip(tree.error, tree.action, tree.mult, strict=True):
            if message is not None and action is not None:
                found[REFUSED] += count
            elif message is not None:
                found[next((kind for start, kind in KINDS if message.startswith(start)), OTHER)] += count
    return found.most_common()


async def examined(
    policy: Any, worlds: Mapping[str, World], tasks: Sequence[Task], max_tokens: int, seed: int = 0
) -> list[Finding]:
    """One rollout of the policy for each task, by suite: which draws were actions, and why the others were not.

    max_tokens  of one draw; UNLIMITED: what each suite suggests
    """
    settings = Settings(run="doctor", seed=seed, max_tokens=max_tokens)
    results, trees = await evaluate(tasks, worlds, policy, budget=Budget(expansions=0), settings=settings)
    out = []
    for suite, result in results.items():
        mine = [tree for tree in trees if tree.task.suite == suite]
        nodes = [(tree, i) for tree in mine for i in range(1, len(tree))]
        wrong = [(tree, i) for tree, i in nodes if tree.error[i] is not None]
        wrong.sort(key=lambda node: node[0].action[node[1]] is not None)  # what is no action at all is shown first
        limit = tokens_for(worlds[suite].suite, max_tokens)
        out.append(
            Finding(
                suite=suite,
                draws=sum(tree.mult[i] for tree, i in nodes),
                valid=sum(tree.mult[i] for tree, i in nodes if tree.action[i] is not None),
                refused=sum(tree.mult[i] for tree, i in wrong if tree.action[i] is not None),
                cut=sum(tree.mult[i] for tree, i in nodes if len(tree.ids[i]) >= limit),
                limit=limit,
                solved=result.rate,
                causes=tuple(causes(mine)),
                shown=wrong[0][0].text[wrong[0][1]] if wrong else "",
                prompt=_as_text(policy, tuple(mine[0].delta[0])),
                tokens=len(mine[0].delta[0]),
            )
        )
    return out


def _as_text(policy: Any, ids: Sequence[int]) -> str:
    tokenizer = getattr(policy, "tokenizer", None)
    return str(tokenizer.decode(list(ids))) if tokenizer is not None and ids else ""


def proposals(found: Sequence[Finding], spec: str, options: Mapping[str, Any], oracles: Sequence[str]) -> list[str]:
    """Settings that may raise the share of valid draws, most promising first, as they are typed.

    oracles  suites that have an oracle, which worked examples and imitation need
    """
    weak = [one for one in found if one.draws and one.share < 0.9]
    if not weak:
        return []
    out = list[str]()
    kind, _, rest = spec.partition(":")
    template = options.get("template_options") or {}
    if kind == "hf" and not options.get("grammar"):
        out.append("--set policy.options.grammar=true   (draws can only be actions of the world)")
    taught = [one.suite for one in weak if one.suite in oracles]
    if taught and "examples" not in template and kind in ("hf", "vllm"):
        out.append(
            f"treewright model examples --suites {','.join(taught)} --out examples.json, then "
            "--set policy.options.template_options.examples=examples.json   (solved tasks stand before each task)"
        )
    if any(OPEN in one.shown for one in weak) and template.get("tools_as") != "schema":
        out.append("--set policy.options.template_options.tools_as=schema   (it writes tool calls of its own form)")
    short = [one for one in weak if one.cut > one.draws / 4]
    if short:
        longer = 2 * max(one.limit for one in short)
        out.append(f"--set search.max_tokens={longer}   (many draws were cut at their end)")
    if taught and kind in ("hf", "seedling", "vllm") and "@http" not in rest:
        out.append(
            f"treewright train sft --name begun --suites {','.join(taught)} --demos 200 --policy {spec}   (it learns "
            "the form, and what to do)"
        )
    if not out:
        names = ", ".join(f"{one.suite}: {one.causes[0][0]}" for one in weak if one.causes)
        out.append(f"another policy, or a template of your own ({names})")
    return out
