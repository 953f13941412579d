"""Judges: a checklist read from answer log-probs, and a dual encoder trained on stored trees."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from noisy_expert import noisy
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.config import load_config
from treewright.agent.judges.checklist import Checklist, answer_shares, read_items
from treewright.agent.judges.judge import Learned, Likelihood, open_evaluator
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.openai import OpenAIPolicy
from treewright.agent.runs.loop import evaluator_of
from treewright.envs import Action, Observation, Task, TreewrightError
from treewright.envs.registry import suite
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.types import Budget, Candidate, Completion, Exchange, NodeStatus, PolicyFault
from treewright.training.scorer import Scorer, ScorerSettings, examples_of, fit

from .small import CHATML, tokenizer

TASK = Task("own", "1", "buy bread")


def candidate(text: str, seen: str = "ok") -> Candidate:
    return Candidate(
        (Exchange("go {}", Action.of("go"), Observation("a shop")),), Completion(text), None, None, Observation(seen),
        NodeStatus.OPEN, 0.0, 1,
    )  # fmt: skip


class Told:
    """A model that says what `answer(prompt)` says."""

    def __init__(self, answer: Callable[[Any], Any], items: str = "- bread chosen\n- bread paid") -> None:
        self.asked: list[Any]
        self.answer, self.items, self.asked, self.written = answer, items, [], 0

    async def first_tokens(self, prompts: Sequence[str]) -> list[Any]:
        self.asked.append(list(prompts))
        return [{t: math.log(p) for t, p in self.answer(prompt).items()} for prompt in prompts]

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.written += 1
        return self.items


async def test_the_score_is_the_mean_of_yes_and_half_in_progress() -> None:
    def answer(prompt: Any) -> dict[str, Any]:
        return {"Yes": 0.6, " no": 0.2, "in": 0.2} if "bread paid" in prompt else {"no": 0.75, "In": 0.25}

    first, second = await Checklist(Told(answer)).evaluate(TASK, [candidate("pay {}"), candidate("run {}")])
    assert first.value == pytest.approx(((0.6 + 0.1) + 0.125) / 2) == second.value
    assert (first.tokens, second.tokens) == (2 + 160, 2), "the checklist is charged once"


async def test_the_checklist_is_written_once_for_a_goal_and_siblings_are_asked_together() -> None:
    model = Told(lambda prompt: {"yes": 1.0})
    judge = Checklist(model)
    await asyncio.gather(*(judge.evaluate(TASK, [candidate("a {}"), candidate("b {}")]) for _ in range(3)))
    assert model.written == 1 and [len(batch) for batch in model.asked] == [4, 4, 4]
    assert "> a {}" in model.asked[0][0] and "a shop" in model.asked[0][0] and "bread chosen" in model.asked[0][0]


async def test_a_model_that_writes_no_list_is_asked_about_the_goal() -> None:
    model = Told(lambda prompt: {"yes": 1.0}, "Sure! I would love to.")
    assert [s.value for s in await Checklist(model).evaluate(TASK, [candidate("a {}")])] == [1.0]
    assert "Checklist item: buy bread" in model.asked[0][0]


async def test_own_items_need_no_model_to_write_them() -> None:
    model = Told(lambda prompt: {"no": 1.0})
    (score,) = await Checklist(model, items=lambda task: ["one", "two", "three"]).evaluate(TASK, [candidate("a {}")])
    assert (score.value, score.tokens, model.written) == (0.0, 3, 0)


def test_answers_are_recognised_by_their_first_token() -> None:
    assert answer_shares({"Yes": math.log(0.5), " YES": math.log(0.25), "No": math.log(0.25)}) == (0.75, 0.25, 0.0)
    assert answer_shares({" in": math.log(0.3), "n": math.log(0.1), "maybe": math.log(0.6)}) == pytest.approx(
        (0, 0.25, 0.75)
    )
    assert answer_shares({"perhaps": 0.0}) == (1 / 3, 1 / 3, 1 / 3)
    assert read_items("Here:\n1. one\n * two\n3) three\nbye") == ["one", "two", "three"]


async def test_the_judge_works_with_a_transformers_model() -> None:
    torch.manual_seed(0)
    made = tokenizer(["<|im_start|>", "<|im_end|>"], CHATML, end="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=made.eos_token_id,
    )  # fmt: skip
    policy = HFPolicy(LlamaForCausalLM(config), made)
    try:
        (tokens,) = await policy.first_tokens(["is it done?"])
        ids = torch.tensor([policy._asked("is it done?")])
        with torch.inference_mode():
            plain = policy.model(ids).logits[0, -1].log_softmax(-1)
        assert max(tokens.values()) == pytest.approx(float(plain.max()), rel=1e-4)
        scores = await Checklist(policy, max_tokens=8).evaluate(TASK, [candidate("a {}"), candidate("b {}")])
        assert all(0 <= score.value <= 1 for score in scores)
    finally:
        await policy.close()


async def test_the_judge_works_with_a_server_that_gives_top_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Reply:
        headers: dict[str, Any]
        status_code, headers = 200, {}

        def __init__(self, content: bytes) -> None:
            self.content = content

    async def post(self: Any, body: Any) -> Any:
        import json

        seen.append(body)
        top = [{"token": "Yes", "logprob": math.log(0.9)}, {"token": "No", "logprob": math.log(0.1)}]
        said = {"message": {"content": "- paid"}, "logprobs": {"content": [{"logprob": -0.1, "top_logprobs": top}]}}
        if not body.get("top_logprobs"):
            del said["logprobs"]
        return Reply(json.dumps({"choices": [said]}).encode())

    monkeypatch.setattr(OpenAIPolicy, "_post", post)
    policy = OpenAIPolicy("m", "http://127.0.0.1/v1")
    (score,) = await Checklist(policy).evaluate(TASK, [candidate("pay {}")])
    assert score.value == pytest.approx(0.9)
    assert [body["max_tokens"] for body in seen] == [160, 1] and seen[1]["top_logprobs"] == 20

    async def silent(self: Any, body: Any) -> Any:
        return Reply(b'{"choices": [{"message": {"content": "yes"}}]}')

    monkeypatch.setattr(OpenAIPolicy, "_post", silent)
    with pytest.raises(PolicyFault, match="cannot judge"):
        await policy.first_tokens(["?"])


# -- the dual encoder -----------------------------------------------------------------------------------------------


async def grown(split: str, count: int) -> list[Any]:
    maze, rule = suite("maze"), best_first(draws=3)
    settings = Settings(close=True, max_tokens=64)
    tasks = maze.tasks(split, count)
    return [
        await search(t, maze, noisy("maze"), rule=rule, budget=Budget(expansions=10), settings=settings) for t in tasks
    ]


async def test_a_trained_judge_ranks_held_out_siblings_better_than_chance_and_serves_as_evaluator(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    examples, held = examples_of(await grown("train", 40)), examples_of(await grown("test", 20))
    assert all(e.siblings >= 1 and e.better not in e.worse for e in examples)
    assert any(len(e.worse) > e.siblings for e in examples), "steps of the same trajectory are negatives too"
    scorer = Scorer(fit(examples, ScorerSettings(epochs=5)))
    pairs = sum(e.siblings for e in held)
    assert pairs > 80 and scorer.accuracy(held) > 0.5 + 1.64 * 0.5 / math.sqrt(pairs)
    evaluator = open_evaluator(f"scorer:{scorer.save(tmp_path / 'scorer')}")
    assert isinstance(evaluator, Learned)
    again = Scorer.load(tmp_path / "scorer")
    assert again([held[0].place], [held[0].better]) == scorer([held[0].place], [held[0].better])
    tree = await search(
        suite("maze").tasks("test", 1)[0],
        suite("maze"),
        noisy("maze"),
        evaluator=evaluator,
        budget=Budget(expansions=4),
    )
    assert all(0 < tree.score[i] < 1 for i in range(1, len(tree)))


def test_the_command_trains_on_a_run_and_says_what_to_type_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    run = CliRunner()
    sets = ["--set", "search.expansions=8", "--set", "search.draws=3"]
    collect = ["collect", "--suites", "maze", "--tasks", "12", "--policy", "scripted:noisy_expert:maze", *sets]
    assert run.invoke(app, collect).exit_code == 0
    done = run.invoke(app, ["train", "scorer", "--epochs", "1"])
    assert done.exit_code == 0, done.output
    assert "held-out sibling pairs" in done.output and Path("runs/run/scorer/model.safetensors").exists()
    with pytest.raises(TreewrightError, match="treewright collect --name other"):
        run.invoke(app, ["train", "scorer", "--name", "other"], catch_exceptions=False)


# -- naming ---------------------------------------------------------------------------------------------------------


def test_evaluators_are_named_in_the_configuration(tmp_path: Path) -> None:
    assert isinstance(evaluator_of(load_config(settings=[]).search), Likelihood)
    assert evaluator_of(load_config(settings=["search.evaluator=none"]).search) is None
    with pytest.raises(TreewrightError, match="no evaluator named 'oracle'"):
        evaluator_of(load_config(settings=["search.evaluator=oracle"]).search)
    with pytest.raises(TreewrightError, match="did you mean 'checklist'"):
        open_evaluator("cheklist:hf:x")
    with pytest.raises(TreewrightError, match="treewright train scorer"):
        open_evaluator(f"scorer:{tmp_path}")
