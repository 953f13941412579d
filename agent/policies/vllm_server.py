"""Starts vLLM's OpenAI server as a child of this program, for a while: for tests, benchmarks and one-machine runs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from treewright.agent.policies.weights import served_folder
from treewright.envs.errors import TreewrightError

__all__ = ["vllm_server"]

ARGUMENTS = (
    "--enable-prefix-caching", "--logprobs-mode", "processed_logprobs", "--disable-log-stats",
    "--enable-prompt-tokens-details", "--structured-outputs-config", '{"backend": "guidance"}',
    "--worker-extension-cls", "treewright.agent.policies.vllm_engine.WeightTaker",
)  # fmt: skip
ON_CPU = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "64")


@asynccontextmanager
async def vllm_server(
    model: str | Path,
    arguments: Sequence[str] = (),
    *,
    cpu: bool = True,
    deadline: float = 300.0,
    python: str = sys.executable,
) -> AsyncIterator[str]:
    """Yields the base URL of a server on loopback for `model`, ready to draw; ends it and its children afterwards.

    arguments  of `vllm serve`, after ours;  python  of an environment that has vLLM and treewright

    The server may be told to exchange weights and adapters, so it listens on 127.0.0.1 only. Raises TreewrightError
    with the end of its log when it dies or is not ready within `deadline`.
    """
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [
        python, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", served_folder(model),
        "--served-model-name", str(model), "--host", "127.0.0.1", "--port", str(port),
        *ARGUMENTS, *(ON_CPU if cpu else ("--enable-sleep-mode",)), *arguments,
    ]  # fmt: skip
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        child = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL, env=env, start_new_session=True
        )
        try:
            await _ready(child, f"http://127.0.0.1:{port}/health", deadline, Path(log.name))
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            await _end(child)


async def _ready(child: asyncio.subprocess.Process, url: str, deadline: float, log: Path) -> None:
    why = f"is not ready after {deadline:g} s"
    try:
        async with asyncio.timeout(deadline), httpx.AsyncClient(trust_env=False) as client:
            while child.returncode is None:
                try:
                    if (await client.get(url)).status_code == 200:
                        return
                except httpx.RequestError:
                    pass
                try:
                    await asyncio.wait_for(child.wait(), 0.25)  # how often a server is asked whether it is there
                except TimeoutError:
                    continue
            why = f"ended with status {child.returncode}"
    except TimeoutError:
        pass
    tail = await asyncio.to_thread(log.read_text, errors="replace")
    raise TreewrightError(f"the vLLM server {why}; the end of its log:\n{tail[-2000:]}")


async def _end(child: asyncio.subprocess.Process) -> None:
    """Asks the server's process group to end, then makes it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        try:
            await asyncio.wait_for(child.wait(), 20)
        except TimeoutError:
            continue
    await child.wait()
