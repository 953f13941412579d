"""`treewright collector`: one more process that grows trees for a loop, on this machine or another."""

from __future__ import annotations

from treewright.agent.cli.options import ConfigFile, Name, PolicySpec, Sets, read_config, resumable, say
from treewright.envs.errors import TreewrightError

__all__ = ["collector_command"]


def collector_command(
    name: Name = None, policy: PolicySpec = None, config: ConfigFile = None, set_: Sets = None
) -> None:
    """Grow trees for the loop NAME until it has ended. It needs the run's folder and its PostgreSQL store, no more.

    The loop must have been begun with loop.collectors, 0 if all of them are started so.

      treewright collector --name big
    """
    from treewright.agent.runs.collectors import collector

    cfg = read_config(name, config, set_, None, policy)
    if cfg.store is None or not cfg.store.startswith("postgres"):
        raise TreewrightError(
            f"run {cfg.name!r} has no PostgreSQL store to lease from; begin its loop with --set loop.collectors=0 "
            "--set store=postgresql://USER@HOST/NAME"
        )
    with resumable("trees that were finished are stored, the others go on elsewhere"):
        grown = collector(cfg.model_dump_json(), cfg.store, cfg.loop.lease, stays=True)
    say(f"the loop has ended; {grown} trees were grown here")
