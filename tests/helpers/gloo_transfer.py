"""vLLM's NCCL weight transfer with gloo in the place of NCCL, by vLLM's own factories: for machines without GPUs.

`register` is a plug-in of vLLM (entry point vllm.general_plugins, see `plugged`): it adds the backend "gloo" on both
sides. All is vLLM's but for the communicator, and for streams and devices that a CPU does not have.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist

ENTRY = "[vllm.general_plugins]\ntreewright_gloo = gloo_transfer:register\n"


def plugged(folder: Path) -> str:
    """A PYTHONPATH with which a server finds this plug-in."""
    info = folder / "treewright_gloo-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: treewright-gloo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY)
    return os.pathsep.join([str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


class Gloo:
    """A group of gloo that is not the process's own one: `broadcast` from rank 0, as vLLM's communicators have it."""

    def __init__(self, address: str, port: int, rank: int, world: int, seconds: float = 60.0) -> None:
        patience = timedelta(seconds=seconds)
        self.store = dist.TCPStore(address, port, world, rank == 0, patience, wait_for_workers=False)
        self.group: Any = dist.ProcessGroupGloo(dist.PrefixStore("push", self.store), rank, world, patience)

    def broadcast(self, tensor: torch.Tensor, src: int = 0, stream: Any = None) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self.group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        with suppress(RuntimeError):
            self.group.abort()


def register() -> None:
    """Adds the backend to vLLM's two factories, once in a process."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer import nccl_engine as nccl

    if "gloo" in WeightTransferEngineFactory._registry:
        return

    class GlooEngine(nccl.NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info: Any) -> None:
            config = self.parallel_config
            rank = init_info.rank_offset + config.data_parallel_index * config.world_size + config.rank
            self.model_update_group = Gloo(init_info.master_address, init_info.master_port, rank, init_info.world_size)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            told = self.parse_update_info(update_info)
            for name, kind, shape in zip(told.names, told.dtype_names, told.shapes, strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, kind))
                self.model_update_group.broadcast(weight)
                fail_point(name)
                self.model.load_weights([(name, weight)])

    @dataclass
    class GlooInfo(nccl.NCCLTrainerInitInfo):
        backend: ClassVar[str] = "gloo"

    class GlooTrainer(nccl.NCCLTrainerWeightTransferEngine):
        def _broadcast(self, source: Any, meta: Any) -> None:
            for _, tensor in self._checked_iter(source, meta):
                self.model_update_group.broadcast(tensor.contiguous())

    # what opens the trainer's end is found by name in vLLM's module
    plain = nccl.open_trainer_endpoint

    def opened(info: Any, rank: int = 0) -> Any:
        if getattr(info, "backend", "") != "gloo":
            return plain(info, rank)
        return Gloo(info.master_address, info.master_port, rank, info.world_size)

    nccl.open_trainer_endpoint = opened
    WeightTransferEngineFactory.register_engine("gloo", GlooEngine)
    WeightTransferTrainerFactory.register_engine("gloo", GlooTrainer)
    globals()["GlooInfo"] = GlooInfo


def fail_point(name: str) -> None:
    """Where TREEWRIGHT_DIE names a file that is there, this worker is killed in the middle of a transfer."""
    told = os.environ.get("TREEWRIGHT_DIE")
    if told and ".layers.1." in name and Path(told).exists():
        os.kill(os.getpid(), 9)


def gloo_sender(meeting: Any, client: Any, source: Any) -> Any:
    """As `nccl_sender` of treewright.agent.policies.push."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

    register()
    info: Any = globals()["GlooInfo"](
        master_address=meeting.address, master_port=meeting.port, world_size=meeting.world, packed=False, rank=0
    )
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def stream() -> Iterator[None]:
    yield
