"""Several engines behind one policy: draws are spread, weights go to all, others stand in for one that fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from treewright.agent.policies.many import ManyPolicy
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING, Colocated, PolicyStats, Sleeper, Trusting, Updatable
from treewright.envs.errors import TreewrightError
from treewright.search.types import Context, PolicyFault


class Engine:
    """Stands for a served model; it notes what it is asked."""

    def __init__(self, name: str) -> None:
        self.name, self.version, self.sure, self.colocated = name, "w0", False, False
        self.sampling: dict[str, Any]
        self.stats, self.sampling, self.template = PolicyStats(), {}, None
        self.loaded: list[Any]
        self.draws: list[Any]
        self.draws, self.loaded, self.dead = [], [], False

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Any]:
        if self.dead:
            raise PolicyFault(f"{self.name} is gone")
        self.draws.append((context.ids, tuple(seeds), self.version))
        self.stats.draws += len(seeds)
        return [(self.name, seed) for seed in seeds]

    async def load_weights(self, path: str | Path, version: str = "") -> str:
        if self.dead:
            raise TreewrightError(f"{self.name} is gone")
        self.loaded.append(str(path))
        self.version = version or f"of {path}"
        self.sure = True
        return self.version

    def given(self, version: str) -> None:
        self.version = version

    async def close(self) -> None:
        self.closed = True


def prompt(number: int) -> Context:
    return Context(keep=0, delta=(number,), ids=(number, 7, 7), messages=())


async def test_draws_of_a_prompt_go_to_one_engine_and_prompts_to_all() -> None:
    engines = [Engine(f"e{i}") for i in range(3)]
    many = ManyPolicy(engines)
    for number in range(60):
        for _ in range(2):
            assert len(await many.draw(prompt(number), [1, 2], 8)) == 2
    homes = [{ids for ids, _, _ in engine.draws} for engine in engines]
    assert all(len(home) > 8 for home in homes) and sum(map(len, homes)) == 60
    assert many.stats.draws == 240 and "3 engines" in many.name


async def test_weights_go_to_all_and_one_that_was_away_gets_them_before_it_draws_again() -> None:
    engines = [Engine("a"), Engine("b")]
    many = ManyPolicy(engines, rest=0.0)
    assert await many.load_weights("step-1") == many.version == "of step-1" and many.sure
    engines[1].dead = True
    for number in range(20):
        await many.draw(prompt(number), [number], 8)  # with the same seed, by the other one
    assert [seeds for _, seeds, _ in engines[0].draws] == [(n,) for n in range(20)]
    assert await many.load_weights("step-2") == "of step-2"
    assert engines[1].version == "of step-1"
    engines[1].dead = False
    for number in range(20):
        await many.draw(prompt(number), [number], 8)
    assert engines[1].loaded == ["step-1", "step-2"] and {v for _, _, v in engines[1].draws} == {"of step-2"}
    for engine in engines:
        engine.dead = True
    with pytest.raises(PolicyFault, match=r"none of them answers; last: . is gone"):
        await many.draw(prompt(1), [1], 8)
    with pytest.raises(TreewrightError, match=r"is gone"):
        await many.load_weights("step-3")
    await many.close()
    assert all(engine.closed for engine in engines)


async def test_a_spec_with_several_addresses_opens_one_policy_over_all_and_takes_a_version() -> None:
    many = ManyPolicy([Engine("a"), Engine("b")])
    many.given("w7")
    await many.draw(prompt(1), [1], 8)
    assert many.version == "w7"
    opened = open_policy("vllm:seedling@http://127.0.0.1:9/v1,http://127.0.0.1:10/v1",
                         tokenizer=str(SEEDLING))  # fmt: skip
    assert isinstance(opened, ManyPolicy)
    assert all(isinstance(opened, kind) for kind in (Updatable, Sleeper, Trusting, Colocated))
    await opened.close()
    with pytest.raises(TreewrightError, match=r"no engine is named"):
        ManyPolicy([])
