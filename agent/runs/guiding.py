"""The loop that evolves policy and value model together: V-STAR's, with the PRM recipe as the value model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from treewright.agent.config import Config
from treewright.agent.judges.vstar import ValueGuided
from treewright.agent.runs.setup import evaluator_of
from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree

__all__ = ["guided", "refresh"]


def guided(config: Config, policy: Any, collectors: bool = False) -> ValueGuided | None:
    """The evaluator whose value model the loop trains anew, with the model that the run has; None where it does not.

    Raises TreewrightError for loop.prm_every with another evaluator than vstar, or with collectors.
    """
    if not config.loop.prm_every:
        return None
    if collectors:
        raise TreewrightError("loop.prm_every guides searches of this process; it does not go with loop.collectors")
    judge = evaluator_of(config.search, policy)
    if not isinstance(judge, ValueGuided):
        raise TreewrightError(
            f"loop.prm_every = {config.loop.prm_every} trains the value model of search.evaluator=vstar, and "
            f"search.evaluator is {config.search.evaluator!r}; set it to vstar, or loop.prm_every to 0"
        )
    if (config.home / "prm" / "prm.json").is_file():
        from treewright.agent.judges.prm import PrmEvaluator

        judge.refresh(PrmEvaluator.load(config.home / "prm"))
    return judge


def refresh(judge: ValueGuided, config: Config, trainer: Any, trees: Sequence[Tree]) -> dict[str, float]:
    """Trains a value model on the trees, from the policy's present weights, and lets the judge go by it; what to log.

    It is saved in the run's folder prm. Blocking. Trees without a known value leave the judge as it is.
    """
    from treewright.agent.judges.prm import PrmEvaluator
    from treewright.training.recipes.prm import Prm, steps_of, train_prm

    usable = [t for t in trees if t.exact or config.train.allow_biased]
    if not steps_of(usable):
        return {"prm_steps": 0.0}
    model = Prm(copy.deepcopy(trainer.model), trainer.tokenizer)
    stats = train_prm(
        model, usable, lr=trainer.lr, max_tokens=config.train.max_tokens, seed=config.seed,
        allow_biased=config.train.allow_biased,
    )  # fmt: skip
    model.model.eval()
    model.save(config.home / "prm", {"run": config.name, "trees": len(usable), **stats})
    judge.refresh(PrmEvaluator(model))
    return {f"prm_{name}": stats[name] for name in ("steps", "brier", "base")}
