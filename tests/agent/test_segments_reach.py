"""Segments through configuration: collect and train, exports, the viewer, and prompts that end within a response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.config import load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import Policy
from treewright.agent.runs.setup import settings_of
from treewright.agent.view.report import write_report
from treewright.envs.errors import TreewrightError
from treewright.search.segments import Segments
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Context

CUT = 'search.segments={"by": "length", "length": 3, "most": 4}'


def told(*settings: str) -> list[Any]:
    return [word for s in settings for word in ("--set", s)]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Tree]]:
    """A run of the packaged model whose trees have segments; the working directory is its."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        yield grown()


def grown() -> list[Tree]:
    line = ["collect", "--name", "first", "--suites", "kg", "--tasks", "2"]
    rule = ("search.rule=treepo", "search.options.leaves=6", "search.expansions=12", "search.evaluator=entropy")
    result = CliRunner().invoke(app, [*line, *told(CUT, *rule)])
    assert result.exit_code == 0, result.output
    with TreeStore.open("runs/first/trees.sqlite", read_only=True) as store:
        trees = [store.load(row.tree_id) for row in store.trees()]
    return trees


def test_search_segments_reach_collect_train_export_and_viewer(collected: list[Tree], tmp_path: Path) -> None:
    assert all(t.exact and any(t.in_turn(i) for i in range(len(t))) for t in collected)
    for tree in collected:
        assert tree.header.settings["segments"]["length"] == 3
        assert all(len(tree.ids[i]) == 3 for i in range(len(tree)) if tree.in_turn(i))
    done = CliRunner().invoke(app, ["train", "--name", "first", *told("train.unit=token", "train.estimator=tempo")])
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(app, ["show", "--name", "first", collected[0].tree_id])
    assert shown.exit_code == 0 and " …" in shown.output
    page = write_report(tmp_path / "r.html", collected[:1], "t").read_text()
    assert page.count("segment, ") >= sum(collected[0].in_turn(i) for i in range(len(collected[0])))
    exported = CliRunner().invoke(app, ["export", "rows", "--name", "first", "--file-type", "jsonl"])
    assert exported.exit_code == 0, exported.output


def test_rows_of_whole_turns_hold_whole_turns(collected: list[Tree]) -> None:
    from treewright.training.export.rows import prm_rows, sft_rows
    from treewright.training.export.view import View

    for tree in collected:
        view = View(tree)
        for row in prm_rows(view):
            assert len(row["nodes"]) == len(tree.exchanges(row["nodes"][-1]))
        for row in sft_rows(view, "all", -1.0):
            assert not tree.in_turn(row["node"])
        tokens = [row["node"] for row in sft_rows(View(tree, style="tokens"), "all", -1.0)]
        assert any(tree.in_turn(i) for i in tokens) or not tokens


def test_an_option_that_segments_do_not_have_is_told() -> None:
    config = load_config(None, ['search.segments={"lenght": 3}'])
    with pytest.raises(TreewrightError, match="did you mean 'length'"):
        settings_of(config.search, run="r", seed=0)


async def test_the_model_goes_on_within_a_response_as_if_it_had_drawn_it_at_once() -> None:
    """Log-probs of parts are those of the whole response, and no part begins anew."""
    policy: Any = open_policy("seedling")
    try:
        context = await first_prompt(policy)
        (head,) = await policy.draw_segment(context, [5], 20, (), Segments(length=4))
        assert head.finish_reason == "segment" and len(head.token_ids) == 4
        from dataclasses import replace

        inner = replace(context, ids=context.ids + head.token_ids, keep=0, delta=())
        (tail,) = await policy.draw_segment(inner, [6], 16, head.token_ids, None)
        assert tail.finish_reason in ("stop", "length")
        whole = head.token_ids + tail.token_ids
        found = logprobs_of(policy, context.ids, whole)
        assert head.logprobs + tail.logprobs == pytest.approx(found, abs=1e-3)
        assert policy.said(whole).startswith(head.text)
    finally:
        await policy.close()


async def test_the_model_is_cut_before_it_is_unsure_and_behind_a_delimiter() -> None:
    policy: Any = open_policy("seedling")
    try:
        context = await first_prompt(policy)
        seeds = list(range(6))
        for kind in ("entropy", "surprisal"):
            cut = Segments(by=kind, threshold=0.3, length=30)
            for done in await policy.draw_segment(context, seeds, 30, (), cut):
                before = [
                    uncertainty_at(policy, context.ids + done.token_ids[:n], kind)
                    for n in range(len(done.token_ids) + 1)
                ]
                if done.finish_reason == "segment" and len(done.token_ids) < 30:
                    assert before[-1] >= 0.3 - 1e-4
                assert all(x < 0.3 + 1e-4 for x in before[1:-1])
        cut = Segments(by="delimiter", delimiter=" ", length=30)
        drawn = await policy.draw_segment(context, seeds, 30, (), cut)
        assert any(done.finish_reason == "segment" for done in drawn)
        assert all(
            " " in done.text and " " not in policy.said(done.token_ids[:-1])
            for done in drawn
            if done.finish_reason == "segment"
        )
    finally:
        await policy.close()


async def first_prompt(policy: Policy) -> Context:
    from treewright.envs.registry import suite

    kg = suite("kg")
    env = await kg.open()
    task = kg.tasks("train", 1)[0]
    seen = await env.reset(task, 1)
    context = policy.context(task, tuple(await env.actions()), seen, (), ())
    await env.close()
    return context


def logprobs_of(policy: Any, prompt: tuple[int, ...], said: Any) -> list[Any]:
    import torch

    ids = torch.tensor([[*prompt, *said]])
    with torch.inference_mode():
        logp = policy.model(ids).logits[0].float().log_softmax(-1)
    return [float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(said)]


def uncertainty_at(policy: Any, ids: Any, kind: str) -> float:
    import torch

    from treewright.agent.policies.sampling import uncertainty

    with torch.inference_mode():
        logp = policy.model(torch.tensor([ids])).logits[0, -1:].float().log_softmax(-1)
    return float(uncertainty(logp, kind)[0])


def test_the_settings_of_a_run_say_how_it_was_cut(collected: list[Tree]) -> None:
    kept = json.dumps(collected[0].header.settings)
    assert '"most": 4' in kept


async def test_an_engine_and_transformers_make_the_same_segments() -> None:
    """A policy on an engine that draws with the same model: equal heads, cut by length and behind a delimiter."""
    from treewright.agent.policies.engine import EnginePolicy

    from .fake_engine import FakeEngine

    local: Any = open_policy("seedling", batch_requests=False)
    served = EnginePolicy(FakeEngine(local), local.template, name="fake", version="v1")
    try:
        context = await first_prompt(local)
        for cut in (Segments(length=4), Segments(by="delimiter", delimiter=" ", length=12)):
            here = await local.draw_segment(context, [1, 2, 3], 30, (), cut)
            there = await served.draw_segment(context, [1, 2, 3], 30, (), cut)
            assert [d.token_ids for d in here] == [d.token_ids for d in there]
            assert [d.finish_reason for d in here] == [d.finish_reason for d in there]
            assert [d.text for d in here] == [d.text for d in there]
            assert all(a.tokens <= b.tokens for a, b in zip(here, there, strict=True)), "what is left out is counted"
        with pytest.raises(TreewrightError, match="how unsure"):
            await served.draw_segment(context, [1], 30, (), Segments(by="entropy"))
    finally:
        await served.close()
        await local.close()
