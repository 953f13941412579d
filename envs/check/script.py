"""The actions that a check plays: those of an oracle, or made from the schemas of the tools."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from treewright.envs.check.kit import Kit, Move
from treewright.envs.errors import InvalidAction
from treewright.envs.types import Action, Call, Environment, ToolSpec, Turn, seed_of

__all__ = ["sample_arguments", "write_script"]


async def write_script(kit: Kit, env: Environment, steps: int, rng: random.Random) -> None:
    history = [Turn(None, kit.first)]
    for index in range(steps):
        await asyncio.sleep(0)  # a world that never waits is measured call by call
        specs = await env.actions()
        kit.specs.append(specs)
        key = seed_of(kit.key, index)
        for action in _candidates(kit, history, specs, rng):
            effect = await env.effect(action)
            if not kit.may_execute(effect):
                continue
            try:
                result = await env.step(action, key)
            except InvalidAction:
                continue
            kit.script.append(Move(action, key, result, effect))
            history.append(Turn(action, result.observation))
            break
        else:
            return
        if result.terminated or result.truncated:
            return


def _candidates(kit: Kit, history: Sequence[Turn], specs: Sequence[ToolSpec], rng: random.Random) -> Iterator[Action]:
    if kit.oracle is not None:
        yield kit.oracle(kit.task, history, specs)
        return
    words = f"{kit.task.goal} {history[-1].observation.text}".split()
    for spec in sorted(specs, key=lambda s: (s.terminal, rng.random())):
        for _ in range(8):
            yield Action((Call(spec.name, sample_arguments(spec.parameters, rng, words)),))


def sample_arguments(schema: Mapping[str, Any], rng: random.Random, words: Sequence[str] = ("a",)) -> Any:
    """A value that the JSON schema allows in the common cases; strings are taken from `words`."""
    for choices in ("enum", "examples"):
        if schema.get(choices):
            return rng.choice(list(schema[choices]))
    if "const" in schema:
        return schema["const"]
    for alternatives in ("anyOf", "oneOf"):
        if schema.get(alternatives):
            return sample_arguments(rng.choice(list(schema[alternatives])), rng, words)
    match schema.get("type", "object"):
        case "string":
            return rng.choice(list(words) or ["a"])
        case "integer":
            low = int(schema.get("minimum", 0))
            return rng.randint(low, int(schema.get("maximum", low + 3)))
        case "number":
            least = float(schema.get("minimum", 0.0))
            return rng.uniform(least, float(schema.get("maximum", least + 1.0)))
        case "boolean":
            return rng.random() < 0.5
        case "array":
            return [sample_arguments(schema.get("items", {"type": "string"}), rng, words)]
        case "null":
            return None
    properties, required = schema.get("properties", {}), schema.get("required", ())
    return {
        name: sample_arguments(inner, rng, words)
        for name, inner in properties.items()
        if name in required or rng.random() < 0.5
    }
