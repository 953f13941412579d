"""A loop in one process holds the weights once: the sampler reads the trainer's."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from treewright.agent.config import Config, load_config
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.opening import open_policy, serve_weights
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.policies.slim import is_slim
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.loop import Learner, make_trainer, run_loop
from treewright.agent.runs.shared import shared_model
from treewright.envs.errors import TreewrightError
from treewright.search.types import Context
from treewright.training import checkpoint
from treewright.training.step import Trainer
from treewright.training.versions import weights_version


def config(folder: Path, **settings: Any) -> Config:
    given = {"loop.iterations": 2, "loop.tasks": 3, "search.expansions": 2} | settings
    return load_config(None, [f"folder={folder}", "name=t", *(f"{k}={v}" for k, v in given.items())])


async def looped(
    cfg: Config, shared: bool, watch: list[Any]
) -> tuple[list[list[tuple[list[str], list[tuple[float, ...]]]]], list[Any]]:
    """Two rounds: the trees' draws, the weights' versions; `watch` is called with the policy at each update."""
    learner = Learner(make_trainer(cfg, SEEDLING), cfg.home / "checkpoints")
    model = shared_model(cfg, learner.trainer) if shared else None
    policy: Any = open_policy("seedling", **({} if model is None else {"model": model}))
    assert (policy.model is learner.trainer.model) == shared
    rounds: list[Any] = []
    trees: list[list[Any]] = []
    watch.append(policy)
    async with open_worlds(["kg"]) as worlds:
        await run_loop(cfg, worlds, policy, learner, on_round=rounds.append, on_trees=trees.append)
    await policy.close()
    assert policy.version == weights_version(learner.trainer.model)
    return [[(t.text, t.logprobs) for t in batch] for batch in trees], [r.trained for r in rounds]


async def test_trees_and_weights_are_those_of_two_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies: list[Any]
    policies, held, update = [], [], Trainer.update

    def watched(self: Any, trees: Any) -> dict[str, float]:
        held.append(len(policies[-1].runner.layers) + policies[-1]._cache.size)
        return update(self, trees)

    monkeypatch.setattr(Trainer, "update", watched)
    one = await looped(config(tmp_path / "one"), True, policies)
    assert held == [0, 0], "while the trainer works the sampler holds neither copies of weights nor keys and values"
    assert one == await looped(config(tmp_path / "two"), False, policies)


async def test_layers_that_run_again_in_the_backward_pass_are_shared_and_still_do(tmp_path: Path) -> None:
    again = {"train.checkpointing": "true"}
    policies: list[Any] = []
    one = await looped(config(tmp_path / "one", **again), True, policies)
    layers = policies[0].model.model.layers
    assert all(layer.training and layer.gradient_checkpointing for layer in layers)
    assert one == await looped(config(tmp_path / "two", **again), False, [])


async def test_a_slow_processor_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"loop.tasks": 12, "search.expansions": 3, "loop.iterations": 1}
    one = await looped(config(tmp_path / "one", **settings), False, [])
    context, calls = HFPolicy.context, iter(range(1 << 30))

    def slowly(*given: Any) -> Context:
        time.sleep(0.01 * (next(calls) % 3))
        return context(*given)

    monkeypatch.setattr(HFPolicy, "context", slowly)
    assert one == await looped(config(tmp_path / "two", **settings), False, [])


def test_a_second_copy_is_made_where_the_two_may_differ(tmp_path: Path) -> None:
    trainer = make_trainer(config(tmp_path), SEEDLING)
    assert shared_model(config(tmp_path), trainer) is trainer.model
    for other in ({"loop.behind": 1}, {"policy.options": '{"dtype": "bfloat16"}'}):
        assert shared_model(config(tmp_path, **other), trainer) is None
    assert shared_model(config(tmp_path, **{"policy.spec": "vllm:seedling"}), trainer) is None
    layer = trainer.model.model.layers[0].self_attn
    layer.q_proj = torch.nn.Sequential(layer.q_proj)  # as an adapter wraps it
    assert not is_slim(trainer.model) and shared_model(config(tmp_path), trainer) is None


async def test_draws_wait_while_the_policy_sleeps() -> None:
    policy: Any = open_policy("seedling")
    context = Context(keep=0, delta=(5, 6, 7), ids=(5, 6, 7))
    first = await policy.draw(context, [1, 2], 4)
    assert await policy.sleep()
    waiting = asyncio.create_task(policy.draw(context, [1, 2], 4))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    await policy.wake()
    assert await waiting == first
    await policy.close()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_checkpoint_whose_files_are_not_those_that_were_saved_does_not_act(
    tmp_path: Path, file: str, damage: str
) -> None:
    """Else it would act with other prompts, and its figures would be those of nobody."""
    trainer = make_trainer(config(tmp_path), SEEDLING)
    saved = checkpoint.save(trainer, tmp_path / "c").path
    (saved / "optimizer.safetensors").unlink()  # nobody acts with it
    opened = open_policy(f"hf:{saved}")
    asyncio.run(opened.close())
    whole = (saved / file).read_bytes()
    (saved / file).unlink()
    if damage == "cut":
        (saved / file).write_bytes(whole[:-3])
    if file != "config.json" or damage == "cut":
        with pytest.raises(TreewrightError, match=rf"{file} is missing or damaged; remove .* to use an older one"):
            open_policy(f"hf:{saved}")
    with pytest.raises(TreewrightError, match=file):
        open_policy(f"hf:{saved}")
    policy: Any = open_policy("seedling")
    with pytest.raises(TreewrightError, match=file):
        asyncio.run(serve_weights(policy, saved))
