"""Recipes that grow trees as they train: SPaR's rounds, and trees from stored nodes for the prefix recipes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treewright.agent.config import Config
from treewright.agent.policies.opening import serve_weights
from treewright.agent.runs.collect import World
from treewright.agent.runs.loop import Learner, grow_for_training, tasks_of_round
from treewright.agent.runs.starts import grow_from
from treewright.agent.runs.success import success_by_suite
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, ToolSpec
from treewright.search.engine import Keeper
from treewright.search.tree import Tree
from treewright.search.types import Exchange

__all__ = ["encoder_of", "grow_from", "listed_tools", "prefix_rounds", "spar_rounds", "spoken_by"]

SOLVED = 1.0 - 1e-6
OnRound = Callable[[int, Mapping[str, float], Sequence[Tree]], None]


def encoder_of(tokenizer: Any, options: Mapping[str, Any] | None = None) -> Callable[[Tree, int], list[Any]]:
    """How imitation reads paths without token ids: prompts and responses as a policy with this tokenizer has them.

    Prompts show the tools that a conversation lists, and actions are written in the form that they ask for. Those of an
    agent's trees are the agent's requests, as the policy behind it would read them.

    options  of the policy (`policy.options`), for its template, window and template_options
    """
    from treewright.agent.policies.prompts import prompt_options, template_for
    from treewright.training.pack import TokenRow

    given = prompt_options(options or {})
    more = given.pop("template_options", None) or {}
    template = template_for(tokenizer, **given, **more)

    def encode(tree: Tree, leaf: int) -> list[Any]:
        rows, turns, base = [], list[Exchange](), tuple[int, ...]()
        first, tools = tree.observation[0] or Observation(""), listed_tools(tree)
        reader: Any = _of_agent(template) if any(part.get("type") == "request" for part in first.parts) else template
        for node in tree.path(leaf)[1:]:
            prompt = reader.context(tree.task, tools, first, turns, base).ids
            text = template.says(tree.text[node], tree.action[node])
            said = template.response(text)
            if tree.error[node] is None:
                rows.append(TokenRow(context=tuple(prompt), response=tuple(said)))
            base = (*prompt, *said)
            turns.append(Exchange(text, tree.action[node], tree.observation[node] or Observation("")))
        return rows

    return encode


@dataclass(frozen=True, slots=True)
class _Reader:
    """A policy as far as its prompts go."""

    template: Any
    name: str = "reader"
    stats: None = None

    def context(self, *told: Any) -> Any:
        return self.template.context(*told)


def _of_agent(template: Any) -> Any:
    from treewright.agent.gateway.around import AgentPolicy

    reader: Any = _Reader(template)
    return AgentPolicy(reader)


def spoken_by(tokenizer: Any) -> Callable[[Tree], bool]:
    """Whether the token ids of a tree's draws spell their texts under this tokenizer: else another one made them, as
    those of scripts are bytes."""
    from treewright.agent.policies.encoder import Encoder

    encoder, size = Encoder(tokenizer), len(tokenizer)

    def spells(ids: Sequence[int], text: str) -> bool:
        return max(ids) < size and text.strip() in encoder.text(ids)

    def spoken(tree: Tree) -> bool:
        said = [(tree.ids[i], tree.text[i]) for i in range(1, len(tree)) if tree.ids[i] and tree.text[i].strip()]
        return not said or any(spells(ids, text) for ids, text in said)

    return spoken


def listed_tools(tree: Tree) -> list[ToolSpec]:
    """The tools that an imported conversation lists, as its task keeps them."""
    found = [tool["function"] for tool in tree.task.data.get("tools", ())]
    return [ToolSpec(f["name"], f.get("description") or "", f.get("parameters") or {}) for f in found]


async def prefix_rounds(
    config: Config,
    name: str,
    worlds: Mapping[str, World],
    policy: Any,
    learner: Learner,
    good: Sequence[Tree],
    *,
    updates: int,
    starts: int,
    min_outcome: float = SOLVED,
    unit: str = "turn",
    share: tuple[float, float] | None = None,
    target: float | None = None,
    store: Keeper | None = None,
    on_round: OnRound | None = None,
) -> list[dict[str, float]]:
    """`updates` rounds of a prefix recipe: choose starts, grow from them with the present weights, train, serve.

    good    stored trees whose successful paths PrefixRL and Prefix-RFT start in; PPPO draws its own fronts each round
    starts  most trees of a round
    unit    turn | token: where a front may end
    share   of a path that is given, in the first and the last round; None: the recipe's
    target  success at which fronts get shorter: then measured success, not the round, changes the share
    """
    from treewright.training.recipes import prefix

    recipe = prefix.recipe(name)
    first, last = share or (recipe.first, recipe.last)
    out: list[dict[str, float]] = []
    given = first
    for index in range(updates):
        if target is None:
            given = prefix.share_at(index, updates, first, last)
        run = f"{config.name}/{name}/{learner.trainer.steps}"
        if recipe.from_draws:
            each = max(1, starts // (config.search.root_draws * len(worlds)))
            few = config.loop.model_copy(update={"tasks": each, "suite_tasks": {}})
            tasks = tasks_of_round(worlds, few, index)
            drawn = await grow_for_training(config, tasks, worlds, policy, f"{run}/fronts", index, store)
            found = prefix.drawn_starts([t for t in drawn if t.exact], given, unit)
        else:
            found = prefix.good_starts(good, given, min_outcome, unit)
        if not found:
            raise TreewrightError(f"{name}: no stored path to start from; collect trees that succeed first")
        turn = (index * starts) % len(found) if not recipe.from_draws else 0
        chosen = [*found[turn:], *found[:turn]][:starts]
        trees = await grow_from(config, chosen, worlds, policy, run, store, index)
        usable = [(t, s.mass) for t, s in zip(trees, chosen, strict=True) if t.exact or config.train.allow_biased]
        if not usable:
            raise TreewrightError(f"{name}: every tree is inexact, the first because {trees[0].reasons[0]}")
        stats = await asyncio.to_thread(
            prefix.learn, learner.trainer, name, [t for t, _ in usable], [m for _, m in usable]
        )
        saved = await asyncio.to_thread(learner.save, {"recipe": name})
        await serve_weights(policy, saved.path)
        stats |= {"share": given, "starts": float(len(chosen)), "inexact": float(len(trees) - len(usable))}
        if target is not None:
            success = success_by_suite([t for t, _ in usable])
            stats["success"] = sum(success.values()) / len(success)
            given = prefix.next_share(given, stats["success"], target=target)
        out.append(stats)
        if on_round is not None:
            on_round(index, stats, [t for t, _ in usable])
    return out


async def spar_rounds(
    config: Config,
    worlds: Mapping[str, World],
    policy: Any,
    learner: Learner,
    *,
    rounds: int,
    beta: float = 0.1,
    store: Keeper | None = None,
    on_round: OnRound | None = None,
) -> list[dict[str, float]]:
    """SPaR's iteration: search, refined ≻ original, DPO against the weights of the round before, serve, again.

    A round in which no failed attempt was mended trains on nothing and says so in `pairs`.
    """
    from treewright.training.recipes.prefer import dpo, spar_pairs

    out = []
    for index in range(rounds):
        run = f"{config.name}/spar/{learner.trainer.steps}"
        tasks = tasks_of_round(worlds, config.loop, index)
        trees = await grow_for_training(config, tasks, worlds, policy, run, index, store)
        usable = [t for t in trees if t.exact or config.train.allow_biased]
        pairs = spar_pairs(usable)
        stats: dict[str, float] = {"pairs": 0.0}
        if pairs:
            stats = await asyncio.to_thread(dpo, learner.trainer, pairs, beta=beta)
            saved = await asyncio.to_thread(learner.save, {"recipe": "spar"})
            await serve_weights(policy, saved.path)
        stats |= {"trees": float(len(usable)), "inexact": float(len(trees) - len(usable))}
        out.append(stats)
        if on_round is not None:
            on_round(index, stats, usable)
    return out
