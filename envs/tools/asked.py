"""What a server is told when it asks back: forms to fill in (elicitation), texts to write (sampling).

Nothing is answered that was not declared. Without a declaration the server learns at the start that nobody answers
here, and a server that asks all the same is refused.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp.client.session import ClientRequestContext
from mcp_types import (
    INTERNAL_ERROR,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestFormParams,
    ElicitResult,
    ErrorData,
    TextContent,
)

__all__ = ["Answers"]

Writer = Callable[[Mapping[str, Any]], Any]
"""Writes a text for a server: {"messages", "systemPrompt", "maxTokens", …} as the protocol has them -> text."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The declared answers.

    forms   values by field name; a form is accepted with the fields it asks for, and declined if it needs others
    writer  writes what a server wants a model to write; may be a coroutine function
    """

    forms: Mapping[str, Any] = field(default_factory=dict)
    writer: Writer | None = None

    def options(self) -> dict[str, Any]:
        """The client's callbacks. A callback that is not given is a capability that the server does not see."""
        out: dict[str, Any] = {"elicitation_callback": self.fill} if self.forms else {}
        return out | ({"sampling_callback": self.write} if self.writer is not None else {})

    async def fill(self, context: ClientRequestContext, params: Any) -> ElicitResult:
        """Accepts a form whose fields are declared; declines any other, and links to be opened."""
        if not isinstance(params, ElicitRequestFormParams):
            return ElicitResult(action="decline")
        asked = params.requested_schema
        fields, needed = asked.get("properties", {}), asked.get("required", ())
        if any(name not in self.forms for name in needed):
            return ElicitResult(action="decline")
        return ElicitResult(action="accept", content={n: self.forms[n] for n in fields if n in self.forms})

    async def write(
        self, context: ClientRequestContext, params: CreateMessageRequestParams
    ) -> CreateMessageResult | ErrorData:
        """The writer's text; its failure is told to the server."""
        assert self.writer is not None
        asked = params.model_dump(by_alias=True, mode="json", exclude_none=True)
        try:
            if inspect.iscoroutinefunction(self.writer):
                text = await self.writer(asked)
            else:
                text = await asyncio.to_thread(self.writer, asked)
        except Exception as error:
            # The writer is the user's own function; the server decides what its failure means.
            return ErrorData(code=INTERNAL_ERROR, message=f"no text was written: {error!r}")
        said = TextContent(type="text", text=str(text))
        return CreateMessageResult(role="assistant", content=said, model="treewright", stop_reason="endTurn")
