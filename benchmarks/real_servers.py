"""A real model behind servers, each as a policy: vLLM's CPU build and llama.cpp beside transformers, greedy.

`make bench-real-servers` makes both environments and names them; a server without one is not measured, and a line says
so. llama.cpp serves the weights unpacked to float32, keys, values and attention too, and the file as it is shipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from treewright.agent.policies.fetch import downloaded
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.vllm_server import vllm_server
from treewright.agent.runs.collect import collect, open_worlds
from treewright.agent.runs.loop import model_folder, tasks_for
from treewright.benchmarks.peer_engines import PEERS
from treewright.benchmarks.real_parts import Figures, kept, size_of
from treewright.envs.errors import TreewrightError
from treewright.envs.fetched import KNOWN
from treewright.search.engine import Settings
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget

__all__ = ["compared", "servers_figures"]

SPEC = "hf:smollm2"
CHILD = Path(__file__).with_name("llama_child.py")
STEPS, LENGTH = 3, 32


def servers_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Greedy episodes of each server beside those of transformers: the share of draws that are the same, up to the
    first that differs in an episode, and the largest difference of their log-probs."""
    tasks = size_of(quick).tasks
    out = Figures()
    for way, peer in {"vllm": "vllm", "llama_float32": "llama", "llama_shipped": "llama"}.items():
        python = os.environ.get(PEERS[peer])
        if not python:
            print(
                f"servers: {way} was not measured: {PEERS[peer]} names no Python that has it; make bench-real-servers"
            )
            continue
        of = {"part": "servers", "spec": spec, "way": way, "tasks": tasks}
        out |= kept(of, partial(_served, spec, way, python, tasks))
    return out


def _served(spec: str, way: str, python: str, tasks: int) -> Figures:
    async def work() -> Figures:
        plain = await _episodes(open_policy(spec, temperature=0.0), tasks)
        async with _server(spec, way, python) as policy:
            return compared(way, plain, await _episodes(policy, tasks))

    return asyncio.run(work())


async def _episodes(policy: Any, tasks: int) -> list[Tree]:
    """One path of `STEPS` greedy draws for each task; the policy is closed."""
    try:
        async with open_worlds(["kg"]) as worlds:
            return await collect(
                tasks_for(worlds, "test", 0, tasks), worlds, policy, rule=best_first(root_draws=1, draws=1),
                budget=Budget(expansions=STEPS - 1),
                settings=Settings(run="servers", seed=0, max_tokens=LENGTH, close=False),
            )  # fmt: skip
    finally:
        await policy.close()


@asynccontextmanager
async def _server(spec: str, way: str, python: str) -> AsyncIterator[Any]:
    """A policy of the model behind the server, until the end of the block."""
    folder = model_folder(spec)
    if way == "vllm":
        async with vllm_server(folder, ("--max-model-len", "4096"), python=python) as url:
            yield open_policy(f"vllm:{folder}@{url}", temperature=0.0)
        return
    with tempfile.TemporaryDirectory() as temporary, downloaded(KNOWN[spec.removeprefix("hf:")]) as file:
        plain = str(Path(temporary) / "float32.gguf") if way == "llama_float32" else ""
        with _llama(python, file, plain) as address:
            yield open_policy(f"openai:smollm2@{address}/v1", temperature=0.0)


@contextmanager
def _llama(python: str, file: Path, plain: str) -> Iterator[str]:
    """The address of llama.cpp's server, in a process of its own until the end of the block."""
    command = [python, "-P", str(CHILD), str(file), plain, "1"]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise TreewrightError(f"llama.cpp did not start; type {' '.join(command)} to see why")
        yield json.loads(line)["address"]
    finally:
        child.kill()
        child.wait()


def compared(way: str, plain: Sequence[Tree], served: Sequence[Tree]) -> Figures:
    """Of the paths of the same tasks. Where a draw has other tokens, what follows has other prompts and is left out."""
    same = draws = tokens = 0
    gap = 0.0
    for one, other in zip(plain, served, strict=True):
        for i in range(1, min(len(one), len(other))):
            draws += 1
            if one.text[i] != other.text[i]:
                break
            same += 1
            pairs = list(zip(one.logprobs[i], other.logprobs[i], strict=False))  # a server may leave the end out
            tokens += len(pairs)
            gap = max([gap, *(abs(a - b) for a, b in pairs)])
    out: Figures = {
        f"servers/{way}/draws": (float(draws), "draws"),
        f"servers/{way}/same": (same / draws if draws else 0.0, "share of greedy draws"),
        f"servers/{way}/tokens": (float(tokens), "tokens of equal draws"),
    }
    return out | ({f"servers/{way}/gap": (gap, "nats")} if tokens else {})
