"""How the seedling for the web is made: its demonstrations, sizes and schedule. `treewright seedling --web FOLDER`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treewright.agent.seedling import FOLDER
from treewright.agent.seedling.build import Plan, Say, build_seedling
from treewright.agent.seedling.card import WEB
from treewright.agent.seedling.demos import Noise
from treewright.agent.seedling.train import Recipe
from treewright.envs.types import Suite

__all__ = ["PLANS", "RECIPE", "build_web"]

PLANS: Mapping[str, Plan] = {
    "market": Plan(6000, noise=Noise(rate=0.38), share=2.2, right=True),
    "bazaar": Plan(600, noise=Noise(rate=0.3), share=0.15, right=True),
    "miniwob:simple": Plan(
        1000, noise=Noise(rate=0.7, terminal=0.45), share=0.9, gentle=1400, right=True, gives_up="done"
    ),
}
RECIPE = Recipe(steps=3600, batch_tokens=2048, lr=4e-3, muon_lr=4e-3, gentle=0.85, cool=0.4, seen_weight=0.0)


def build_web(
    out: Path | str, *, threads: int = 2, work: Path | str = "runs/seedling-web", say: Say = print
) -> dict[str, Any]:
    """Makes the model from nothing and writes it to `out`, see `build_seedling`."""
    return build_seedling(
        out, PLANS, recipe=RECIPE, threads=threads, work=work, plans=PLANS, shown=_without_browser, begin=FOLDER,
        drills=2.0, held_out=100, about=WEB, say=say,
    )  # fmt: skip


def _without_browser(suite: Suite) -> Suite:
    """Where demonstrations are taken: a site whose pages can be read without a browser costs a hundredth."""
    from treewright.envs.web.plain import plain_suite

    return plain_suite(suite) if suite.name in ("market", "bazaar") else suite
