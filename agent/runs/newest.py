"""With which weights a named run acts: its newest checkpoint, unless it was told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from treewright.agent.config import Config
from treewright.training.manifest import is_adapter_folder, latest, read_manifest

__all__ = ["acting_config", "newest_weights", "serve_newest"]


def newest_weights(cfg: Config) -> Path | None:
    """The folder of the run's newest checkpoint; None before the first, or where another policy is asked for.

    A checkpoint knows which policy its run was begun with. Another one that is named now acts itself.
    Raises CheckpointError for a damaged checkpoint.
    """
    if not cfg.policy.newest:
        return None
    found = latest(cfg.home / "checkpoints")
    if found is None:
        return None
    base = read_manifest(found.path)["extra"].get("policy")
    return found.path if base in (None, cfg.policy.spec) else None


def acting_config(cfg: Config, say: Callable[[str], Any]) -> Config:
    """The configuration with the run's newest weights as its policy, said in one line where that changes anything.

    A policy behind a URL keeps its name, and so does vLLM for an adapter: `serve_newest` hands the weights over.
    """
    weights = newest_weights(cfg)
    if weights is None:
        return cfg
    kind, _, rest = cfg.policy.spec.partition(":")
    if kind not in ("seedling", "hf", "vllm"):
        return cfg
    say(
        f"acting with {weights}, the newest of run {cfg.name!r} (--set policy.newest=false acts with {cfg.policy.spec})"
    )
    if "@http" in rest or (kind == "vllm" and is_adapter_folder(weights)):
        return cfg
    spec = f"vllm:{weights}" if kind == "vllm" else f"hf:{weights}"
    return cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"spec": spec})})


async def serve_newest(cfg: Config, policy: Any) -> None:
    """Hands the run's newest weights to the server behind a policy with a URL, and an adapter to vLLM here."""
    from treewright.agent.policies.opening import serve_weights

    weights = newest_weights(cfg)
    adapter = cfg.policy.spec.startswith("vllm:") and weights is not None and is_adapter_folder(weights)
    if weights is not None and ("@http" in cfg.policy.spec or adapter):
        await serve_weights(policy, weights)
