"""Recipes that grow trees as they train: SPaR's rounds, and trees from stored nodes for the prefix recipes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from treewright.agent.config import Config
from treewright.agent.policies.opening import serve_weights
from treewright.agent.policies.policy import Templated
from treewright.agent.runs.collect import World, tokens_for
from treewright.agent.runs.loop import (
    Learner,
    budget_of,
    evaluator_of,
    grow_for_training,
    rule_of,
    settings_of,
    tasks_for,
)
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, ToolSpec
from treewright.search.engine import Keeper
from treewright.search.rooted import Start, search_from
from treewright.search.tree import Tree
from treewright.search.types import Exchange, layers

__all__ = ["encoder_of", "grow_from", "listed_tools", "prefix_rounds", "spar_rounds"]

SOLVED = 1.0 - 1e-6
OnRound = Callable[[int, Mapping[str, float], Sequence[Tree]], None]


def encoder_of(tokenizer: Any, options: Mapping[str, Any] | None = None) -> Callable[[Tree, int], list[Any]]:
    """How imitation reads paths without token ids: prompts and responses as a policy with this tokenizer has them.

    Prompts show the tools that a conversation lists, and actions are written in the form that they ask for.

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
        for node in tree.path(leaf)[1:]:
            prompt = template.context(tree.task, tools, first, turns, base).ids
            text = template.says(tree.text[node], tree.action[node])
            said = template.response(text)
            if tree.error[node] is None:
                rows.append(TokenRow(context=tuple(prompt), response=tuple(said)))
            base = (*prompt, *said)
            turns.append(Exchange(text, tree.action[node], tree.observation[node] or Observation("")))
        return rows

    return encode


def listed_tools(tree: Tree) -> list[ToolSpec]:
    """The tools that an imported conversation lists, as its task keeps them."""
    found = [tool["function"] for tool in tree.task.data.get("tools", ())]
    return [ToolSpec(f["name"], f.get("description") or "", f.get("parameters") or {}) for f in found]


async def grow_from(
    config: Config,
    starts: Sequence[Start],
    worlds: Mapping[str, World],
    policy: Any,
    run: str,
    store: Keeper | None = None,
    index: int = 0,
) -> list[Tree]:
    """One tree from each start as the search section says, in the order of the starts; the seed changes with `index`.

    Raises TreewrightError if a start's suite has no world, and for search.evidence.
    """
    if config.search.evidence is not None:
        raise TreewrightError(
            "search.evidence cannot be asked for below stored turns, which may quote nothing; leave it out here"
        )
    for start in starts:
        if start.task.suite not in worlds:
            raise TreewrightError(f"a stored path is of suite {start.task.suite!r}; opened: {', '.join(worlds)}")
    gates = {name: asyncio.Semaphore(world.pool.size) for name, world in worlds.items()}
    section, evaluator = config.search, evaluator_of(config.search, policy)
    templated = next((p for p in layers(policy) if isinstance(p, Templated)), None)
    respond = templated.template.response if templated is not None else None

    async def one(i: int, start: Start) -> Tree:
        world = worlds[start.task.suite]
        settings = settings_of(section, run=run, attempt=i, seed=config.seed + index)
        settings = replace(settings, max_tokens=tokens_for(world.suite, settings.max_tokens))
        async with gates[start.task.suite]:
            return await search_from(
                start, world.suite.open, policy, rule=rule_of(section), evaluator=evaluator, budget=budget_of(section),
                settings=settings, store=store, respond=respond,
            )  # fmt: skip

    return list(await asyncio.gather(*(one(i, start) for i, start in enumerate(starts))))


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
    store: Keeper | None = None,
    on_round: OnRound | None = None,
) -> list[dict[str, float]]:
    """`updates` rounds of a prefix recipe: choose starts, grow from them with the present weights, train, serve.

    good    stored trees whose successful paths PrefixRL and Prefix-RFT start in; PPPO draws its own fronts each round
    starts  most trees of a round
    """
    from treewright.training.recipes import prefix

    recipe = prefix.recipe(name)
    out = []
    for index in range(updates):
        share = prefix.share_at(index, updates, recipe.first, recipe.last)
        run = f"{config.name}/{name}/{learner.trainer.steps}"
        if recipe.drawn:
            each = max(1, starts // (config.search.root_draws * len(worlds)))
            tasks = tasks_for(worlds, "train", index, each)
            drawn = await grow_for_training(config, tasks, worlds, policy, f"{run}/fronts", index, store)
            found = prefix.drawn_starts([t for t in drawn if t.exact], share)
        else:
            found = prefix.good_starts(good, share, min_outcome)
        if not found:
            raise TreewrightError(f"{name}: no stored path to start from; collect trees that succeed first")
        turn = (index * starts) % len(found) if not recipe.drawn else 0
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
        stats |= {"share": share, "starts": float(len(chosen)), "inexact": float(len(trees) - len(usable))}
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
        tasks = tasks_for(worlds, "train", index, config.loop.tasks, config.loop.suite_tasks)
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
