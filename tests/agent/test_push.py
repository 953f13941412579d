"""Weights go from a trainer's memory to served models: over real gloo, to engines in processes of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from forked import Child
from gloo_group import Gloo
from not_none import not_none
from push_engine import digest
from safetensors.torch import load_file, save_file
from search_trees import tiny_model
from speed import patient

from treewright.agent.config import load_config
from treewright.agent.policies.many import ManyPolicy
from treewright.agent.policies.push import Push
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.policies.vllm_client import SENDING, VLLMPolicy
from treewright.agent.runs.loop import Learner
from treewright.agent.runs.pushing import push_for, serve_from
from treewright.envs.errors import TreewrightError
from treewright.search.types import PolicyFault
from treewright.training.checkpoint import streamed
from treewright.training.settings import TrainSettings
from treewright.training.step import Trainer

from .fake_server import root
from .small import compact

HELPERS = Path(__file__).parents[1] / "helpers"
LAST = "model.norm.weight"


class GlooSender:
    """The trainer's side, in vLLM's order of things, over gloo."""

    def __init__(self, meeting: Any, client: Any, source: Any) -> None:
        self.client, self.source = client, source
        info = {"master_address": meeting.address, "master_port": meeting.port, "world_size": meeting.world}
        with ThreadPoolExecutor(1) as beside:
            joining = beside.submit(client.init_weight_transfer_engine, {**info, "rank_offset": 1})
            self.group = Gloo(meeting.address, meeting.port, 0, meeting.world)
            joining.result()

    def send_weights(self) -> None:
        meta = self.source.metadata()
        self.client.start_weight_update()
        kinds = {"names": [m.name for m in meta], "dtype_names": [str(m.dtype).split(".")[-1] for m in meta],
                 "shapes": [list(m.shape) for m in meta]}  # fmt: skip
        beside = ThreadPoolExecutor(1)
        taking = beside.submit(self.client.update_weights, kinds)
        for _, tensor in self.source:
            self.group.broadcast(tensor.contiguous())
        taking.result()
        beside.shutdown(wait=False)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.group.destroy()


class Engines:
    """Servers by the port that they are at."""

    def __init__(self) -> None:
        self.running: dict[int, Child] = {}
        self.policies: list[VLLMPolicy] = []

    def start(self, *told: str, port: int = 0) -> int:
        with socket.create_server(("127.0.0.1", port)) as held:
            port = held.getsockname()[1]
        words: list[str | Path] = [HELPERS / "push_engine.py", str(port), *told]
        self.running[port] = Child(words, None, {**os.environ, "PYTHONPATH": str(HELPERS)})
        return port

    def policy(self, *told: str) -> VLLMPolicy:
        url = f"http://127.0.0.1:{self.start(*told)}/v1"
        self.policies.append(VLLMPolicy("m", url, tokenizer=compact(), version="v0", backoff=0.05, deadline=5.0))
        return self.policies[-1]

    async def ready(self, policy: VLLMPolicy) -> dict[str, Any]:
        """What the engine says of itself, once it does."""
        async with asyncio.timeout(patient(20)):
            while True:
                try:
                    return await policy.ask("/state")
                except TreewrightError:
                    await asyncio.sleep(0.02)

    def kill(self, policy: VLLMPolicy) -> int:
        port = not_none(policy.wire.base_url.port)
        self.running[port].kill()
        self.running[port].wait()
        return port

    def close(self) -> None:
        for child in self.running.values():
            child.__exit__()


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    made = Engines()
    try:
        yield made
    finally:
        for policy in made.policies:
            await policy.close()
        made.close()


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    yield Trainer(tiny_model(1).float(), TrainSettings())


def moved(trainer: Trainer, folder: Path) -> dict[str, torch.Tensor]:
    """Other weights in the trainer, and in the folder as its checkpoint has them."""
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(torch.randn_like(p))
    folder.mkdir()
    weights = {name: t.detach().clone() for name, t in streamed(trainer)}
    save_file(weights, folder / "model.safetensors")
    return weights


def pushing(trainer: Trainer, deadline: float = 30.0) -> Push:
    return Push(streamed(trainer), GlooSender, deadline=patient(deadline), patience=patient(10))


async def test_every_push_gives_all_engines_the_weights_of_that_moment_and_forgets_their_prefixes(
    engines: Engines, trainer: Trainer, tmp_path: Path
) -> None:
    each = [engines.policy(), engines.policy()]
    many, push = ManyPolicy(each), pushing(trainer)
    for policy in each:
        await engines.ready(policy)
    await push.open(each)
    for number in (1, 2):
        weights = moved(trainer, tmp_path / f"step-{number}")
        (done,) = await each[1].draw(root(each[1]), [1], 4)
        assert done.policy_version == each[1].version != f"w{number}"
        assert await many.load_pushed(push, tmp_path / f"step-{number}", f"w{number}") == f"w{number}" == many.version
        for policy in each:
            state = await engines.ready(policy)
            assert state["digest"] == digest(weights) and not state["paused"] and not state["cached"]
            assert (await policy.ask("/weight_info"))["weight_version"] == f"w{number}" == policy.version
            assert "/collective_rpc" not in state["seen"], "no file was read"
        assert all(policy.sure for policy in each)
    orders = [o for o in (await engines.ready(each[0]))["seen"] if o != "/v1/completions"]
    named = "/update_weight_version"
    again = [named, "/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache",
             "/resume", named]  # fmt: skip
    assert orders == ["/init_weight_transfer_engine", named, *again, *again]
    assert push.pushes == 2
    await push.close()
    assert (await engines.ready(each[0]))["seen"][-1] == "/shutdown_weight_transfer_engine"


async def test_an_engine_that_dies_within_a_push_is_left_out_and_the_others_get_the_files(
    engines: Engines, trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    each = [engines.policy(), engines.policy(f"dies={LAST}"), engines.policy()]
    many, push = ManyPolicy(each, rest=60.0), pushing(trainer)
    for policy in each:
        await engines.ready(policy)
    await push.open(each)
    weights = moved(trainer, tmp_path / "step-1")
    with caplog.at_level(logging.WARNING):
        assert await many.load_pushed(push, tmp_path / "step-1", "w1") == "w1"
    assert "go as files" in caplog.text and "left out" in caplog.text
    for policy in (each[0], each[2]):
        state = await engines.ready(policy)
        assert state["digest"] == digest(weights) == digest(load_file(tmp_path / "step-1" / "model.safetensors"))
        assert policy.version == "w1" and not state["paused"]
    assert each[1].version == "v0" and many.version == "w1"
    engines.start(port=engines.kill(each[1]))  # begun anew, as whoever keeps it running does
    await engines.ready(each[1])
    weights = moved(trainer, tmp_path / "step-2")
    assert await many.load_pushed(push, tmp_path / "step-2", "w2") == "w2"
    for policy in each:
        assert (await engines.ready(policy))["digest"] == digest(weights) and policy.version == "w2"
    assert push.pushes == 1, "the second went to all three, over a new group"
    await push.close()


async def test_an_engine_that_began_anew_between_two_pushes_is_in_the_next_one_and_one_that_is_away_is_not(
    engines: Engines, trainer: Trainer, tmp_path: Path
) -> None:
    each = [engines.policy(), engines.policy()]
    many, push = ManyPolicy(each, rest=60.0), pushing(trainer)
    for policy in each:
        await engines.ready(policy)
    await push.open(each)
    port = engines.kill(each[1])
    weights = moved(trainer, tmp_path / "step-1")
    assert await many.load_pushed(push, tmp_path / "step-1", "w1") == "w1"
    assert (await engines.ready(each[0]))["digest"] == digest(weights) and each[1].version == "v0"
    engines.start(port=port)
    await engines.ready(each[1])
    weights = moved(trainer, tmp_path / "step-2")
    await many.load_pushed(push, tmp_path / "step-2", "w2")
    states = [await engines.ready(policy) for policy in each]
    assert [state["digest"] for state in states] == [digest(weights)] * 2 and push.pushes == 2
    assert all("/collective_rpc" not in state["seen"] for state in states)
    for policy in each:
        engines.kill(policy)
    moved(trainer, tmp_path / "step-3")
    with pytest.raises(TreewrightError, match="ConnectError"):
        await many.load_pushed(push, tmp_path / "step-3", "w3")
    assert many.version == "w2"


@pytest.mark.parametrize(
    ("path", "says"),
    [("/pause", None), ("/start_weight_update", "without a matching start"), ("/finish_weight_update", "was to fail"),
     ("/reset_prefix_cache", "was to fail")],
)  # fmt: skip
async def test_an_engine_that_refuses_an_order_is_not_believed(
    engines: Engines, trainer: Trainer, tmp_path: Path, path: str, says: str | None
) -> None:
    policy = engines.policy(f"refuses={path}")
    push = pushing(trainer)
    await engines.ready(policy)
    await push.open([policy])
    weights = moved(trainer, tmp_path / "step-1")
    assert await push.send([policy], "w1") == [] and policy.version == "v0"
    if says is None:  # nothing had begun
        assert await policy.load_weights(tmp_path / "step-1", "w1") == "w1"
        assert (await engines.ready(policy))["digest"] == digest(weights)
    else:
        with pytest.raises(TreewrightError, match=says):
            await policy.load_weights(tmp_path / "step-1", "w1")
        assert policy.version == "v0"
    await push.close()


async def test_what_keeps_a_group_from_forming_is_told_with_what_to_type(
    engines: Engines, trainer: Trainer, tmp_path: Path
) -> None:
    bare, odd, many = engines.policy("configured=0"), engines.policy("workers=0"), engines.policy("workers=2")
    for policy in (bare, odd, many):
        await engines.ready(policy)
    with pytest.raises(TreewrightError, match=r"without a way to send it weights; start it as .*--weight-transfer-con"):
        await pushing(trainer).open([bare])
    with pytest.raises(TreewrightError, match=r"/get_world_size says 0; .*loop.push=files"):
        await pushing(trainer).open([odd])
    with pytest.raises(
        TreewrightError, match=r"1 servers and this trainer did not come together at 127.0.0.1:\d+: no e"
    ):
        await Push(streamed(trainer), GlooSender, deadline=1.0).open([many])
    engines.kill(odd)
    with pytest.raises(TreewrightError, match="ConnectError"):
        await pushing(trainer).open([odd])
    script = ScriptedPolicy(lambda *_: "look {}", name="s")
    for settings, words in (
        ({}, r"scripted:a:b is not on a vLLM server: give --policy vllm:FOLDER@http"),
        (
            {"policy.spec": f"vllm:m@{bare.wire.base_url}", "train.lora.rank": 4},
            "an adapter is small and goes as files",
        ),
        ({"policy.spec": f"vllm:m@{bare.wire.base_url}"}, "the trainer has no GPU here"),
    ):
        config = load_config(None, [], {"policy.spec": "scripted:a:b", "loop.push": "nccl", **settings})
        given: Any = script if "vllm" not in config.policy.spec else bare
        with pytest.raises(TreewrightError, match=rf"loop.push = nccl: .*{words}"):
            await push_for(config, trainer, given, print)
        auto = config.model_copy(update={"loop": config.loop.model_copy(update={"push": "auto"})})
        said: list[str] = []
        assert await push_for(auto, trainer, given, said.append) is None and not said
    bare.colocated = True
    with pytest.raises(TreewrightError, match=r"shares the trainer's GPU .*leave colocated out"):
        await push_for(config, trainer, bare, print)
    bare.colocated = False
    assert await push_for(auto, trainer, bare, said.append, GlooSender) is None
    assert "new weights go as files" in said[0] and "--weight-transfer-config" in said[0]


async def test_a_server_that_a_killed_trainer_left_within_a_transfer_is_mended_by_whoever_comes_next(
    engines: Engines, trainer: Trainer, tmp_path: Path
) -> None:
    policy = engines.policy()
    await engines.ready(policy)
    weights = moved(trainer, tmp_path / "step-1")
    for files in (True, False):
        for path, body in (("/update_weight_version", {"new_version": SENDING + "w9"}), ("/pause", None),
                           ("/start_weight_update", None)):  # fmt: skip
            await policy.order(path, body)
        assert (await engines.ready(policy))["paused"]
        if files:
            assert await policy.load_weights(tmp_path / "step-1", "w1") == "w1"
        else:
            push = pushing(trainer)
            await push.open([policy])
            assert await push.send([policy], "w1") == [policy]
            await push.close()
        state = await engines.ready(policy)
        assert state["digest"] == digest(weights) and not state["paused"]
        assert (await policy.ask("/weight_info"))["weight_version"] == "w1"


async def test_a_loop_s_checkpoint_is_pushed_where_the_trainer_holds_it(
    engines: Engines, trainer: Trainer, tmp_path: Path
) -> None:
    policy = engines.policy()
    await engines.ready(policy)
    config, said = load_config(None, [], {"policy.spec": f"vllm:m@{policy.wire.base_url}"}), list[str]()
    learner = Learner(trainer, tmp_path / "checkpoints")
    learner.push = await push_for(config, trainer, policy, said.append, GlooSender)
    assert said == ["new weights go straight from the trainer to 1 servers"]
    first = learner.save({}).path
    weights = load_file(first / "model.safetensors")
    version = await serve_from(learner, policy, first)
    state = await engines.ready(policy)
    assert state["digest"] == digest(weights) and "/collective_rpc" not in state["seen"]
    assert trainer.age_of(version) == 0 if trainer.versions else version == policy.version
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.mul_(1.5)
    trainer.steps += 1
    second = learner.save({}).path
    assert await serve_from(learner, policy, second) == policy.version != version
    await serve_from(learner, policy, first)  # not what the trainer has: a loop one step behind that goes on
    state = await engines.ready(policy)
    assert state["digest"] == digest(weights) and state["seen"].count("/collective_rpc") == 1
    engines.kill(policy)
    with pytest.raises(TreewrightError, match=r"which are whole: .*type the same line again"):
        await serve_from(learner, policy, second)
    await not_none(learner.push).close()


async def test_who_is_told_that_a_server_has_new_weights_asks_it_before_it_draws(engines: Engines) -> None:
    policy = engines.policy()
    await engines.ready(policy)
    policy.given("w1")
    with pytest.raises(PolicyFault, match="has the weights default, not w1"):
        await policy.draw(root(policy), [1], 4)
    await policy.order("/update_weight_version", {"new_version": "w1"})
    (done,) = await policy.draw(root(policy), [1], 4)
    assert done.policy_version == "w1"
    assert_near(done.logprobs, (-1.0,))
