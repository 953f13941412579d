"""A ReAct agent over the openai client, which knows nothing of treewright: asks a model, runs its tools, asks again.

    python react.py "start ada, then mother, then boss. who is it ?"

It looks facts up (those of the task, in TREEWRIGHT_TASK) and writes its answer to answer.txt.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from openai import OpenAI

TEXT = {"type": "string"}


def tool(name: str, description: str, **arguments: dict[str, str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": arguments, "required": list(arguments), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS: list[Any] = [
    tool("search", "look up a relation of an entity", entity=TEXT, relation=TEXT),
    tool("answer", "answer and end", text=TEXT),
]


def run(call: dict[str, Any]) -> str:
    """The result of a tool."""
    given = json.loads(call["function"]["arguments"])
    facts = json.loads(os.environ["TREEWRIGHT_TASK"])["data"]["facts"]
    asked = f"{given.get('entity')} {given.get('relation')}"
    return f"{asked} {facts[asked]}" if asked in facts else f"error: nothing is known of {asked}"


def finish(call: dict[str, Any]) -> bool:
    """True where the call answers; the answer is written down."""
    if call["function"]["name"] != "answer":
        return False
    with open("answer.txt", "w") as file:
        file.write(json.loads(call["function"]["arguments"]).get("text", ""))
    return True


def main(goal: str, turns: int = 8) -> None:
    client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY
    messages: list[Any] = [{"role": "user", "content": goal}, {"role": "user", "content": "ready"}]
    for _ in range(turns):
        reply = client.chat.completions.create(model="kg", messages=messages, tools=TOOLS, max_tokens=48)
        message = reply.choices[0].message.model_dump(exclude_none=True)
        messages.append(message)
        for call in message.get("tool_calls", []):
            if finish(call):
                return
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": run(call)})
        if not message.get("tool_calls"):
            messages.append({"role": "user", "content": "error: call a tool"})


if __name__ == "__main__":
    main(sys.argv[1])
