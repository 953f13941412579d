"""A small taskset written for verifiers 0.4: two tools over a State, a reward over the trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf
from pydantic_config import BaseConfig  # type: ignore[import-not-found]


class Cart(vf.State):  # type: ignore[misc]
    items: list[str] = []


class ShopTools(vf.Toolset[BaseConfig, Cart]):  # type: ignore[misc]
    @vf.tool  # type: ignore[untyped-decorator]
    async def add(self, item: str) -> str:
        """Puts an item into the cart."""
        self.state.items = [*self.state.items, item]
        return f"{len(self.state.items)} items"

    @vf.tool(name="list_cart")  # type: ignore[untyped-decorator]
    def show(self) -> list[str]:
        """What is in the cart."""
        items: list[str] = self.state.items
        return items


class ShopData(vf.TaskData):  # type: ignore[misc]
    wanted: str


class ShopTask(vf.Task[ShopData, Cart]):  # type: ignore[misc]
    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return [ShopTools(BaseConfig())]

    @vf.reward(weight=0.75)  # type: ignore[untyped-decorator]
    async def bought(self, trace: Any) -> float:
        return float(trace.state.items == [self.data.wanted])

    @vf.reward(weight=0.25)  # type: ignore[untyped-decorator]
    async def told(self, trace: Any) -> float:
        return float(trace.last_reply == "bought")


class Shop(vf.Taskset[ShopTask]):  # type: ignore[misc]
    def load(self) -> Iterator[ShopTask]:
        for wanted in ("tea", "milk", "rice"):
            yield ShopTask(ShopData(prompt=f"buy {wanted} and answer bought", wanted=wanted))


def taskset() -> Shop:
    return Shop(vf.TasksetConfig(id="shop"))
