"""How a loop's new weights get to its policy: from the trainer's memory where servers can take them, else as files."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treewright.agent.config import Config
from treewright.agent.policies.opening import serve_weights
from treewright.agent.policies.policy import Colocated, Pushable
from treewright.agent.policies.weights import folder_version
from treewright.envs.errors import TreewrightError
from treewright.search.types import layers

if TYPE_CHECKING:
    from treewright.agent.policies.push import OpenSender, Push

__all__ = ["push_for", "serve_from"]


async def push_for(
    config: Config, trainer: Any, policy: Any, say: Callable[[str], Any], opened: OpenSender | None = None
) -> Push | None:
    """What sends the trainer's weights to the policy's servers, as loop.push says; None: they go as files.

    opened  what forms the group, in the place of vLLM's NCCL
    Raises TreewrightError where loop.push=nccl cannot be.
    """
    if config.loop.push == "files":
        return None
    taker = _taker(policy)
    why, told = _obstacle(config, trainer, policy, opened is None), taker is not None
    if why is None and taker is not None:
        from treewright.agent.policies.push import Push, nccl_sender
        from treewright.training.checkpoint import streamed

        device = next(trainer.model.parameters()).device
        push = Push(streamed(trainer), opened or nccl_sender, within=functools.partial(_on, device))
        try:
            await push.open(taker.policies)
            say(f"new weights go straight from the trainer to {len(taker.policies)} servers")
            return push
        except TreewrightError as error:
            await push.close()
            why = str(error)
    elif config.loop.push == "auto":
        told = False  # nobody asked for it, and nothing here is made for it
    if config.loop.push == "nccl":
        why = (why or "").removesuffix(", or set loop.push=files")
        raise TreewrightError(f"loop.push = nccl: {why}; loop.push=files needs none of this")
    if told:
        say(f"new weights go as files: {why}")
    return None


def _obstacle(config: Config, trainer: Any, policy: Any, nccl: bool) -> str | None:
    """Why weights cannot be sent, and what to type."""
    if _taker(policy) is None:
        return (
            f"the policy {config.policy.spec} is not on a vLLM server: give --policy vllm:FOLDER@http://HOST:PORT/v1, "
            "or set loop.push=files"
        )
    if config.train.lora.rank:
        return "an adapter is small and goes as files: set loop.push=files"
    if any(p.colocated for p in layers(policy) if isinstance(p, Colocated)):
        return (
            "a server that shares the trainer's GPU (policy.options.colocated) cannot be in a group with it: give it a "
            "GPU of its own and leave colocated out, or set loop.push=files"
        )
    if not nccl:
        return None
    if next(trainer.model.parameters()).device.type != "cuda":
        return "the trainer has no GPU here (see CUDA_VISIBLE_DEVICES): set loop.push=files"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed beside the trainer: pip install 'treewright[vllm]', or set loop.push=files"
    return None


def _taker(policy: Any) -> Pushable | None:
    return next((p for p in layers(policy) if isinstance(p, Pushable)), None)


def _on(device: Any) -> Any:
    """A thread's device is the first one unless it says otherwise."""
    import contextlib

    import torch

    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


async def serve_from(learner: Any, policy: Any, folder: str | Path) -> str:
    """Makes the policy serve the weights of a folder; the new version. Those that the trainer has now are pushed.

    Raises TreewrightError where no server takes them.
    """
    taker = _taker(policy)
    present = learner.saved == Path(folder) if learner.saved is not None else not learner.trainer.steps
    if learner.push is None or taker is None or not present:
        return await serve_weights(policy, folder)
    version = await asyncio.to_thread(folder_version, folder)
    try:
        return await taker.load_pushed(learner.push, folder, version)
    except TreewrightError as error:
        if type(error) is not TreewrightError:
            raise
        raise TreewrightError(
            f"no server took the weights in {folder}, which are whole: {error}; start the servers again, then type the "
            "same line again"
        ) from error
