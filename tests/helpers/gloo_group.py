"""A group of gloo that is not the process's own: what stands for NCCL where weights are sent and no GPU is there."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class Gloo:
    """`broadcast` from rank 0, as vLLM's communicators have it."""

    def __init__(self, address: str, port: int, rank: int, world: int, seconds: float = 60.0) -> None:
        patience = timedelta(seconds=seconds)
        self.store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, world, rank == 0, patience, wait_for_workers=False
        )
        prefixed = dist.PrefixStore("push", self.store)  # type: ignore[attr-defined]
        self.group: Any = dist.ProcessGroupGloo(prefixed, rank, world, patience)

    def broadcast(self, tensor: torch.Tensor) -> None:
        options: Any = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self.group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        """Whoever waits for this process in the group gets out."""
        group, self.group = self.group, None
        if group is not None:
            with suppress(RuntimeError):
                group.abort()
