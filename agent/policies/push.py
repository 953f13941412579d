"""New weights from a trainer's memory to vLLM's servers, over one collective: vLLM's own weight transfer, driven here.

The trainer's first process and the workers of all servers are one group. A push holds all draws back, lets the servers
finish those of others, sends every weight once, has each server empty its prefix cache, and believes none that does not
name the new version itself. A server that is away or was started again is left out, and the group is formed anew before
the next push; a transfer that breaks off leaves nobody believed. Whoever calls gives the files to those that are left.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from treewright.agent.policies.vllm_client import SENDING, Unknown, VLLMPolicy
from treewright.envs.errors import TreewrightError
from treewright.envs.waiting import together
from treewright.training.parallel.ranks import RankLost

__all__ = ["Client", "Meeting", "OpenSender", "Push", "PushStuck", "Sender", "Source", "nccl_sender"]

log = logging.getLogger(__name__)
T = TypeVar("T")

DEADLINE = 600.0  # seconds for forming a group, and for one transfer
PATIENCE = 30.0  # seconds that a transfer has to end after its group was torn down
ASKING = 20.0  # seconds for a server to answer a short question
LOOKING = 120.0
BUFFER = 256 << 20
"""Bytes that are sent at once; two such buffers stand beside the weights, larger ones where a weight is."""
SERVE = 'VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\''


class PushStuck(RankLost):
    """A transfer hangs and cannot be ended: nothing more can be sent from this process."""


class Source(Protocol):
    """The weights, as vLLM's `WeightSource`: `treewright.training.streamed.Weights`."""

    def metadata(self) -> Sequence[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...

    def drain(self) -> None: ...


class Sender(Protocol):
    """The trainer's side of a group, as vLLM's `TrainerWeightTransferEngine`."""

    def send_weights(self) -> None: ...

    def shutdown(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the group meets: an address of this machine, a port that is free, and how many it will be."""

    address: str
    port: int
    world: int


OpenSender = Callable[[Meeting, "Client", Source], Sender]


def nccl_sender(meeting: Meeting, client: Client, source: Source) -> Sender:
    """vLLM's own NCCL engine for trainers. Blocks until all servers have joined."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    told = NCCLTrainerInitInfo(
        master_address=meeting.address, master_port=meeting.port, world_size=meeting.world, rank=0,
        packed=True, packed_buffer_size_bytes=BUFFER,
    )  # fmt: skip
    sender: Sender = WeightTransferTrainerFactory.trainer_init(told, client=client, source=source)
    return sender


class Client:
    """vLLM's `VLLMWeightSyncClient` for many servers: each order goes to all at once. Called from a sender's threads.

    sizes    workers of each server
    refused  the first order that a server did not obey
    """

    def __init__(
        self, members: Sequence[VLLMPolicy], sizes: Sequence[int], loop: asyncio.AbstractEventLoop, deadline: float
    ) -> None:
        self.members, self.sizes, self.loop, self.deadline = list(members), list(sizes), loop, deadline
        self.refused: concurrent.futures.Future[TreewrightError] = concurrent.futures.Future()
        self._under_way: set[concurrent.futures.Future[None]] = set()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first, bodies = int(init_info["rank_offset"]), []
        for size in self.sizes:
            bodies.append({"init_info": {**init_info, "rank_offset": first}})
            first += size
        self._all("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._all("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._all("/update_weights", [{"update_info": update_info}] * len(self.members))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("/finish_weight_update")  # the version comes last, see `Push._took`

    def _all(self, path: str, bodies: Sequence[Any] = ()) -> None:
        job = asyncio.run_coroutine_threadsafe(self._orders(path, bodies or [None] * len(self.members)), self.loop)
        self._under_way.add(job)
        try:
            job.result()
        finally:
            self._under_way.discard(job)

    async def _orders(self, path: str, bodies: Sequence[Any]) -> None:
        try:
            await together([m.order(path, body, self.deadline) for m, body in zip(self.members, bodies, strict=True)])
        except TreewrightError as error:
            if not self.refused.done():
                self.refused.set_result(error)
            raise

    def stop(self) -> None:
        """Waits for no answer any more."""
        for job in list(self._under_way):
            job.cancel()


class Push:
    """Sends what `source` gives to servers; `send` is called again and again, `open` says before whether it can.

    within  what a thread that touches the weights must be in: its device
    """

    def __init__(
        self,
        source: Source,
        open_sender: OpenSender = nccl_sender,
        *,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
        deadline: float = DEADLINE,
        patience: float = PATIENCE,
    ) -> None:
        self.source, self.open_sender, self.within = source, open_sender, within
        self.deadline, self.patience = deadline, patience
        self._sender: Sender | None = None
        self._client: Client | None = None
        self._known: dict[VLLMPolicy, str] = {}  # what each server in the group calls its weights
        self.pushes = 0

    # -- the group --------------------------------------------------------------------------------------------------

    async def open(self, policies: Sequence[VLLMPolicy]) -> None:
        """Forms the group of all servers. Raises TreewrightError where one of them cannot be in it."""
        await self._form(policies, all_of_them=True)

    async def _form(self, policies: Sequence[VLLMPolicy], all_of_them: bool = False) -> Client:
        await self.close()
        sizes: dict[VLLMPolicy, int] = {}
        for policy, size in zip(policies, await asyncio.gather(*map(_workers, policies)), strict=True):
            if isinstance(size, TreewrightError):
                if all_of_them:
                    raise size
                log.warning("%s; the others get the weights without it", size)
            else:
                sizes[policy] = size
        if not sizes:
            raise TreewrightError("none of the servers answers; start them again, or set loop.push=files")
        await together([policy.mend() for policy in sizes])
        meeting = Meeting(_address(list(sizes)), _free_port(), 1 + sum(sizes.values()))
        client = Client(list(sizes), list(sizes.values()), asyncio.get_running_loop(), self.deadline)
        try:
            self._sender = await self._done(lambda: self.open_sender(meeting, client, self.source), client)
        except Exception as error:  # vLLM's and its libraries' own
            raise TreewrightError(_why_apart(error, meeting, len(sizes))) from error
        finally:
            client.stop()
        self._client, mark = client, f"not yet sent, {secrets.token_hex(4)}"
        for policy in sizes:  # by this name it is known not to have begun anew, whatever its weights are
            policy.group, self._known[policy] = self, mark
            await policy.order("/update_weight_version", _name(mark))
        return client

    async def close(self) -> None:
        """Ends the group; the servers go on."""
        sender, client = self._sender, self._client
        self._sender = self._client = None
        self._known.clear()
        for policy in client.members if client is not None else ():
            if policy.group is self:
                policy.group = None
                try:
                    await policy.order("/shutdown_weight_transfer_engine", None, ASKING)
                except TreewrightError as error:
                    log.debug("%s", error)  # it is away, or was started again
        if sender is not None:
            await asyncio.to_thread(sender.shutdown)

    async def _ready(self, policies: Sequence[VLLMPolicy]) -> Client:
        """The group, formed anew unless all servers that answer are in it and none has begun anew since."""
        client, named = self._client, await asyncio.gather(*map(_named, policies))
        there = [(p, version) for p, version in zip(policies, named, strict=True) if version is not None]
        same = all(p.group is self and version == self._known[p] for p, version in there)
        if client is not None and same and client.members == [p for p, _ in there]:
            return client
        return await self._form(policies)

    # -- a transfer ---------------------------------------------------------------------------------------------------

    async def send(self, policies: Sequence[VLLMPolicy], version: str) -> list[VLLMPolicy]:
        """Gives the servers the weights as they are now; those that have said that they hold `version`.

        Raises PushStuck where a broken transfer cannot be ended, and RankLost where a rank of the trainer is gone.
        """
        async with AsyncExitStack() as stack:
            await together(stack.enter_async_context(policy.held()) for policy in policies)
            try:
                client = await self._ready(policies)
            except TreewrightError as error:
                log.warning("weights %s go as files: %s", version[:8], error)
                return []
            sender = self._sender
            assert sender is not None
            try:
                # Named first: whoever finds a server so, after this process was killed, knows that it must be mended.
                await together([m.order("/update_weight_version", _name(SENDING + version)) for m in client.members])
                await together([m.order("/pause?mode=wait", None, self.deadline) for m in client.members])
                await self._done(sender.send_weights, client, sender)
                self.pushes += 1
                took = await asyncio.gather(*(self._took(m, version) for m in client.members))
                return [m for m, good in zip(client.members, took, strict=True) if good]
            except RankLost:
                raise
            except Exception as error:  # vLLM's and its libraries' own
                log.warning("weights %s were not sent to all servers and go as files: %s", version[:8], error)
                await self._broken(client)
                return []  # who gives them the files mends them, and lets their draws go on
            finally:
                client.stop()

    async def _took(self, member: VLLMPolicy, version: str) -> bool:
        """The end of a transfer at one server, and its word for it."""
        try:
            if member.extended:
                await member.order("/collective_rpc", {"method": "tie_head"})
            await member.order("/reset_prefix_cache")
            await member.order("/resume")
            await member.order("/update_weight_version", _name(version))
            said = (await member.ask("/weight_info")).get("weight_version")
        except TreewrightError as error:
            log.warning("%s", error)
            return False
        if said != version:
            log.warning("%s has the weights %s and not %s that it was sent", member.name, said, version)
            return False
        member.took(version)
        self._known[member] = version
        return True

    async def _broken(self, client: Client) -> None:
        """After a transfer that broke off: no rank of the trainer waits for this one, and the group is no more."""
        await asyncio.to_thread(self._within(self.source.drain))
        for member in client.members:
            member.group = None
        sender, self._sender, self._client = self._sender, None, None
        if sender is not None:
            await asyncio.to_thread(sender.shutdown)

    async def _done(self, work: Callable[[], T], client: Client, sender: Sender | None = None) -> T:
        """What `work` gives, in a thread that the end of this process does not wait for.

        Where a server refuses, or the deadline passes, the group is torn down, so that who waits in it gets out.
        """
        job: concurrent.futures.Future[T] = concurrent.futures.Future()
        body = self._within(work)

        def run() -> None:
            try:
                job.set_result(body())
            except BaseException as error:
                job.set_exception(error)

        threading.Thread(target=run, daemon=True, name="push").start()
        waiting, refused = asyncio.wrap_future(job), asyncio.wrap_future(client.refused)
        either: set[asyncio.Future[Any]] = {waiting, refused}
        await asyncio.wait(either, timeout=self.deadline, return_when=asyncio.FIRST_COMPLETED)
        late = not waiting.done() and not refused.done()
        if not waiting.done():
            client.stop()
            if sender is not None:
                await asyncio.to_thread(sender.shutdown)
                await asyncio.wait({waiting}, timeout=self.patience)
        waiting.add_done_callback(_heard)
        told = f"no end within {self.deadline:g} s" if late else str(refused.result()) if refused.done() else ""
        if sender is not None and not waiting.done():
            raise PushStuck(
                f"the transfer of weights to the servers hangs ({told}); the checkpoints are whole: start the servers "
                "again, then type the same line again"
            )
        if told:
            raise TreewrightError(told)
        return waiting.result()

    def _within(self, work: Callable[[], T]) -> Callable[[], T]:
        def body() -> T:
            with self.within():
                return work()

        return body


def _heard(job: asyncio.Future[Any]) -> None:
    """Whatever came of it: somebody has looked."""
    if not job.cancelled():
        job.exception()


async def _workers(policy: VLLMPolicy) -> int | TreewrightError:
    """How many workers a server has; why it cannot be in a group."""
    try:
        said = (await policy.ask("/get_world_size", ASKING)).get("world_size")
    except Unknown as error:
        return TreewrightError(f"{error}; to send it weights: {SERVE}")
    except TreewrightError as error:
        return error
    config: Any = None
    with suppress(TreewrightError):  # it looks at its whole machine, which may take long
        config = (await policy.ask("/server_info?config_format=json", LOOKING)).get("vllm_config")
    if isinstance(config, dict) and not config.get("weight_transfer_config"):
        return TreewrightError(f"{policy.name} was started without a way to send it weights; start it as {SERVE}")
    if not isinstance(said, int) or said < 1:
        return TreewrightError(f"{policy.name}: /get_world_size says {said!r}; is this vLLM 0.32? Set loop.push=files")
    return said


def _name(version: str) -> dict[str, str]:
    return {"new_version": version}


async def _named(policy: VLLMPolicy) -> str | None:
    """What a server calls its weights; None where it does not answer."""
    try:
        return str((await policy.ask("/weight_info", ASKING)).get("weight_version"))
    except TreewrightError as error:
        log.debug("%s", error)
        return None


def _address(policies: Sequence[VLLMPolicy]) -> str:
    """This machine as the servers reach it: VLLM_HOST_IP, else the address that leads to the first one elsewhere."""
    if said := os.environ.get("VLLM_HOST_IP"):
        return said
    for policy in policies:
        host, port = policy.wire.base_url.host, policy.wire.base_url.port or 80
        if not _here(host):
            try:
                with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as asking:
                    asking.connect((host, port))  # sends nothing
                    return str(asking.getsockname()[0])
            except OSError as error:
                raise TreewrightError(
                    f"no way to {host}: {error}; set VLLM_HOST_IP to this machine's address"
                ) from error
    return "127.0.0.1"


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_port() -> int:
    with socket.create_server(("", 0)) as held:
        port: int = held.getsockname()[1]
    return port


def _why_apart(error: BaseException, meeting: Meeting, servers: int) -> str:
    if isinstance(error, ImportError):
        return f"this vLLM cannot send weights ({error}): pip install --upgrade vllm, or set loop.push=files"
    told = f"{servers} servers and this trainer did not come together at {meeting.address}:{meeting.port}: {error}"
    if "Duplicate GPU" in str(error) or "invalid usage" in str(error).lower():
        return f"{told}; trainer and servers need GPUs of their own (CUDA_VISIBLE_DEVICES), or set loop.push=files"
    return f"{told}; they must reach that address (VLLM_HOST_IP sets another one), or set loop.push=files"
