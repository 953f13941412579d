"""The real vLLM on a CPU, in this program and as a server, beside transformers: `make test-vllm`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none

from treewright.agent.runs.collect import World
from treewright.search.tree import Tree

pytest.importorskip("vllm", reason="needs vLLM; make test-vllm builds a venv with it")

import torch
from safetensors.torch import save_file

from treewright.agent.config import load_config
from treewright.agent.policies.actions import action_grammar
from treewright.agent.policies.opening import open_policy, serve_weights
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.policies.vllm_server import vllm_server
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.loop import Learner, make_trainer, run_loop, tasks_for
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.segments import Segments
from treewright.search.types import Budget, Context, PolicyFault

pytestmark = pytest.mark.asyncio(loop_scope="module")
GAP = 1e-3  # nats, float32
NAMES = ("here", "server", "hf")
BUDGET, SETTINGS = Budget(expansions=6), Settings(max_tokens=48, close=True)


class Three(dict[str, Any]):
    """The policies by name, and the end of the server."""

    stop_server: Any


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three() -> AsyncIterator[Three]:
    """The seedling in vLLM in this program, behind vLLM's server, and in transformers."""
    torch.set_num_threads(1)
    engine = {"max_model_len": 2048, "enable_lora": True, "max_lora_rank": 8}
    arguments = ["--max-model-len", "2048", "--enable-lora", "--max-lora-rank", "8"]
    async with AsyncExitStack() as stack:
        here, url = await asyncio.gather(
            asyncio.to_thread(open_policy, "vllm:seedling", engine=engine),
            stack.enter_async_context(vllm_server(SEEDLING, arguments)),
        )
        server = open_policy(f"vllm:{SEEDLING}@{url}", extended=True, backoff=0.05)
        policies = Three(here=here, server=server, hf=open_policy("seedling"))
        policies.stop_server = stack.aclose
        yield policies
        for policy in policies.values():
            await policy.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds() -> AsyncIterator[dict[str, World]]:
    async with open_worlds(["kg"]) as opened:
        yield opened


@pytest.fixture(autouse=True)
def plain(three: Three) -> Iterator[None]:
    yield
    for policy in three.values():
        policy.temperature = 1.0


def tasks(worlds: dict[str, World], count: int = 3) -> list[Task]:
    return tasks_for(worlds, "train", 0, count)


async def grow(policy: Any, worlds: dict[str, World], task: Task, temperature: float = 1.0, **more: Any) -> Tree:
    policy.temperature = temperature
    settings = Settings(**{"max_tokens": 48, "close": True, **more})
    return await search(
        task, worlds["kg"].pool, policy, rule=best_first(root_draws=4), budget=BUDGET, settings=settings
    )


def gap(a: Tree, b: Tree) -> float:
    assert a.ids == b.ids
    return max(abs(x - y) for i in range(1, len(a)) for x, y in zip(a.logprobs[i], b.logprobs[i], strict=True))


@torch.no_grad()
def scored(model: Any, tree: Tree) -> float:
    """Largest difference between the tree's log-probs and those of `model` on the same tokens."""
    worst = 0.0
    for node in range(1, len(tree)):
        prompt, ids = tree.context_ids(tree.parent[node]), tree.ids[node]
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
        worst = max(worst, float((own - torch.tensor(tree.logprobs[node])).abs().max()))
    return worst


async def test_greedy_trees_are_equal_and_log_probs_agree(three: Three, worlds: dict[str, World]) -> None:
    for task in tasks(worlds):
        here, server, hf = [await grow(three[name], worlds, task, 0.0) for name in ("here", "server", "hf")]
        assert gap(here, hf) < GAP and gap(server, hf) < GAP


async def test_sampled_trees_follow_their_seeds_and_their_log_probs_are_the_model_s_own(
    three: Three, worlds: dict[str, World]
) -> None:
    for task in tasks(worlds):
        here, server = [await grow(three[name], worlds, task) for name in ("here", "server")]
        again = await grow(three["here"], worlds, task)
        other = await grow(three["here"], worlds, task, seed=1)
        assert here.exact and here.ids == again.ids == server.ids and other.ids != here.ids
        assert len(here) > 4 and gap(here, server) < GAP
        assert scored(three["hf"].model, here) < GAP


