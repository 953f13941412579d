"""vLLM's NCCL weight transfer with gloo in the place of NCCL, by vLLM's own factories: for machines without GPUs.

`register` is a plug-in of vLLM (entry point vllm.general_plugins, see `plugged`): it adds the backend "gloo" on both
sides. All is vLLM's but for the communicator, and for streams and devices that a CPU does not have.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from gloo_group import Gloo

ENTRY = "[vllm.general_plugins]\ntreewright_gloo = gloo_transfer:register\n"


def plugged(folder: Path) -> str:
    """A PYTHONPATH with which a server finds this plug-in."""
    info = folder / "treewright_gloo-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: treewright-gloo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY)
    return os.pathsep.join([str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


def register() -> None:
    """Adds the backend to vLLM's two factories, once in a process."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer import nccl_engine as nccl

    if "gloo" in WeightTransferEngineFactory._registry:
        return

    class GlooEngine(nccl.NCCLWeightTransferEngine):  # type: ignore[misc]
        def init_transfer_engine(self, init_info: Any) -> None:
            config = self.parallel_config
            self.place = init_info.rank_offset + config.data_parallel_index * config.world_size + config.rank
            self.model_update_group = Gloo(
                init_info.master_address, init_info.master_port, self.place, init_info.world_size
            )

        def update_weights(self, update_info: dict[str, Any]) -> None:
            told = self.parse_update_info(update_info)
            for name, kind, shape in zip(told.names, told.dtype_names, told.shapes, strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, kind))
                self.model_update_group.broadcast(weight)
                fail_point(name, self.place)
                self.model.load_weights([(name, weight)])

    @dataclass
    class GlooInfo(nccl.NCCLTrainerInitInfo):  # type: ignore[misc]
        backend: ClassVar[str] = "gloo"

    class GlooTrainer(nccl.NCCLTrainerWeightTransferEngine):  # type: ignore[misc]
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


def fail_point(name: str, place: int) -> None:
    """The worker whose place in the group stands in the file TREEWRIGHT_DIE is killed in the middle of a transfer."""
    told = Path(os.environ.get("TREEWRIGHT_DIE", "/nowhere"))
    if ".layers.1." in name and told.is_file() and told.read_text() == str(place):
        os.kill(os.getpid(), signal.SIGKILL)


def gloo_sender(meeting: Any, client: Any, source: Any) -> Any:
    """As `nccl_sender` of treewright.agent.policies.push."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

    register()
    info: Any = globals()["GlooInfo"](
        master_address=meeting.address, master_port=meeting.port, world_size=meeting.world, packed=False, rank=0
    )
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
