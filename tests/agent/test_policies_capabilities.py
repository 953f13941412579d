"""What a policy can do beside drawing is found through what is put around it; trees keep only sound log-probs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from not_none import not_none
from starlette.responses import Response

from treewright.agent.config import Config
from treewright.agent.policies.policy import Policy, Sleeper, Templated, Trusting, Uncertain, Updatable
from treewright.agent.policies.propose import Distinct, Variety, plain, rephrased
from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.agent.policies.vllm_client import VLLMPolicy
from treewright.agent.policies.weights import folder_version
from treewright.agent.runs.loop import Learner, make_trainer, run_loop
from treewright.envs import maze
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Costly, NodeStatus, Sampler, layers

from .fake_server import Server, opened, said, serving
from .small import compact, qwen3

if TYPE_CHECKING:
    from starlette.datastructures import State
    from starlette.requests import Request


TASK = maze.SUITE.tasks("train", 1)[0]


def having(policy: Distinct, kind: Any) -> Any:
    return next((p for p in layers(policy) if isinstance(p, kind)), None)


async def test_a_capability_is_that_of_the_first_layer_that_has_it() -> None:
    async with opened(Server(), price_out=1000.0, temperature=0.5) as chat:
        around = Distinct(Variety(chat, [plain, rephrased(lambda task: task.goal)]), patience=3)
        assert isinstance(around, Policy) and having(around, Sampler) is chat
        assert having(around, Costly) is around and around.dearest(10) == 3 * chat.dearest(10)
        assert not any(having(around, kind) for kind in (Templated, Updatable, Sleeper, Uncertain, Trusting))
    script = Distinct(ScriptedPolicy(lambda *_: "look {}"))
    assert having(script, Sampler) is None and script.dearest(10) == 0.0


async def test_sampling_and_money_count_under_contexts_and_distinct_draws() -> None:
    def answer(body: Any) -> dict[str, Any]:
        reply = said(*[f'go {{"to": {body["seed"] % 4}}}'] * body.get("n", 1))
        reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 40 * body.get("n", 1)}
        return reply

    prices: dict[str, Any] = {"price_in": 1.0, "price_out": 1000.0, "longest_prompt": 4000, "together": False}
    async with opened(Server(answer), temperature=0.5, **prices) as chat:
        for policy in (Variety(chat, [plain, rephrased(lambda task: task.goal)]), Distinct(chat, patience=2)):
            tree = await search(
                TASK, maze.SUITE, policy, rule=best_first(draws=2), budget=Budget(money=1.0),
                settings=Settings(max_tokens=40, retries=0),
            )  # fmt: skip
            assert tree.header.settings["sampling"] == {"temperature": 0.5}
            assert tree.stopped_by == "money" and 0.3 < tree.spent.money <= 1.0


# -- log-probs ------------------------------------------------------------------------------------------------------


class Odd(ScriptedPolicy):
    """A table's draws, with other log-probs at the nodes after the first turn."""

    def __init__(self, change: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(lambda *_: "", **options)
        self.change, self.own = change, scripted_choice([('go {"to": 1}', 0.5), ('go {"to": 2}', 0.5)])

    async def draw(self, context: Any, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        from dataclasses import replace

        done = await self.own.draw(context, seeds, max_tokens)
        return [replace(one, **self.change(one)) for one in done] if context.turns else done


async def grown(policy: Odd | VLLMPolicy, **more: Any) -> Tree:
    return await search(
        TASK, maze.SUITE, policy, rule=best_first(draws=2, root_draws=2), budget=Budget(expansions=3),
        settings=Settings(max_tokens=40, retries=0, **more),
    )  # fmt: skip


@pytest.mark.parametrize("change, says", [
    (lambda one: {"logprobs": (-1.0, -math.inf, *one.logprobs[2:])}, "log-prob -inf for token 1 of "),
    (lambda one: {"logprobs": (math.nan, *one.logprobs[1:])}, "log-prob nan for token 0 of "),
    (lambda one: {"logprobs": one.logprobs[1:]}, r"\d+ log-probs for \d+ tokens"),
])  # fmt: skip
async def test_a_draw_whose_log_probs_cannot_be_is_a_fault_of_its_node_and_of_no_other(
    change: Callable[[Any], Any], says: str
) -> None:
    import re

    tree = await grown(Odd(change))
    faulty = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.FAULT]
    assert faulty and 0 not in faulty and all(re.search(says, not_none(tree.fault[i])) for i in faulty)
    assert all(map(math.isfinite, tree.path_logprob)) and tree.reasons == ["a fault persisted"]


async def test_draws_that_only_act_go_without_log_probs_that_cannot_be() -> None:
    tree = await grown(Odd(lambda one: {"logprobs": (-math.inf,), "trainable": False}))
    assert NodeStatus.FAULT not in tree.status and any(not tree.logprobs[i] for i in range(1, len(tree)))


async def test_draws_without_log_probs_are_not_trained_on_and_the_tree_says_so() -> None:
    tree = await grown(Odd(lambda one: {"logprobs": ()}))
    assert NodeStatus.FAULT not in tree.status and not tree.exact
    assert not any(tree.trainable[i] for i in range(1, len(tree)) if not tree.logprobs[i])


# -- a server's weights ---------------------------------------------------------------------------------------------


def spoken(body: Any, **changes: Any) -> dict[str, Any]:
    """vLLM's form of an answer: the first tokens of the vocabulary, surely."""
    ids = list(range(5, 9))
    choice = {"text": "", "finish_reason": "length", "token_ids": ids, "logprobs": {"token_logprobs": [-0.5] * 4}}
    return {"choices": [choice | changes], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 4}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its tokenizer, as a server is started from."""
    qwen3().save_pretrained(tmp_path / "model")
    compact().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def config_for(folder: Path, tmp_path: Path, url: str, *more: Any) -> Config:
    from treewright.agent.config import load_config

    spec = f"policy.spec=vllm:{folder}@{url}"
    return load_config(None, [spec, f"folder={tmp_path / 'run'}", "loop.iterations=1", *more])


async def test_trees_from_a_server_named_by_its_folder_are_known_to_the_trainer_on_that_folder(
    folder: Path, tmp_path: Path
) -> None:
    async with serving(Server(spoken)) as url:
        policy = VLLMPolicy(str(folder), url)
        assert policy.version == folder_version(folder) and not policy.sure
        tree = await grown(policy, close=True)
        await policy.close()
        trainer = make_trainer(config_for(folder, tmp_path, url), folder)
    assert tree.exact and trainer.age_of(tree.header.policy_version) == 0
    stats = trainer.update([tree])
    assert stats["trees"] == 1 and stats["oldest"] == 0


async def test_a_hubs_name_is_known_as_well_and_strangers_are_named(folder: Path, tmp_path: Path) -> None:
    from treewright.training.versions import StaleTrees

    async with serving(Server(spoken)) as url:
        policy = VLLMPolicy("some/model", url, tokenizer=compact())
        assert policy.version == "some/model"
        tree = await grown(policy, close=True)
        await policy.close()
        with pytest.raises(StaleTrees, match=r"1 by weights that this trainer never had \(some/model\)"):
            make_trainer(config_for(folder, tmp_path, url), folder).update([tree])


async def test_a_loop_gives_a_server_its_weights_before_it_draws_whatever_it_is_called(
    folder: Path, tmp_path: Path
) -> None:
    orders = []

    async def control(request: Request[State]) -> Response:
        body = await request.body()
        orders.append((request.url.path, json.loads(body) if body else None))
        return Response(status_code=200)

    async with serving(Server(spoken), control) as url:
        policy, config = VLLMPolicy(str(folder), url), config_for(folder, tmp_path, url)
        learner = Learner(make_trainer(config, folder), config.home / "checkpoints")
        await run_loop(config, {}, policy, learner, first=1)
        assert [path for path, _ in orders] == ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
        assert not_none(orders[0][1])["kwargs"]["weights_path"] == str(folder) and policy.sure
        assert orders[2][1] == {"new_version": policy.version}
        await run_loop(config, {}, policy, learner, first=1)
        assert len(orders) == 3, "its weights are known now"
        await policy.close()


@pytest.mark.parametrize("odd", [-9999.0, None, -math.inf])
async def test_a_server_that_writes_no_log_prob_for_a_drawn_token_faults_the_node(odd: float | None) -> None:
    def answer(body: Any) -> Response:
        text = json.dumps(spoken(body, logprobs={"token_logprobs": [-0.5, odd, -0.5, -0.5]}))
        return Response(text, media_type="application/json")

    async with serving(Server(answer)) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact())
        tree = await grown(policy)
        await policy.close()
    assert tree.status[0] is NodeStatus.FAULT and "for token 1 of 4" in not_none(tree.fault[0])


async def test_an_aborted_answer_is_no_draw() -> None:
    served = Server(spoken)
    served.queue.append(lambda body: spoken(body, finish_reason="abort", token_ids=[5], logprobs=None))
    async with serving(served) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), backoff=0.01)
        tree = await grown(policy)
        await policy.close()
    assert policy.stats.retries == 1 and all(len(tree.ids[i]) == 4 for i in range(1, len(tree)))
    assert "abort" not in tree.finish