@pytest.mark.parametrize(
    "cut", [Segments(length=4, most=6), Segments(by="delimiter", delimiter=" ", length=12, most=4)], ids=lambda c: c.by
)
async def test_trees_with_segments_agree_and_their_log_probs_are_those_of_whole_responses(
    three: Three, worlds: dict[str, World], cut: Segments
) -> None:
    for task in tasks(worlds, 2):
        here, server, hf = trees = [await grow(three[name], worlds, task, 0.0, segments=cut) for name in NAMES]
        inside = [[i for i in range(len(tree)) if tree.in_turn(i)] for tree in trees]
        assert inside[0] and inside[0] == inside[1] == inside[2] and here.text == server.text == hf.text
        assert gap(here, hf) < GAP and gap(server, hf) < GAP
        drawn, other = [await grow(three[name], worlds, task, segments=cut) for name in ("here", "server")]
        assert drawn.exact and drawn.ids == other.ids and any(drawn.in_turn(i) for i in range(len(drawn)))
        assert gap(drawn, other) < GAP and scored(three["hf"].model, drawn) < GAP


async def test_after_a_training_step_all_three_serve_the_new_weights(
    three: Three, worlds: dict[str, World], tmp_path: Path
) -> None:
    config = load_config(None, [f"folder={tmp_path}", "loop.iterations=1", "loop.tasks=6", "search.expansions=2"])
    learner, task, before = Learner(make_trainer(config, SEEDLING), tmp_path / "checkpoints"), tasks(worlds)[2], {}
    for name, policy in three.items():
        before[name] = await grow(policy, worlds, task, 0.0)
        policy.temperature = 1.0
    try:
        await run_loop(config, worlds, three["here"], learner)
        (done,) = learner.rounds
        assert done.stats["sampler_gap"] < GAP and done.trained != done.drawn_by
        saved = next((tmp_path / "checkpoints").glob("step-*"))
        versions = {await serve_weights(policy, saved) for name, policy in three.items() if name == "server"}
        await serve_weights(three["hf"], saved)
        assert versions == {three["here"].version}
        after = {name: await grow(policy, worlds, task, 0.0) for name, policy in three.items()}
        assert gap(after["here"], after["hf"]) < GAP and gap(after["server"], after["hf"]) < GAP
        first = [(a.ids[1], a.logprobs[1]) for a in (before["here"], after["here"])]
        assert first[0] != first[1]
        await serve_weights(three["here"], SEEDLING)
        back = await grow(three["here"], worlds, task, 0.0)
        assert gap(back, before["here"]) < 1e-5
        await three["here"].load_state(three["hf"].model.state_dict(), "in memory")
        again = await grow(three["here"], worlds, task, 0.0)
        assert gap(again, after["hf"]) < GAP and three["here"].version == "in memory"
    finally:
        for policy in three.values():
            await serve_weights(policy, SEEDLING)


class Waiting(Learner):
    """Its first step does not end before a tree of the next round is there."""

    grown = threading.Event()

    def learn(self, trees: Sequence[Tree], extra: dict[str, Any]) -> tuple[dict[str, float], Any]:
        assert self.rounds or self.grown.wait(60), "nothing was collected while the trainer worked"
        return super().learn(trees, extra)


@pytest.mark.parametrize("name", ["here", "server"])
async def test_one_step_behind_the_engine_draws_while_the_trainer_works(
    three: Three, worlds: dict[str, World], tmp_path: Path, name: str
) -> None:
    settings = ("loop.iterations=3", "loop.tasks=4", "search.expansions=2", "loop.behind=1", "name=b")
    config, policy = load_config(None, [f"folder={tmp_path}", *settings]), three[name]
    learner = Waiting(make_trainer(config, SEEDLING), tmp_path / "checkpoints")
    learner.grown.clear()

    def grown(tree: Any) -> None:
        if tree.header.run == "b/1":
            learner.grown.set()

    try:
        kept: list[list[Any]] = []
        await run_loop(config, worlds, policy, learner, on_tree=grown, on_trees=kept.append)
        rounds = learner.rounds
        assert rounds[0].drawn_by == rounds[1].drawn_by != rounds[2].drawn_by == rounds[0].trained
        assert [r.stats["oldest"] for r in rounds] == [0, 1, 1]
        assert rounds[0].stats["sampler_gap"] < GAP < rounds[1].stats["sampler_gap"]
        assert all(
            t.exact and t.header.policy_version == r.drawn_by for r, k in zip(rounds, kept, strict=True) for t in k
        )
        await serve_weights(three["hf"], not_none(learner.saved))
        after = [await grow(three[who], worlds, tasks(worlds)[2], 0.0) for who in (name, "hf")]
        assert gap(*after) < GAP  # the newest weights, and nothing cached of older ones
    finally:
        for one in (policy, three["hf"]):
            await serve_weights(one, SEEDLING)


