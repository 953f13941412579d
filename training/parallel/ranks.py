"""The processes that train together: who they are, and what they tell each other beside gradients.

Rank 0 leads: it reads trees, gives credit, packs and writes checkpoints. The others follow: they wait for an order, do
their share and wait again. Orders and packs go over gloo, as JSON and plain arrays; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from treewright.envs.errors import TreewrightError
from treewright.training.parallel.launched import LAUNCHER, launched

__all__ = ["RankLost", "Ranks", "join"]

WAITING = timedelta(days=7)  # followers wait for orders while the leader collects
WORKING = timedelta(minutes=10)  # a rank that says nothing for so long within a step is taken for dead


class RankLost(TreewrightError):
    """Another process of the group is gone, or does not answer."""


def join() -> Ranks:
    """Joins the group that the environment describes: NCCL where every rank has a GPU of its own, else gloo.

    Raises TreewrightError where the others cannot be reached.
    """
    found = launched()
    if found is None:
        raise TreewrightError("this process is alone; start with torchrun --nproc-per-node N -m treewright …")
    rank, world = found
    local, here = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", world))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < gpus < here:
        raise TreewrightError(
            f"{here} processes on this machine, but it has {gpus} GPUs; start {gpus}, or none on GPUs with "
            "CUDA_VISIBLE_DEVICES="
        )
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    _end_with_launcher()
    try:
        meeting = os.environ.get(LAUNCHER)
        where = {} if meeting is None else {"init_method": f"file://{meeting}", "rank": rank, "world_size": world}
        dist.init_process_group("nccl" if gpus else "gloo", timeout=WORKING, **where)  # type: ignore[arg-type]
        control = dist.new_group(backend="gloo", timeout=WAITING)
    except (RuntimeError, ValueError) as error:
        raise TreewrightError(f"rank {rank} of {world} cannot join the others: {_brief(error)}") from error
    return Ranks(rank=rank, world=world, device=device, control=control)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among the `world` that train together; `control` is the group that orders go over."""

    rank: int
    world: int
    device: torch.device
    control: Any

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def tell(self, order: Mapping[str, Any]) -> None:
        """The leader's order to all others."""
        data = json.dumps(order, allow_nan=True).encode()
        self._broadcast(torch.tensor([len(data)]))
        self._broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def hear(self) -> dict[str, Any]:
        """The leader's next order."""
        size = torch.zeros(1, dtype=torch.int64)
        self._broadcast(size)
        data = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(data)
        order: dict[str, Any] = json.loads(bytes(data.numpy()))
        return order

    def deal(self, data: Sequence[bytes] | None) -> bytes:
        """From the leader, to each rank its bytes; `data` is None on the others."""
        sizes = torch.zeros(self.world, dtype=torch.int64)
        if data is not None:
            sizes = torch.tensor([len(d) for d in data])
        self._broadcast(sizes)
        if data is None:
            mine = torch.empty(int(sizes[self.rank]), dtype=torch.uint8)
            with self.answering():
                dist.recv(mine, 0, group=self.control)
            return bytes(mine.numpy())
        for rank in range(1, self.world):
            with self.answering():
                dist.send(torch.frombuffer(bytearray(data[rank]), dtype=torch.uint8), rank, group=self.control)
        return data[0]

    def collect(self, text: str) -> list[str]:
        """Every rank's text, in their order; the same on all."""
        sizes = torch.zeros(self.world, dtype=torch.float64)
        data = text.encode()
        sizes[self.rank] = len(data)
        longest = int(self.largest(sizes).max())
        own = torch.zeros(max(longest, 1), dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else own[:0]
        every = [torch.empty_like(own) for _ in range(self.world)]
        lengths = self.largest(sizes)
        with self.answering():
            dist.all_gather(every, own, group=self.control)
        return [bytes(e.numpy())[: int(n)].decode() for e, n in zip(every, lengths, strict=True)]

    def total(self, values: Tensor) -> Tensor:
        """The sum of every rank's values; the same on all, to the bit."""
        out = values.to("cpu", torch.float64).clone()
        with self.answering():
            dist.all_reduce(out, group=self.control)
        return out

    def largest(self, values: Tensor) -> Tensor:
        out = values.to("cpu", torch.float64).clone()
        with self.answering():
            dist.all_reduce(out, dist.ReduceOp.MAX, group=self.control)
        return out

    def any(self, said: bool) -> bool:
        return bool(self.largest(torch.tensor([float(said)]))[0])

    def _broadcast(self, values: Tensor) -> None:
        with self.answering():
            dist.broadcast(values, 0, group=self.control)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around what needs the others: raises RankLost where one of them is gone."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if not _is_lost(error):
                raise
            raise RankLost(
                f"rank {self.rank} of {self.world}: another rank is gone or does not answer ({_brief(error)}); the "
                "checkpoints are whole, the same line again goes on from the last one"
            ) from error

    def leave(self) -> None:
        """Ends this process's part in the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


LOST = ("connection", "timed out", "timeout", "socket", "peer", "broken pipe", "nccl", "gloo", "aborted")


def _is_lost(error: BaseException) -> bool:
    told = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in told for word in LOST)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _end_with_launcher() -> None:
    """A rank whose launcher was killed ends too: nobody else would."""
    if LAUNCHER not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher").start()
