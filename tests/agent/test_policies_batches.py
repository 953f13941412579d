"""Who is in a batch of draws: all that are about to ask, and no more than fit."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from treewright.agent.policies.hf import HFPolicy

from .small import compact, context, prompt, qwen3


@pytest.mark.parametrize("slow", [0.0, 0.003], ids=["at once", "slowly"])
async def test_a_batch_waits_for_callers_of_this_process_not_for_the_clock(
    slow: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, sizes = HFPolicy(qwen3(), compact()), list[int]()
    run = one._run

    def counted(requests: Any) -> Any:
        sizes.append(len(requests))
        time.sleep(slow * (len(sizes) % 2))
        return run(requests)

    async def caller(number: int) -> None:
        ids = prompt(number, 9)
        for _ in range(3):
            for _ in range(number):  # what a search does between two draws
                await asyncio.sleep(0)
            (done,) = await one.draw(context(ids), [number], 3)
            ids += done.token_ids

    monkeypatch.setattr(one, "_run", counted)
    await asyncio.gather(*(caller(number) for number in range(8)))
    assert sizes == [8, 8, 8]
    await one.close()


async def test_callers_that_never_rest_do_not_keep_a_full_batch_waiting() -> None:
    one = HFPolicy(qwen3(), compact(), max_batch_tokens=60)
    asked = list[asyncio.Task[Any]]()

    async def flood() -> None:
        while True:
            asked.append(asyncio.ensure_future(one.draw(context(prompt(0, 9)), [1], 3)))
            await asyncio.sleep(0)

    flooding = asyncio.ensure_future(flood())
    await asyncio.sleep(0.01)
    await asyncio.wait_for(asyncio.shield(asked[0]), 60)
    flooding.cancel()
    for task in asked:
        task.cancel()
    await asyncio.gather(flooding, *asked, return_exceptions=True)
    await one.close()
