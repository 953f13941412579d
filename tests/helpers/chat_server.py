"""A chat server on loopback that answers as a function of the messages says; OpenAI's protocol, nothing else."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answering(ThreadingHTTPServer):
    answer: Callable[[Any], Any]


class Chat(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Answering

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "chat", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = self.server.answer(asked["messages"])
        choices = [
            {"index": i, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            for i in range(asked.get("n") or 1)
        ]
        usage = {"prompt_tokens": 9, "completion_tokens": 9 * len(choices)}
        self.reply({"id": "1", "object": "chat.completion", "model": "chat", "choices": choices, "usage": usage})

    def reply(self, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass


EATS_KRILL = ("It eats krill", "krill", "blue whale")


def reader(messages: Any) -> str:
    """Searches for the animal that it is asked about, then answers with what that eats, once a passage says so."""
    shown = " ".join(str(message["content"]) for message in messages if message["role"] != "system")
    asks_of_krill = "do krill eat" in shown
    found, answer, words = ("They eat plankton", "plankton", "krill") if asks_of_krill else EATS_KRILL
    return f'answer {{"text": "{answer}"}}' if found in shown else "search " + json.dumps({"query": words})


@contextlib.contextmanager
def serving(answer: Callable[[Any], Any] = reader) -> Iterator[str]:
    """The address of the server while it runs; every connection has a thread of its own."""
    server = Answering(("127.0.0.1", 0), Chat)
    server.daemon_threads = True
    server.answer = answer
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
