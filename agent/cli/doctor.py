"""`treewright doctor`: whether a policy can act in some worlds, why not, and what to set."""

from __future__ import annotations

from typing import Annotated

import typer

from treewright.agent.cli.options import (
    ANEW,
    ConfigFile,
    PolicySpec,
    Sets,
    Suites,
    console,
    go,
    read_config,
    say,
)

__all__ = ["doctor"]


def doctor(
    suites: Suites = None,
    policy: PolicySpec = None,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of each suite, one rollout each.")] = 8,
    show: Annotated[bool, typer.Option(help="Print one prompt of each suite as the policy reads it.")] = True,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Say which draws of a policy are actions, why the others are not, and which settings may help.

    treewright doctor --policy hf:smollm2 --suites kg,workbench
    """
    from rich.table import Table

    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.doctor import Finding, examined, proposals
    from treewright.agent.runs.setup import tasks_for
    from treewright.search.settings import MAX_TOKENS

    cfg = read_config(None, config, set_, suites, policy)
    found = suites_of(cfg)

    async def work() -> list[Finding]:
        async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
            actor = open_proposer(cfg.policy)
            try:
                todo = tasks_for(worlds, "train", 0, tasks)
                return await examined(actor, worlds, todo, cfg.search.max_tokens or MAX_TOKENS, cfg.seed)
            finally:
                await actor.close()

    seen = go(work, ANEW)
    if show:
        for one in seen:
            say(f"--- a prompt of {one.suite}, {one.tokens} tokens ---\n{one.prompt}\n---")
    table = Table("suite", "draws", "valid", "cut", "solved alone", "why not")
    for one in seen:
        why = "\n".join(f"{count} × {cause}" for cause, count in one.causes) or "–"
        table.add_row(
            one.suite, str(one.draws), f"{100 * one.share:.0f} %", str(one.cut), f"{100 * one.solved:.0f} %", why
        )
    console.print(table)
    for one in seen:
        if one.shown:
            say(f"{one.suite}, an invalid draw as it was written: {one.shown[:300]!r}")
    lines = proposals(seen, cfg.policy.spec, cfg.policy.options, [s.name for s in found if s.oracle is not None])
    for line in lines:
        say(f"try: {line}")
    if not lines:
        say("nearly every draw is an action; nothing to mend")
