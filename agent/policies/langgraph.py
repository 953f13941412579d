"""Your own compiled LangGraph agent as a policy: the search drives it, one step at a time.

    policy = GraphPolicy(agent)          # or open_policy("langgraph:my_module:agent")

`agent` is a compiled graph over a state with `messages`, as LangGraph's own agents are. For each draw it is run on the
messages of the node until it ends or is about to enter a node that executes tools; its last message is the draw, tool
calls and text. The tools are then executed by treewright's world, which can go back, and not by the graph. Such nodes
are found by what they are, whatever their names; a graph of which it cannot be told what it runs is refused, and a tool
that is called nevertheless does not begin. Python code that acts without a tool, in a node passed once, is
not seen.

The draw's seed is in `config["configurable"]["seed"]` for agents whose model takes one. Every draw has a thread of its
own, which a checkpointer forgets afterwards; what an agent keeps in a store across threads is its own affair. Such
draws act and are not trained on: the graph hides its tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from treewright.agent.policies.answers import whole
from treewright.agent.policies.graph_tools import NoTools, stops
from treewright.agent.policies.policy import PolicyStats
from treewright.agent.policies.prompts import chat_messages
from treewright.agent.policies.served import ToolContext
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.envs.waiting import together
from treewright.search.types import Completion, Context, Exchange, PolicyFault

__all__ = ["GraphPolicy"]

GIVEN = "given-"  # the ids of messages that the graph was given


@runtime_checkable
class _Forgetful(Protocol):
    """A checkpointer that can drop a thread."""

    async def adelete_thread(self, thread_id: str) -> None: ...


class GraphPolicy:
    """A compiled LangGraph graph as a policy.

    stop_before  nodes that execute tools, besides those that are seen to; the graph stops before all of them. Default:
                 a node `tools`
    run_inside   nodes that may run while searching whatever they contain, such as a calculator: any number of times
    deadline     seconds for one run of the graph;  concurrency  runs under way at once
    tools_as     'text' lists the tools in the system message; 'none' leaves that to the graph
    Raises TreewrightError for something that is no compiled graph, has no node of that name (with the names it has),
    or may run tools that it is not known to stop before.
    """

    def __init__(
        self,
        graph: Any,
        *,
        name: str = "langgraph",
        version: str | None = None,
        stop_before: Sequence[str] | None = None,
        run_inside: Sequence[str] = (),
        deadline: float = 120.0,
        concurrency: int = 16,
        tools_as: str = "text",
    ) -> None:
        if not hasattr(graph, "ainvoke") or not hasattr(graph, "nodes"):
            raise TreewrightError(f"{type(graph).__name__} is no compiled LangGraph graph; give graph.compile()")
        if tools_as not in ("text", "none"):
            raise TreewrightError(f"tools_as = {tools_as!r} is not known; write 'text' or 'none'")
        self.graph, self.name, self.deadline, self.tools_as = graph, name, deadline, tools_as
        self.stop_before, self.run_inside = stops(graph, stop_before, run_inside), run_inside
        self.stats = PolicyStats()
        self._version = version or name
        self._slots = asyncio.Semaphore(concurrency)

    @property
    def version(self) -> str:
        return self._version

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        """The conversation as messages; no token ids."""
        messages = chat_messages(task, tools, first, turns, None)
        said = messages if self.tools_as == "text" else messages[1:]
        return ToolContext(keep=0, delta=(), ids=(), messages=said, tools=tuple(tools))

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One run of the graph for each seed. Raises PolicyFault where the graph fails or takes too long."""
        return await together(self._one(context, seed) for seed in seeds)

    async def _one(self, context: Context, seed: int) -> Completion:
        said = [
            {"role": m.role, "content": whole(m.content), "id": f"{GIVEN}{i}"} for i, m in enumerate(context.messages)
        ]
        thread = f"draw-{seed}-{uuid.uuid4().hex}"  # seeds come back, in retries and later runs; threads must not
        watch = NoTools(self.run_inside)
        config = {"configurable": {"seed": seed, "thread_id": thread}, "callbacks": [watch]}
        async with self._slots:
            self.stats.requests += 1
            began = time.monotonic()
            try:
                run = self.graph.ainvoke({"messages": said}, config, interrupt_before=self.stop_before)
                state = await asyncio.wait_for(run, self.deadline)
                if watch.refused is not None:
                    raise TreewrightError(
                        f"the graph called the tool {watch.refused}, which was not run; name its node in stop_before"
                    )
                text = _text(_answer(state))
            except TimeoutError as error:
                self.stats.faults += 1
                raise PolicyFault(
                    f"{self.name}: no answer within {self.deadline:g} s; --set policy.options.deadline=N gives it more"
                ) from error
            except (Exception, SystemExit) as error:
                self.stats.faults += 1
                raise PolicyFault(f"{self.name}: {type(error).__name__}: {error}") from error
            finally:
                self.stats.seconds += time.monotonic() - began
                await self._forget(thread)
        self.stats.draws += 1
        return Completion(text, (), (), finish_reason="stop", policy_version=self._version, trainable=False)

    async def _forget(self, thread: str) -> None:
        """Drops what the graph's checkpointer kept of a draw; one that cannot forget keeps it, unread."""
        saver = getattr(self.graph, "checkpointer", None)
        if isinstance(saver, _Forgetful):
            with contextlib.suppress(Exception):  # nobody reads that thread again, dropped or not
                await saver.adelete_thread(thread)

    async def close(self) -> None:
        """The graph belongs to the caller."""


def _answer(state: Any) -> Any:
    """The newest message, of the model or of a tool that ran inside. Raises PolicyFault where it is neither's."""
    messages = state.get("messages") if isinstance(state, Mapping) else None
    if not messages:
        raise PolicyFault("the graph's state has no messages; its state needs a key `messages`, as MessagesState has")
    last = messages[-1]
    kind, name = (last.type, last.id) if hasattr(last, "type") else (last.get("role"), last.get("id"))
    if kind in ("ai", "assistant", "AIMessageChunk", "tool") and not str(name or "").startswith(GIVEN):
        return last
    held = state.get("__interrupt__")
    if held:
        raise PolicyFault(f"the graph was interrupted before its model answered ({_brief(held[0].value)})")
    raise PolicyFault(
        f"the graph ended with a message of type {kind!r}, not with an answer of its model; was it compiled with "
        "interrupt_before=[…] of the model's node?"
    )


def _brief(value: Any) -> str:
    return " ".join(str(value).split())[:200]


def _text(message: Any) -> str:
    """What a message says and calls, in the spelling that `parse_action` reads."""
    content = message.content if hasattr(message, "content") else message["content"]
    if not isinstance(content, str):
        content = "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    calls = getattr(message, "tool_calls", None) or ()
    blocks = [
        f"<tool_call>{json.dumps({'name': call['name'], 'arguments': call['args']}, ensure_ascii=False)}</tool_call>"
        for call in calls
    ]
    return str(whole("\n".join(filter(None, [content.strip(), *blocks]))))
