"""`treewright serve`: any policy behind the APIs that agents speak."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from typing import Annotated

import typer

from treewright.agent.cli.options import ConfigFile, PolicySpec, Sets, console, go, read_config
from treewright.envs.errors import TreewrightError
from treewright.envs.secrecy import keep_secret

__all__ = ["serve_command"]

KEY = "TREEWRIGHT_KEY"


def serve_command(
    policy: PolicySpec = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Keep every call here: a file or postgresql://….")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; only this machine unless told otherwise.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8089,
    body_limit: Annotated[int, typer.Option(min=1, help="Most bytes of one request.")] = 8 << 20,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, where a request does not say.")] = 1024,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Serve a policy under OpenAI Chat Completions, OpenAI Responses and Anthropic Messages, and record what it says.

    The key is in the environment variable TREEWRIGHT_KEY, else a new one is made and shown once.

    treewright serve --policy seedling --store served.sqlite
    treewright serve --policy vllm:MODEL@http://gpu:8000/v1 --store postgresql://me@host/trees
    """
    from treewright.agent.gateway.draws import Draws
    from treewright.agent.gateway.server import bind, make_app, server_of
    from treewright.agent.policies.propose import open_proposer
    from treewright.search.store import TreeStore

    cfg = read_config(None, config, set_, None, policy, remember=False)
    key = os.environ.get(KEY, "")
    if key and (len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key):
        raise TreewrightError(
            f"{KEY} must be at least 16 printable ASCII characters without spaces; leave it out to get one"
        )
    made = key or f"tw-{secrets.token_urlsafe(24)}"

    async def work() -> None:
        sock = bind(host, port)
        actor = open_proposer(cfg.policy)
        opened = TreeStore.open(store) if store is not None else None
        try:
            behind = Draws(actor, store=opened, run=cfg.name, seed=cfg.seed, max_tokens=max_tokens)
            server = server_of(make_app(behind, made, body_limit=body_limit))
            at = sock.getsockname()
            shown = f"[{at[0]}]" if ":" in at[0] else at[0]
            _tell(f"OPENAI_BASE_URL=http://{shown}:{at[1]}/v1")
            _tell(f"ANTHROPIC_BASE_URL=http://{shown}:{at[1]}")
            _tell(f"the key is that of {KEY}" if key else f"OPENAI_API_KEY={made}   (ANTHROPIC_API_KEY too)")
            keep_secret(made)
            _tell("a session: put /s/NAME before /v1, or .NAME behind the key. Ctrl-C ends it.")
            await server.serve(sockets=[sock])
        finally:
            await actor.close()
            if opened is not None:
                opened.close()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        go(work)
    except asyncio.CancelledError:
        return


def _tell(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
