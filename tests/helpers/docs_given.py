"""What the pages call a model, a world or a tree of yours: small ones, for blocks that are marked `run with NAME`."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
from pathlib import Path
from typing import Any

from not_none import not_none

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def changing_world() -> dict[str, Any]:
    """A grid that says what its steps cost, and what changes in it."""
    from treewright.benchmarks.repair import Grid, Terrain
    from treewright.envs.types import Action, Task

    return {
        "env": Grid(Terrain.make(4, 4, 0)), "task": Task("grid", "grid", ""),
        "state": "0", "action": Action.of("east"), "goal": "15",
    }  # fmt: skip


@functools.cache
def searched() -> dict[str, Any]:
    """A maze, a policy for it, and a tree of both."""
    from walker import Walker

    import treewright
    from treewright.envs.maze import SUITE
    from treewright.search import Budget, Settings, rule, search
    from treewright.search.restore import Pool

    task, policy = SUITE.tasks("train", 1)[0], Walker()
    tree = asyncio.run(search(task, SUITE, policy, budget=Budget(expansions=4)))
    inner = next(i for i in range(1, len(tree)) if tree.drawn[i])
    return {
        "treewright": treewright, "search": search, "Settings": Settings, "rule": rule,
        "task": task, "suite": SUITE, "pool": Pool(SUITE.open, 2), "policy": policy, "tree": tree, "node": inner,
        "nodes": (),
    }  # fmt: skip


def an_agent() -> dict[str, Any]:
    """The compiled agent of examples/langgraph_agent.py."""
    spec = importlib.util.spec_from_file_location("agent_of_the_example", EXAMPLES / "langgraph_agent.py")
    module = importlib.util.module_from_spec(not_none(spec))
    not_none(not_none(spec).loader).exec_module(module)
    return {**searched(), "agent": module.agent}


def two_readers() -> dict[str, Any]:
    """Ways to answer a question with a confidence, how it splits, and answers whose truth is known."""
    from treewright.search.planning.all_nodes import Answer, Parts

    async def closed(question: str) -> Answer:
        return Answer("ada" if "boss" in question else "eva", 0.4)

    async def opened(question: str) -> Answer:
        return Answer("ben", 0.7)

    def split(question: str) -> Parts | None:
        return Parts(("ada boss", "#1 rival")) if question == "ada boss rival" else None

    right = [True, False, True]
    return {
        "closed": closed, "opened": opened, "split": split,
        "p": [0.9, 0.2, 0.8], "right": right, "q": [0.6, 0.5, 0.7], "also_right": right,
    }  # fmt: skip


@functools.cache
def small_model() -> dict[str, Any]:
    """A tiny decoder that is prepared for trees, a tree of its tokens, and attention's inputs over the tree."""
    import torch
    from search_trees import VOCAB, tiny_model

    from treewright.kernels import TreePlan, tree_attention
    from treewright.training.model import prepare

    plan = TreePlan.from_segments([-1, 0, 0], [4, 3, 2])
    model = tiny_model()
    prepare(model)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(heads, 9, 8, generator=generator) for heads in (2, 1, 1))
    return {
        "torch": torch, "model": model, "plan": plan, "tree_attention": tree_attention, "q": q, "k": k, "v": v,
        "ids": torch.arange(9) % VOCAB, "prompt_ids": (1, 2, 3), "response_ids": (4, 5),
    }  # fmt: skip


def a_prompt() -> dict[str, Any]:
    """The same decoder, a prompt of a hundred tokens, and the first token of eight draws."""
    import torch
    from search_trees import VOCAB

    return {**small_model(), "ids": torch.arange(100) % VOCAB, "tokens": torch.arange(8)}
