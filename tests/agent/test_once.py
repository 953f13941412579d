"""Equal questions are asked once: those that come together share the answer, and what failed is asked anew."""

from __future__ import annotations

import asyncio

import pytest

from treewright.agent.policies.once import Once


class Asks:
    def __init__(self, fails: int = 0) -> None:
        self.asked, self.fails = 0, fails

    async def __call__(self) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if self.asked <= self.fails:
            raise ValueError("down")
        return self.asked


async def test_questions_that_come_together_share_one_answer() -> None:
    once, ask = Once[str, int](), Asks()
    assert await asyncio.gather(*(once.get("a", ask) for _ in range(3))) == [1, 1, 1]
    assert await once.get("a", ask) == 1 and "a" in once and once.found("a") == 1 and once.all_found() == [1]


async def test_what_failed_is_not_remembered() -> None:
    once, ask = Once[str, int](), Asks(fails=1)
    with pytest.raises(ValueError, match="down"):
        await once.get("a", ask)
    assert "a" not in once and once.found("a") is None
    assert await once.get("a", ask) == 2


async def test_the_answers_that_were_asked_for_last_are_kept() -> None:
    once, ask = Once[str, int](remembered=2), Asks()
    for key in ("a", "b", "a", "c"):
        await once.get(key, ask)
    assert ("a" in once, "b" in once, "c" in once) == (True, False, True)
