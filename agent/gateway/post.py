"""Where the requests of running agents arrive and wait for the actions of a search."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from treewright.agent.gateway.asked import Answer, Answered, Asked
from treewright.agent.gateway.errors import ApiError, HalfPair
from treewright.agent.gateway.held import NOTICED, Client
from treewright.envs.secrecy import keep_secret

__all__ = ["Line", "Post", "Waits"]

CREATED = 1_700_000_000  # answers bear this date and the number of the call: a replayed one is the recorded one
HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


@dataclass(slots=True, eq=False)
class Waits:
    """A request that waits for its answers, or has them.

    client  who gets them: after one that hung up, whoever sends the same request again
    since   answers that its run had got when it was sent
    number  of its own answer among those of the run
    """

    asked: Asked
    future: asyncio.Future[list[Answer]]
    client: Client
    since: int = 0
    answers: list[Answer] = field(default_factory=list)
    number: int = -1


@dataclass(slots=True)
class Line:
    """Where the requests of one running agent arrive.

    waiting  those that no session has seen yet;  calls  all of them
    arrived  set with each request, also with one that is sent again
    count    answers that the agent got;  refused_at  what it was when the server refused a request
    """

    waiting: deque[Waits] = field(default_factory=deque)
    calls: list[Waits] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0
    refusal: str = ""
    refused_at: int = -1

    @property
    def refused(self) -> str:
        """The request that the server refused last, unless another one was answered since: its path, and why."""
        return self.refusal if self.refused_at == self.count else ""

    def refuse(self, what: str, error: ApiError) -> None:
        """Notes a request that the server did not answer, unless what the policy had said led to it."""
        if isinstance(error, HalfPair) and any(_half(one) for call in self.calls for one in call.answers):
            return
        words = f"{error.param}: {error.message}" if error.param and error.param not in error.message else error.message
        self.refusal, self.refused_at = f"{what} with {error.status}, {words}", self.count

    def gave_up(self, call: Waits) -> bool:
        """Whether the agent hung up on it for want of an answer. One that got others meanwhile may have had enough."""
        others = self.count - call.since - (call.number >= 0)
        return call.client.gone and not others

    def take(self, asked: Asked, client: Client) -> Waits:
        """The call that a request is: the one of a client that hung up, if it is the same; else a new one."""
        for call in reversed(self.calls):
            if call.client.gone and call.asked == asked:
                call.client = client
                break
        else:
            call = Waits(asked, asyncio.get_running_loop().create_future(), client, self.count)
            self.calls.append(call)
            self.waiting.append(call)
        self.arrived.set()
        return call


def _half(answer: Answer) -> bool:
    """Whether it holds half of a surrogate pair, written out or as JSON escapes it."""
    return any(HALF.search(text) for text in (answer.text, *(use.arguments for use in answer.uses)))


class Post:
    """The server's other side: requests are handed to the session that runs the agent, and wait for its action."""

    models: Sequence[str] = ("treewright",)
    holds = True

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.key = f"tw-{secrets.token_urlsafe(24)}"
        keep_secret(self.key)
        self.address = ""

    async def answer(self, session: str | None, asked: Asked, client: Client | None = None) -> Answered:
        """Raises ApiError for a session that is over."""
        line = self.lines.get(session or "")
        if line is None:
            raise ApiError(404, "this episode is over")
        if any(call.number < 0 and call.asked == asked for call in line.calls):
            await asyncio.sleep(NOTICED)  # it may be sent again, and its first connection just have been closed
        call = line.take(asked, client or Client())
        try:
            answers = await asyncio.shield(call.future)  # whoever asks again waits for the same
        except asyncio.CancelledError:
            if call.future.cancelled():
                raise ApiError(503, "this episode is over") from None
            raise
        if call.number < 0:
            call.number, line.count = line.count, line.count + 1
        created = CREATED + call.number
        return Answered(answers=tuple(answers), label=f"{call.number:08d}", created=created, model=asked.model)

    async def count(self, session: str | None, asked: Asked) -> int:
        """A count by words: the agent's prompt has no tokens before a policy reads it."""
        return sum(len(one.text.split()) + 4 for one in asked.said)

    async def end(self, session: str, reward: float | None) -> str:
        raise ApiError(404, "an episode ends with its command")

    def refused(self, session: str | None, what: str, error: ApiError) -> None:
        """Notes it on the line of the agent that asked."""
        line = self.lines.get(session or "")
        if line is not None:
            line.refuse(what, error)

    def close(self, session: str) -> None:
        """Requests that still wait fail."""
        line = self.lines.pop(session, None)
        for call in line.calls if line is not None else ():
            call.future.cancel()
