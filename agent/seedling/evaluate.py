"""How often the model solves tasks on its own: whole episodes, many sessions in one batch.

A small loop for building and checking the seedling; the figures that the documentation quotes come from the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from treewright.agent.seedling.demos import error_text
from treewright.agent.seedling.text import Encoder
from treewright.envs.errors import InvalidAction
from treewright.envs.types import Environment, Suite, Task, require_sandbox, seed_of
from treewright.envs.waiting import together
from treewright.search.screen import parse_action, validate_action

__all__ = ["Episode", "evaluate", "respond"]


@dataclass
class Episode:
    """One task under way: what was shown, what was answered (token ids), and how it ended."""

    task: Task
    env: Environment
    observations: list[str]
    responses: list[list[int]]
    reward: float = 0.0
    ended: bool = False


@torch.inference_mode()
def respond(
    model: Any, encoder: Encoder, prompts: Sequence[Sequence[int]], most: int, generator: torch.Generator | None
) -> list[list[int]]:
    """One response per prompt, `<|end|>` included where it was reached; greedy without a generator."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[encoder.pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1)
    responses: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    place = places[:, -1:]
    for _ in range(most):
        logits = out.logits[:, -1].float()
        if generator is None:
            drawn = logits.argmax(-1)
        else:
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        for row in list(open_rows):
            responses[row].append(int(drawn[row]))
            if responses[row][-1] == encoder.end:
                open_rows.discard(row)
        if not open_rows:
            break
        place = place + 1
        mask = torch.cat((mask, mask.new_ones(len(prompts), 1)), 1)
        out = model(
            input_ids=drawn[:, None],
            attention_mask=mask,
            position_ids=place,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
    return responses


async def evaluate(
    model: Any,
    encoder: Encoder,
    suite: Suite,
    tasks: Sequence[Task],
    *,
    greedy: bool = False,
    seed: int = 0,
    sessions: int = 100,
) -> list[Episode]:
    """Plays every task once and returns the episodes; their rewards are the truth."""
    generator = None if greedy else torch.Generator().manual_seed(seed_of("evaluate", seed, suite.name))
    envs: list[Environment] = []

    async def opened() -> None:
        envs.append(await suite.open())

    done: list[Episode] = []
    try:
        await together(opened() for _ in range(min(sessions, len(tasks))))
        for at in range(0, len(tasks), len(envs)):
            pairs = zip(tasks[at : at + len(envs)], envs, strict=False)
            episodes = await together(_begin(task, env, seed) for task, env in pairs)
            await _play(model, encoder, suite, episodes, generator, seed)
            done += episodes
    finally:
        await asyncio.gather(*(env.close() for env in envs), return_exceptions=True)
    return done


async def _begin(task: Task, env: Environment, seed: int) -> Episode:
    require_sandbox(env, "the seedling's evaluation")
    first = await env.reset(task, seed_of("reset", seed, task.id))
    return Episode(task, env, [first.text], [])


async def _play(
    model: Any, encoder: Encoder, suite: Suite, episodes: Sequence[Episode], generator: Any, seed: int
) -> None:
    while under_way := [e for e in episodes if not e.ended]:
        prompts = [encoder.prompt(e.task.suite, e.task.goal, e.observations, e.responses) for e in under_way]
        answers = respond(model, encoder, prompts, suite.max_tokens or 64, generator)
        await together(_act(e, ids, encoder, seed) for e, ids in zip(under_way, answers, strict=True))


async def _act(episode: Episode, ids: list[int], encoder: Encoder, seed: int) -> None:
    text = encoder.tokenizer.decode(ids[:-1] if ids[-1] == encoder.end else ids)
    episode.responses.append(ids)
    try:
        key = seed_of("step", seed, episode.task.id, len(episode.responses))
        tools = await episode.env.actions()
        action = parse_action(text, tools)
        validate_action(action, tools)
        result = await episode.env.step(action, key)
    except InvalidAction as error:
        episode.observations.append(error_text(error))
    else:
        episode.observations.append(result.observation.text)
        episode.reward += result.reward
        episode.ended = result.terminated or result.truncated
    episode.ended = episode.ended or len(episode.responses) >= episode.task.horizon