async def test_a_folder_without_weights_is_refused_before_anything_changes(three: Three, tmp_path: Path) -> None:
    for policy in three.values():
        version = policy.version
        with pytest.raises(TreewrightError, match="cannot load weights"):
            await serve_weights(policy, tmp_path)
        assert policy.version == version


def adapter(folder: Path, model: Any, rank: int = 4) -> dict[str, Any]:
    """A random LoRA adapter in peft's layout, and the same change made to a copy of the weights."""
    tensors: dict[str, Any]
    made, tensors, config = torch.Generator().manual_seed(5), {}, model.config
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    for layer in range(config.num_hidden_layers):
        for part in ("q_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{part}"
            out, into = state[f"{name}.weight"].shape
            a, b = (torch.randn(*shape, generator=made) * 0.2 for shape in ((rank, into), (out, rank)))
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            state[f"{name}.weight"] += b @ a * 2.0
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"bias": "none", "task_type": "CAUSAL_LM"}))
    return state


async def test_a_lora_adapter_is_loaded_while_serving(three: Three, worlds: dict[str, World], tmp_path: Path) -> None:
    hf, task = three["hf"], tasks(worlds)[2]
    plain = await grow(hf, worlds, task, 0.0)
    changed = adapter(tmp_path, hf.model)
    kept = {name: weight.clone() for name, weight in hf.model.state_dict().items()}
    try:
        for name in ("here", "server"):
            before = three[name].version
            assert await three[name].load_adapter(tmp_path) != before
        hf.model.load_state_dict(changed)
        hf.refresh()
        want = await grow(hf, worlds, task, 0.0)
        assert plain.ids != want.ids or gap(plain, want) > 0.05
        for name in ("here", "server"):
            assert gap(await grow(three[name], worlds, task, 0.0), want) < GAP, name
    finally:
        hf.model.load_state_dict(kept)
        hf.refresh()
        three["here"].engine._adapter, three["server"].model = None, str(SEEDLING)


