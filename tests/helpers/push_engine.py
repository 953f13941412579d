"""Stands for a vLLM server in tests of sent weights: its orders over HTTP, real gloo for the weights, no model.

    push_engine.py PORT [key=value …]

It holds weights as tensors by name, and is as strict as vLLM 0.32 about the order of things. What it may be told:
workers=N, which it says to have; configured=0, started without a way to send it weights; dies=NAME, it is killed when
it has received that weight; refuses=PATH, an order that it fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from gloo_group import Gloo
from safetensors.torch import load_file


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Names a set of tensors by name and content."""
    h = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


class Refused(Exception):
    """What vLLM answers with status 500."""


class Engine:
    """One server's state. Orders that reach the workers are carried out one after the other."""

    def __init__(self, told: dict[str, str]) -> None:
        self.told, self.weights = told, dict[str, torch.Tensor]()
        self.version, self.paused, self.cached = "default", False, True
        self.group: Gloo | None = None
        self.half: dict[str, torch.Tensor] | None = None  # of an update that is under way or broke off
        self.active = False
        self.seen: list[str] = []
        self.lock = threading.Lock()

    def read(self, path: str) -> dict[str, Any]:
        match path:
            case "/weight_info":
                return {"weight_version": self.version}
            case "/get_world_size":
                return {"world_size": int(self.told.get("workers", "1"))}
            case "/server_info":
                there = self.told.get("configured", "1") == "1"
                return {"vllm_config": {"weight_transfer_config": {"backend": "gloo"} if there else None}}
            case _:  # for the tests alone
                return {"digest": digest(self.weights), "paused": self.paused, "cached": self.cached, "seen": self.seen}

    def order(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(path)
        if self.told.get("refuses") == path:
            raise Refused(f"{path} was to fail")
        match path:
            case "/pause":
                self.paused = True
            case "/resume":
                self.paused = False
            case "/update_weight_version":
                self.version = body["new_version"]
            case "/reset_prefix_cache":
                self.cached = False
            case "/v1/completions":
                if self.paused:
                    raise Refused("a draw while weights are exchanged")
                self.cached = True
                return {"choices": [{"text": "", "finish_reason": "length", "token_ids": [5],
                                     "logprobs": {"token_logprobs": [-1.0]}}]}  # fmt: skip
            case _:
                with self.lock:
                    self.collective(path, body)
        return {}

    def collective(self, path: str, body: dict[str, Any]) -> None:
        match path:
            case "/init_weight_transfer_engine":
                info = body["init_info"]
                self.group = Gloo(info["master_address"], info["master_port"], info["rank_offset"], info["world_size"])
            case "/shutdown_weight_transfer_engine":
                self.leave()
            case "/start_weight_update":
                if self.active:
                    raise Refused("start_weight_update called while a weight update is already active")
                self.active, self.half = True, self.half or {}
            case "/update_weights":
                self.receive(body["update_info"])
            case "/finish_weight_update":
                if not self.active or self.half is None:
                    raise Refused("finish_weight_update called without a matching start_weight_update")
                self.weights, self.half, self.active = {**self.weights, **self.half}, None, False
                self.version = body.get("weight_version") or self.version
            case "/collective_rpc":
                if self.half is not None:
                    raise Refused("a reload into weights that are half of another transfer")
                folder = Path(body["kwargs"]["weights_path"])
                self.weights = {
                    n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()
                }

    def receive(self, told: dict[str, Any]) -> None:
        if not self.active or self.half is None:
            raise Refused("start_weight_update must be called before update_weights")
        if not self.paused:
            raise Refused("weights come while draws are under way")
        try:
            if self.group is None:
                raise RuntimeError("NCCL weight transfer not initialized")
            for name, kind, shape in zip(told["names"], told["dtype_names"], told["shapes"], strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, kind))
                self.group.broadcast(weight)
                self.half[name] = weight
                if self.told.get("dies") == name:
                    os.kill(os.getpid(), signal.SIGKILL)
        except RuntimeError as error:
            self.active = False
            raise Refused(str(error)) from error

    def leave(self) -> None:
        group, self.group = self.group, None
        if group is not None:
            group.destroy()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self) -> None:
        self.answer(200, self.engine.read(urlsplit(self.path).path))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.answer(200, self.engine.order(urlsplit(self.path).path, json.loads(data or b"null") or {}))
        except Refused as refused:
            self.answer(500, {"error": {"message": str(refused)}})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    Handler.engine = Engine(dict(word.split("=", 1) for word in sys.argv[2:]))
    ThreadingHTTPServer.allow_reuse_address = True
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
