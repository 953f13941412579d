"""A small agent: asks a model over HTTP how to go on, keeps what it was told in notes.txt, until it knows the answer.

Nothing but the standard library, so that it starts quickly. The goal is its argument; behaviours for tests are named
in WALKER.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

HOW = os.environ.get("WALKER", "")
PATIENCE = float(os.environ.get("WALKER_PATIENCE", "600"))  # seconds without a byte after which a client gives up
AGAIN = int(os.environ.get("WALKER_AGAIN", "0"))  # times that it asks again then
NEXT = {"home": "mill", "mill": "lake", "lake": "inn"}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("go", "sell")]


def ask(messages: list[dict[str, Any]], **more: Any) -> list[Any]:
    body = json.dumps({"model": "walk", "messages": messages, "tools": TOOLS, **more}).encode()
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        body,
        {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
    )
    for again in range(AGAIN + 1):
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return [choice["message"] for choice in json.load(answer)["choices"]]
        except TimeoutError:
            if again == AGAIN:
                raise
    return []


def refused(path: str, **body: Any) -> None:
    """Asks for what the server does not serve; where the agent is a careful one, it goes on."""
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + path,
        json.dumps(body).encode(),
        {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
    )
    try:
        urllib.request.urlopen(request).close()
    except urllib.error.HTTPError:
        if "careful" not in HOW:
            raise


def main(goal: str) -> None:
    place, said = "home", [{"role": "system", "content": "Walk."}, {"role": "user", "content": goal}]
    if "noisy" in HOW:
        said[0]["content"] += f" run {uuid.uuid4()} nr {time.time_ns() % 1000003} in {os.getcwd()}"
    if "fickle" in HOW:
        said[0]["content"] += " " + ("calm" if time.time_ns() % 2 else "wild") * (1 + time.time_ns() % 97)
    if "named" in HOW:
        said[0]["content"] = f"{uuid.uuid4().hex[:6]}7\n{said[0]['content']}"
    who = f" with {chr(97 + time.time_ns() // 1000 % 26) * 3}" if "company" in HOW else ""
    if "crash" in HOW:
        raise SystemExit(3)
    if "hang" in HOW:
        subprocess.Popen(["sleep", "300"], start_new_session=True)
        time.sleep(300)
    if "votes" in HOW:
        words = [one["content"] for one in ask(said, n=3)]
        sys.exit(0 if words.count("yes") >= 2 else 1)
    if "race" in HOW:
        first: queue.Queue[list[Any]] = queue.Queue()
        for words in (said, said[1:]):
            threading.Thread(target=lambda said=words: first.put(ask(said)), daemon=True).start()
        os._exit(0 if first.get()[0]["content"] == "here" else 1)
    if "shrug" in HOW:
        try:
            ask(said)
        except TimeoutError:
            ask([*said, {"role": "user", "content": "never mind"}])
    if "early" in HOW:
        refused("/embeddings", input="x")
    for turn in range(6):
        if "embeds" in HOW and turn == 1:
            refused("/embeddings", input="x")
        if "looks" in HOW and turn == 1:
            seen = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
            refused("/chat/completions", model="walk", messages=[*said, {"role": "user", "content": [seen]}])
        (message,) = ask(said)
        said.append(message)
        with open("notes.txt", "a") as notes:
            notes.write(json.dumps(message) + "\n")
        if "echo" in HOW:
            ask([*said, {"role": "user", "content": json.loads(message["content"])}])
        if not message.get("tool_calls"):
            with open("answer.txt", "w") as answer:
                answer.write(f"{message['content']} at {place}")
            sys.exit(0 if message["content"] == "here" and place == "inn" else 1)
        for call in message["tool_calls"]:
            to = json.loads(call["function"]["arguments"]).get("to")
            place = to if NEXT.get(place) == to else "home"
            said.append({"role": "tool", "tool_call_id": call["id"], "content": f"you are at {place}{who}"})
        if "compact" in HOW and len(said) > 5:
            said = [*said[:2], {"role": "user", "content": f"(so far: you came to {place})"}]
        if "helper" in HOW and place == "mill":
            (word,) = ask([{"role": "system", "content": "You are a guide."}, {"role": "user", "content": "where?"}])
            said.append({"role": "user", "content": f"the guide says {word['content']}"})
    sys.exit(1)


main(sys.argv[1])
