"""A small taskset written for verifiers 0.4: two tools over a State, a reward over the trace."""

import verifiers.v1 as vf
from pydantic_config import BaseConfig


class Cart(vf.State):
    items: list[str] = []


class ShopTools(vf.Toolset[BaseConfig, Cart]):
    @vf.tool
    async def add(self, item: str) -> str:
        """Puts an item into the cart."""
        self.state.items = [*self.state.items, item]
        return f"{len(self.state.items)} items"

    @vf.tool(name="list_cart")
    def show(self) -> list[str]:
        """What is in the cart."""
        return self.state.items


class ShopData(vf.TaskData):
    wanted: str


class ShopTask(vf.Task[ShopData, Cart]):
    @classmethod
    def toolsets(cls, config):
        return [ShopTools(BaseConfig())]

    @vf.reward(weight=0.75)
    async def bought(self, trace) -> float:
        return float(trace.state.items == [self.data.wanted])

    @vf.reward(weight=0.25)
    async def told(self, trace) -> float:
        return float(trace.last_reply == "bought")


class Shop(vf.Taskset[ShopTask]):
    def load(self):
        for wanted in ("tea", "milk", "rice"):
            yield ShopTask(ShopData(prompt=f"buy {wanted} and answer bought", wanted=wanted))


def taskset():
    return Shop(vf.TasksetConfig(id="shop"))