@torch.no_grad()
def masked_gap(hf: Any, grammar: str, prompt: Any, done: Any) -> tuple[float, float]:
    """Largest difference between a draw's log-probs and the model's own under the grammar's mask."""
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    matcher = LLMatcher(
        from_tokenizer(hf.tokenizer, n_vocab=hf.model.config.vocab_size, eos_token=hf.stop_ids), grammar
    )
    logits = hf.model(input_ids=torch.tensor([prompt + done.token_ids])).logits[0, len(prompt) - 1 :]
    worst, masked = 0.0, 0.0
    for at, token in enumerate(done.token_ids):
        bits = matcher.compute_bitmask()
        allowed = [t for t in range(logits.shape[1]) if bits[t // 8] >> (t % 8) & 1]
        worst = max(worst, abs(float(logits[at][token] - logits[at][allowed].logsumexp(0)) - done.logprobs[at]))
        masked = max(masked, float(logits[at].logsumexp(0) - logits[at][allowed].logsumexp(0)))
        matcher.consume_token(token)
    return worst, masked


@pytest.mark.parametrize("name", ["here", "server"])
async def test_draws_under_a_grammar_are_actions_with_the_masked_log_probs(three: Three, name: str) -> None:
    policy = three[name]
    tools = (ToolSpec("pick", "", {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}),)
    policy.grammar = policy.masked_exact = True
    try:
        context = policy.context(Task("kg", "1", "pick one"), tools, Observation("start"), (), ())
        done = await policy.draw(context, range(6), 64)
    finally:
        policy.grammar = False
    assert {c.text for c in done} <= {'pick {"n": 1}', 'pick {"n": 22}'} and all(c.trainable for c in done)
    gaps = [masked_gap(three["hf"], action_grammar(tools), context.ids, c) for c in done]
    assert max(gap for gap, _ in gaps) < GAP and max(masked for _, masked in gaps) > 0.1


async def test_cancelled_draws_are_freed_and_the_line_keeps_back_what_the_engine_cannot_take(
    three: Three, worlds: dict[str, World]
) -> None:
    policy = three["here"]
    task = tasks(worlds, 1)[0]
    async with worlds["kg"].pool.lease("t", (0,)) as session:
        seen = await session.env.reset(task, 0)
        context = policy.context(task, await worlds["kg"].pool.tools(session), seen, (), ())
    policy.stop_ids, stops = (), policy.stop_ids
    most = policy.line.limit
    try:
        draw = asyncio.create_task(policy.draw(context, range(most + 9), 1500))
        async with asyncio.timeout(60):
            while policy.engine.llm.get_num_unfinished_requests() < most:  # noqa: ASYNC110 (vLLM has no event for it)
                await asyncio.sleep(0.01)
        assert policy.line.now == most and policy.line.waiting == 9
        draw.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draw
        policy.deadline, deadline = 0.5, policy.deadline
        with pytest.raises(PolicyFault, match="no answer within"):
            await policy.draw(context, [1], 1800)
        policy.deadline = deadline
        assert policy.engine.llm.get_num_unfinished_requests() == policy.line.now == policy.line.waiting == 0
        (short,) = await policy.draw(context, [1], 4)
        assert len(short.token_ids) == 4 and short.finish_reason == "length"
    finally:
        policy.stop_ids = stops


async def test_sleeping_frees_nothing_on_a_cpu_and_drawing_goes_on(three: Three, worlds: dict[str, World]) -> None:
    for name in ("here", "server"):
        assert await three[name].sleep() is False
        await three[name].wake()
        assert len(await grow(three[name], worlds, tasks(worlds)[0])) > 1


async def test_one_model_in_two_event_loops_is_refused_in_words(three: Three) -> None:
    policy = three["here"]

    context = Context(keep=0, delta=(5, 6), ids=(5, 6))
    await policy.draw(context, [1], 1)
    with pytest.raises(TreewrightError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(policy.draw(context, [1], 1)))


def kill(policy: Any) -> None:
    for process in policy.engine.llm.engine_core.resources.engine_manager.processes:
        os.kill(process.pid, signal.SIGKILL)


async def test_an_engine_whose_process_is_killed_is_started_again_with_the_weights_that_it_had(
    three: Three, worlds: dict[str, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, hf, task = three["here"], three["hf"], tasks(worlds)[2]
    with torch.no_grad():
        hf.model.model.norm.weight.mul_(1.1)
    try:
        hf.model.save_pretrained(tmp_path)
        version = await serve_weights(policy, tmp_path)
        killed: list[Any]
        want, killed = await grow(policy, worlds, task), []

        def note(tree: Tree, new: Any) -> None:
            if not killed:
                killed.append(len(tree))
                kill(policy)

        policy.temperature = 1.0
        got = await search(
            task, worlds["kg"].pool, policy, rule=best_first(root_draws=4), budget=BUDGET, settings=SETTINGS,
            on_expansion=note,
        )  # fmt: skip
        assert killed and killed[0] < len(want)
        assert got.exact and got.ids == want.ids and gap(got, want) < GAP
        assert policy.stats.restarts == 1 and policy.version == version
        monkeypatch.setattr(policy, "restarts", 0)
        kill(policy)
        lost = await grow(policy, worlds, task)
        assert not lost.exact and "a fault persisted" in lost.reasons
        monkeypatch.setattr(policy, "restarts", 9)
        await policy.load_state(hf.model.state_dict(), "in memory")  # to an engine that is dead
        assert policy.version == "in memory" and policy.stats.restarts == 2
        kill(policy)
        again = await grow(policy, worlds, task)
        assert again.exact and again.ids == want.ids and policy.stats.restarts == 3
    finally:
        with torch.no_grad():
            hf.model.model.norm.weight.div_(1.1)
        hf.refresh()
        await serve_weights(policy, SEEDLING)


async def test_sleep_on_a_cpu_is_refused_in_words() -> None:
    with pytest.raises(TreewrightError, match="cannot give memory back"):
        await asyncio.to_thread(open_policy, "vllm:seedling", engine={"enable_sleep_mode": True})


async def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match="no model in the folder"):
        open_policy(f"vllm:{tmp_path}")


async def test_a_server_that_dies_is_a_fault_within_the_deadline(three: Three, worlds: dict[str, World]) -> None:
    policy, task, loop = three["server"], tasks(worlds, 1)[0], asyncio.get_running_loop()
    policy.deadline = 20
    assert (await grow(policy, worlds, task)).exact
    await three.stop_server()
    began = loop.time()
    tree = await grow(policy, worlds, task, attempt=1)
    assert not tree.exact and "a fault persisted" in tree.reasons and loop.time() - began < 22
