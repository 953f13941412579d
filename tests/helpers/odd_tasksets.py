"""Tasksets for verifiers 0.4 whose rewards need what a rollout of verifiers has around it; and some that do not."""

from __future__ import annotations

from typing import Any

import verifiers.v1 as vf
from shop_taskset import Cart, Shop, ShopData, ShopTask


def taskset_of(kind: Any) -> Any:
    class Made(Shop):
        def load(self) -> Any:
            yield kind(ShopData(prompt="buy tea and answer bought", wanted="tea"))

    return lambda: Made(vf.TasksetConfig(id="odd"))


class ByRuntime(ShopTask):
    @vf.reward  # type: ignore[untyped-decorator]
    async def ran(self, trace: Any, runtime: Any) -> float:
        return 1.0


class BySetup(ShopTask):
    async def setup(self, trace: Any, runtime: Any) -> None:
        trace.state.items = ["bread"]


class ByFinalize(ShopTask):
    async def finalize(self, trace: Any, runtime: Any) -> None:
        trace.state.items = []


class InContainer(ShopTask):
    NEEDS_CONTAINER = True


class Unjudged(vf.Task[ShopData, Cart]):  # type: ignore[misc]
    toolsets = ShopTask.__dict__["toolsets"]


class MaybeRuntime(vf.Task[ShopData, Cart]):  # type: ignore[misc]
    toolsets = ShopTask.__dict__["toolsets"]

    @vf.reward  # type: ignore[untyped-decorator]
    async def bought(self, trace: Any, runtime: Any = None) -> float:
        return float(runtime is None and trace.state.items == [self.data.wanted])


class ByResults(vf.Task[ShopData, Cart]):  # type: ignore[misc]
    """Judges by what the tools answered, not by the State."""

    toolsets = ShopTask.__dict__["toolsets"]

    @vf.reward  # type: ignore[untyped-decorator]
    async def answered(self, trace: Any) -> float:
        shown = [(m.name, m.content) for m in trace.messages if m.role == "tool"]
        return float(shown == [("add", "1 items"), ("list_cart", '["tea"]')])


by_runtime, by_setup, by_finalize, in_container, unjudged, maybe_runtime, by_results = map(
    taskset_of, (ByRuntime, BySetup, ByFinalize, InContainer, Unjudged, MaybeRuntime, ByResults)
)
