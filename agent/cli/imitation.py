"""`treewright train sft --suites …`: demonstrations by oracles, imitated, and held-out success before and after."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from treewright.agent.cli.options import again, bar, console, go, say
from treewright.agent.cli.training import open_run, show_stats
from treewright.envs.errors import TreewrightError

__all__ = ["imitate_oracles"]


def imitate_oracles(
    name: str | None,
    config: Path | None,
    set_: list[str] | None,
    suites: str,
    policy: str | None,
    *,
    demos: int,
    epochs: int,
    rate: float | None,
    batch: int,
    held_out: int,
) -> None:
    """Plays the oracles, trains on what they did as the policy would have read and written it, saves a checkpoint.

    held_out  tasks of each suite's test split on which the policy alone is measured before and after; 0 leaves it out
    """
    from treewright.agent.policies.prompts import prompt_options, template_for
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.imitation import alone, episode_rows, oracle_episodes
    from treewright.agent.runs.setup import left_out, tasks_for
    from treewright.training.recipes.imitate import imitation_rate, learn_rows

    with open_run(name, config, set_, suites, policy, stored=False) as run:
        cfg, trainer = run.config, run.trainer
        found = suites_of(cfg)
        if run.extra.get("recipe") == "sft" and run.extra.get("demos") == demos:
            raise TreewrightError(f"run {cfg.name!r} imitated {demos} demonstrations already; give another --name")
        given = prompt_options(cfg.policy.options)
        more = given.pop("template_options", None) or {}
        template = template_for(trainer.tokenizer, **given, **more)

        async def work() -> None:
            async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
                tasks, skip = tasks_for(worlds, "train", 0, demos), left_out(worlds, demos)
                episodes = await oracle_episodes(worlds, tasks, cfg.seed)
                rows = [episode_rows(episode, template) for episode in episodes]
                longest = max(len(row.context) + len(row.response) for group in rows for row in group)
                say(f"{len(episodes)} of {len(tasks)} demonstrations solve their task; the longest: {longest} tokens")
                todo = tasks_for(worlds, "test", 0, held_out) if held_out else []
                before = await alone(trainer, cfg.policy.options, worlds, todo, cfg.seed) if todo else {}
                for suite, one in before.items():
                    say(f"before  {suite}: {100 * one.rate:.0f} % of {len(one.tasks)} held-out tasks")
                top = rate or imitation_rate(trainer.model)
                with bar("imitating", -(-len(rows) // batch) * epochs) as advance:
                    stats = learn_rows(
                        trainer, rows, lr=top, epochs=epochs, batch=batch, seed=cfg.seed,
                        on_step=lambda *_: advance(None),
                    )  # fmt: skip
                saved = run.learner.save({"recipe": "sft", "demos": demos, "epochs": epochs, "rate": top})
                show_stats(stats)
                run.track(stats, "sft")
                after = await alone(trainer, cfg.policy.options, worlds, todo, cfg.seed) if todo else {}
                _tell(before, after)
                others = f" --set {shlex.quote(f'loop.skip_tasks={json.dumps(skip)}')}" if skip else ""
                say(f"saved {saved.path}; next: {again(cfg, 'loop')}{others}")

        go(work)


def _tell(before: dict[str, Any], after: dict[str, Any]) -> None:
    """A table of held-out success, with the paired interval of the gain."""
    from rich.table import Table

    from treewright.agent.runs.evaluate import paired_gain

    if not after:
        return
    table = Table("suite", "held-out tasks", "before", "after", "gain in points (95 %)")
    for suite, one in after.items():
        gain, low, high = paired_gain(before[suite], one)
        table.add_row(
            suite, str(len(one.tasks)), f"{100 * before[suite].rate:.0f} %", f"{100 * one.rate:.0f} %",
            f"{gain:+.0f} ({low:+.0f} … {high:+.0f})",
        )  # fmt: skip
    console.print(table)
