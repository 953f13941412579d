"""One running MCP server, and who works in it.

Usually a session has a server of its own. In a live world a server that has answered an irreversible call cannot be
started again in the same state: that would mean to make the call again. Whoever goes on after a commit therefore joins
the server that made it, known by the id that the snapshot carries. The last one to leave ends it.
"""

from __future__ import annotations

import uuid
import weakref
from dataclasses import dataclass, field

from treewright.envs.tools.connection import Connection

__all__ = ["Entry", "Living", "living_server"]

Entry = tuple[str, str]
"""One state-changing call: its canonical JSON (Action.key) and the server's answer."""

_ALL: weakref.WeakValueDictionary[str, Living] = weakref.WeakValueDictionary()


@dataclass(eq=False)
class Living:
    """A server of this process.

    made     the state-changing calls that it has answered, whoever made them
    sent     a call that a live world must not see twice was sent to it, answered or not
    holders  sessions that work in it
    """

    connection: Connection
    made: list[Entry] = field(default_factory=list)
    sent: bool = False
    holders: int = 1
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        _ALL[self.id] = self

    def join(self) -> Living:
        self.holders += 1
        return self

    async def leave(self) -> None:
        """One session fewer; the last one, or anybody who finds it dead, waits until the server is gone."""
        self.holders -= 1
        if self.holders < 1 or self.connection.dead:
            await self.connection.close()


def living_server(id: str) -> Living | None:
    """The server of that id, while it runs in this process."""
    found = _ALL.get(id)
    return None if found is None or found.connection.dead else found
