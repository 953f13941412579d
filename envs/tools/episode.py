"""What a session of an MCP server knows beside the server, and its JSON in snapshots."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from treewright.envs.tools.living import Entry
from treewright.envs.types import Observation, Task

__all__ = ["Episode", "episode_from_json", "episode_to_json"]


@dataclass(slots=True)
class Episode:
    """What a session knows beside the server: part of every snapshot.

    server  the one running server in which this can go on; '' where another one can be brought here
    """

    task: Task
    chain: str
    shown: Observation
    ended: bool = False
    journal: tuple[Entry, ...] = ()
    server: str = ""


def episode_to_json(episode: Episode) -> dict[str, Any]:
    shown = episode.shown
    return {
        "task": {f.name: getattr(episode.task, f.name) for f in dataclasses.fields(Task)},
        "chain": episode.chain,
        "ended": episode.ended,
        "journal": [list(entry) for entry in episode.journal],
        "server": episode.server,
        "shown": [shown.text, shown.fingerprint, shown.provenance, list(shown.parts)],
    }


def episode_from_json(data: Mapping[str, Any]) -> Episode:
    text, fingerprint, provenance, parts = data["shown"]
    shown = Observation(text, fingerprint, provenance=provenance, parts=tuple(parts))
    journal = tuple((key, answer) for key, answer in data["journal"])
    return Episode(Task(**data["task"]), data["chain"], shown, data["ended"], journal, data.get("server", ""))
