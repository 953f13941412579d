"""The packaged model on `market`: what some hundred episodes of the expert teach it, policy alone on held-out tasks."""

from __future__ import annotations

import tempfile
from pathlib import Path

__all__ = ["taught"]


async def taught(demos: int, epochs: int, held_out: int, seed: int = 0) -> dict[str, tuple[float, str]]:
    """As `treewright train sft --suites market --demos … --epochs …` does it; the interval is the paired one."""
    from treewright.agent.config import load_config
    from treewright.agent.policies.prompts import prompt_options, template_for
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.evaluate import paired_gain
    from treewright.agent.runs.imitation import alone, episode_rows, oracle_episodes
    from treewright.agent.runs.loop import make_trainer, model_folder
    from treewright.agent.runs.setup import tasks_for
    from treewright.training.recipes.imitate import imitation_rate, learn_rows

    with tempfile.TemporaryDirectory(prefix="treewright-web-") as folder:
        given = ["policy.spec=seedling", 'worlds.suites=["market"]', f"folder={Path(folder) / 'run'}", f"seed={seed}"]
        cfg = load_config(None, given)
        trainer = make_trainer(cfg, model_folder(cfg.policy.spec))
        template = template_for(trainer.tokenizer, **prompt_options(cfg.policy.options))
        async with open_worlds(suites_of(cfg), cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
            episodes = await oracle_episodes(worlds, tasks_for(worlds, "train", 0, demos), seed)
            todo = tasks_for(worlds, "test", 0, held_out)
            before = await alone(trainer, cfg.policy.options, worlds, todo, seed)
            rows = [episode_rows(episode, template) for episode in episodes]
            learn_rows(trainer, rows, lr=imitation_rate(trainer.model), epochs=epochs, batch=8, seed=seed)
            after = await alone(trainer, cfg.policy.options, worlds, todo, seed)
    gain, low, high = paired_gain(before["market"], after["market"])
    return {
        "market_taught_demos": (len(episodes), "episodes"),
        "market_taught_tasks": (len(todo), "held-out tasks"),
        "market_taught_before": (100 * before["market"].rate, "%"),
        "market_taught_after": (100 * after["market"].rate, "%"),
        "market_taught_gain_points": (gain, "points"),
        "market_taught_gain_low": (low, "points"),
        "market_taught_gain_high": (high, "points"),
    }
