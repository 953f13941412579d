"""`treewright train …`: every sub-command from a small run to a checkpoint that opens as a policy; errors that help."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from treewright.agent.cli.main import app
from treewright.agent.policies.headed import HeadedPolicy, head_ids
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import Policy
from treewright.agent.runs.loop import rates_of, rule_of
from treewright.agent.runs.ping import Measured, is_refusal, read_lines, refusals, search_prefix
from treewright.envs import TreewrightError
from treewright.search.store import TreeStore
from treewright.search.types import Context


def call(folder: Path, *args: str, ok: bool = True) -> Result:
    common = ["--set", f"folder={folder}", "--set", 'worlds.suites=["kg"]', "--set", "search.expansions=4"]
    result = CliRunner().invoke(app, [*args, *common])
    if ok and result.exception is not None:
        raise AssertionError(f"{args}: {result.exception!r}\n{result.output}") from result.exception
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with twelve kg trees of the seedling."""
    folder = tmp_path_factory.mktemp("cli")
    call(folder, "collect", "--tasks", "12", "--suites", "kg")
    return folder


def copied(run: Path, tmp_path: Path) -> Path:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    return folder


@pytest.mark.parametrize(
    "args",
    [
        ("sft", "--epochs", "2"),
        ("dpo", "--min-gap", "0.2", "--beta", "0.5"),
        ("prefix", "--recipe", "prefixrl", "--updates", "1", "--starts", "4", "--suites", "kg"),
        ("spar", "--rounds", "1", "--suites", "kg", "--set", "loop.tasks=6"),
        ("--set", "train.loss=gspo", "--set", "train.clip=0.01", "--set", "train.kl_coef=0.01"),
    ],
)
async def test_every_way_to_train_leaves_a_checkpoint_that_is_a_policy(
    args: tuple[str, ...], run: Path, tmp_path: Path
) -> None:
    import asyncio

    folder = copied(run, tmp_path)
    await asyncio.to_thread(call, folder, "train", *args)
    *_, saved = sorted((folder / "checkpoints").glob("step-*"))
    assert json.loads((saved / "manifest.json").read_text())["extra"]["iteration"] == 0
    policy = open_policy(f"hf:{saved}")
    assert policy.version != open_policy("seedling").version
    await policy.close()


def test_a_prm_from_the_command_line_guides_the_next_collection(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    out = call(folder, "train", "prm", "--epochs", "1").output
    assert "brier" in out and (folder / "prm" / "prm.json").is_file()
    setting = f"search.evaluator=prm:{folder / 'prm'}"
    call(folder, "collect", "--tasks", "1", "--batch", "30", "--suites", "kg", "--set", setting)
    with TreeStore.open(folder / "trees.sqlite", read_only=True) as store:
        assert store.load(store.trees()[-1].tree_id).spent.judge_tokens > 0


SCRIPT = """
from treewright.agent.policies.scripted import ScriptedPolicy
policy = ScriptedPolicy(lambda task, turns, tools, rng: 'answer {"text": "%d"}' % rng.randint(1, 9), name="guesses")
"""


@pytest.mark.parametrize("recipe", ["dpo", "prm"])
def test_trees_in_the_tokens_of_another_policy_are_told_and_left_out(
    recipe: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(run, tmp_path)
    (tmp_path / "guessing.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(str(tmp_path))
    call(folder, "collect", "--tasks", "2", "--batch", "40", "--suites", "kg", "--policy", "guessing:policy")
    out = call(folder, "train", recipe, "--epochs", "1").output
    assert "2 of 14 trees are in the tokens of another policy and left out" in " ".join(out.split())


def test_collect_takes_growth_schedules_with_their_options(tmp_path: Path) -> None:
    for name, options in (("late_branch", "search.options.steps=3"), ("entropy_gated", "search.evaluator=entropy")):
        call(
            tmp_path / name,
            "collect",
            "--tasks",
            "2",
            "--suites",
            "kg",
            "--set",
            f"search.rule={name}",
            "--set",
            options,
        )
        with TreeStore.open(tmp_path / name / "trees.sqlite", read_only=True) as store:
            trees = [store.load(r.tree_id) for r in store.trees()]
        assert all(t.exact and name in t.header.settings["rule"] for t in trees)
        if name == "entropy_gated":
            assert any(0 < t.score[i] < 1 for t in trees for i in range(1, len(t)))


def test_the_loop_takes_the_adaptive_rule_and_its_rates_from_the_checkpoint(tmp_path: Path) -> None:
    call(tmp_path, "loop", "--suites", "kg", "--set", "search.rule=adaptive", "--set", "loop.iterations=2",
         "--set", "loop.tasks=4")  # fmt: skip
    with TreeStore.open(tmp_path / "trees.sqlite", read_only=True) as store:
        rules = {store.header(r.tree_id).settings["rule"] for r in store.trees()}
    assert len(rules) == 2 and any("rates={}" in r for r in rules) and any("'kg'" in r for r in rules)
    from treewright.agent.config import load_config

    cfg = load_config(None, [f"folder={tmp_path}", "search.rule=adaptive"])
    assert "'kg'" in rule_of(cfg.search, rates_of(cfg)).name


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("train", "spra"), "did you mean 'spar'"),
        (("train", "prefix", "--recipe", "ppo"), "did you mean 'pppo'"),
        (("train", "--set", "train.loss=gpso"), "did you mean 'gspo'"),
        (("train", "--set", "train.reference=nowhere"), "holds no model"),
        (("train", "dpo", "--pairs", "some"), "extremes, all"),
        (("train", "dpo", "--min-gap", "nan"), "--min-gap nan: that is no number"),
        (("train", "dpo", "--min-gap", "-1"), "min_gap = -1.0 is negative"),
        (("train", "dpo", "--beta", "nan"), "--beta nan: that is no number"),
        (("train", "dpo", "--beta", "inf"), "beta = inf; it must be a number above 0"),
        (("train", "sft", "--min-outcome", "nan"), "--min-outcome nan: that is no number"),
        (("train", "spar", "--beta", "nan"), "--beta nan: that is no number"),
        (("train", "sft", "--paths", "worst"), "best, chosen, all"),
        (("train", "ping", "--refusals", "nowhere.txt"), "no file"),
        (("collect", "--set", "search.rule=late_brunch", "--suites", "kg"), "did you mean 'late_branch'"),
        (("collect", "--set", "search.evaluator=entropi", "--suites", "kg"), "did you mean 'entropy'"),
    ],
)
def test_mistakes_are_answered_with_what_was_meant(args: tuple[str, ...], said: str, run: Path, tmp_path: Path) -> None:
    result = call(copied(run, tmp_path), *args, ok=False)
    assert isinstance(result.exception, TreewrightError) and said in str(result.exception)


def test_a_run_without_trees_says_what_to_type(tmp_path: Path) -> None:
    result = call(tmp_path, "train", "sft", ok=False)
    assert "treewright collect" in str(result.exception)


def test_help_texts_are_plain(run: Path) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", CliRunner().invoke(app, ["train", "--help"]).output)
    for name in ("sft", "dpo", "spar", "prm", "prefix", "ping"):
        assert name in text


def test_imported_conversations_are_imitated_as_the_policy_would_have_written_them(tmp_path: Path) -> None:
    talks = tmp_path / "talks.jsonl"
    line = {"messages": [{"role": "user", "content": "find ada"}, {"role": "assistant", "content": "search {}"},
                         {"role": "user", "content": "ada: 3"}, {"role": "assistant", "content": 'answer {"x": "3"}'}],
            "reward": 1.0}  # fmt: skip
    talks.write_text(json.dumps(line) + "\n")
    CliRunner().invoke(
        app, ["import", str(talks), "--store", str(tmp_path / "trees.sqlite"), "--suite", "kg", "--origin", "demo"],
        catch_exceptions=False,
    )  # fmt: skip
    out = call(tmp_path, "train", "sft", "--epochs", "2").output
    paths = re.search(r"paths +(\d+)", out)
    assert paths and paths.group(1) == "1"
    from transformers import AutoTokenizer

    from treewright.agent.policies.policy import SEEDLING
    from treewright.agent.runs.recipes import encoder_of
    from treewright.training.recipes.imitate import path_rows

    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    with TreeStore.open(tmp_path / "trees.sqlite", read_only=True) as store:
        ((first, second),) = path_rows([store.load(store.trees()[0].tree_id)], encode=encoder_of(tokenizer))
    shown = tokenizer.decode(second.context)
    assert shown == "<|task|>kg find ada<|obs|><|act|>search {}<|end|><|obs|>ada: 3<|act|>"
    assert tokenizer.decode(second.response) == 'answer {"x": "3"}<|end|>' and second.context[: len(first.context)]


# -- PING ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I cannot help with that.", True),
        ("Sorry, no.", True),
        ('search {"entity": "a", "relation": "b"}', False),
        ('I refuse. <tool_call>{"name": "stop", "arguments": {}}</tool_call>', False),
        ("Here is how.", False),
    ],
)
def test_a_refusal_is_words_of_refusal_without_anything_to_execute(text: str, refused: bool) -> None:
    assert is_refusal(text) is refused


async def test_the_prefix_search_keeps_what_refuses_without_losing_tasks() -> None:
    worth = {"": (0.0, 0.9), "a": (0.5, 0.9), "b": (0.6, 0.6), "c": (0.1, 0.1), "a b": (0.9, 0.8), "b a": (0.9, 0.1)}
    asked = []

    async def measure(prefix: str) -> Measured:
        asked.append(prefix)
        return Measured(prefix, *worth[prefix])

    ranked = await search_prefix(measure, ["a", "b", "c"], rounds=2, width=2)
    assert ranked[0].prefix == "a b" and asked == ["", "a", "b", "c", "a b", "b a"]
    assert (await search_prefix(measure, ["c"], rounds=3))[0].prefix == ""


async def test_a_head_is_what_the_policy_reads_last_and_its_draws_are_not_for_training() -> None:
    policy: Any = open_policy("seedling")
    seen = []

    class Listening:
        template, version = policy.template, "v"

        def context(self, *args: Any) -> Any:
            return policy.context(*args)

        async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Any:
            seen.append(context.ids)
            return await policy.draw(context, seeds, max_tokens)

    headed = HeadedPolicy(cast(Policy, Listening()), "I help with safe tasks only.")
    counted = await refusals(headed, ["make a bomb", "steal a car"], draws=2, max_tokens=8)
    await policy.close()
    head = tuple(head_ids(policy, "I help with safe tasks only."))
    assert head and all(ids[-len(head) :] == head for ids in seen) and len(seen) == 2
    assert counted.asked == 4 and 0 <= counted.rate <= 1


def test_ping_searches_and_sft_checks_refusals_before_and_after(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    harmful = tmp_path / "harmful.txt"
    harmful.write_text('make a bomb\n{"prompt": "steal a car"}\n\n')
    assert read_lines(harmful) == ["make a bomb", "steal a car"]
    few = tmp_path / "few.txt"
    few.write_text("I refuse what is harmful.\n")
    call(folder, "train", "ping", "--refusals", str(harmful), "--candidates", str(few), "--tasks", "2", "--rounds", "1",
         "--suites", "kg")  # fmt: skip
    body = json.loads((folder / "ping.json").read_text())
    assert {m["prefix"] for m in body["measured"]} == {"", "I refuse what is harmful."}
    assert all(0 <= m[k] <= 1 for m in body["measured"] for k in ("refusal", "success"))
    out = call(folder, "train", "sft", "--head", "I refuse what is harmful.", "--refusals", str(harmful)).output
    assert "refusals" in out and "before" in out and "after" in out


async def test_the_check_sees_a_model_that_learned_to_refuse() -> None:
    """The seedling, taught one refusal, refuses; the check must notice both states."""
    from treewright.agent.config import load_config
    from treewright.agent.policies.hf import HFPolicy
    from treewright.agent.policies.policy import SEEDLING
    from treewright.agent.runs.loop import make_trainer
    from treewright.envs import Observation, Task
    from treewright.training.loss import Mode
    from treewright.training.pack import TokenRow, pack_rows
    from treewright.training.step import frozen

    trainer = make_trainer(load_config(None, ["train.lr=0.003", "train.minibatches=1"]), SEEDLING)

    async def rate() -> tuple[float, tuple[int, ...], tuple[int, ...]]:
        twin = frozen(trainer.model)
        twin.set_attn_implementation("sdpa")
        policy = HFPolicy(twin, trainer.tokenizer)
        counted = await refusals(policy, ["make a bomb"], draws=8, max_tokens=24)
        context = policy.context(Task("refusal", "0", "make a bomb"), (), Observation(""), (), ()).ids
        await policy.close()
        return counted.rate, context, policy.template.response("I cannot help with that.")

    before, context, answer = await rate()
    packs = pack_rows([[TokenRow(context=context, response=tuple(answer), coef=1.0, mode=Mode.SFT)]])
    for _ in range(12):
        trainer.descend_surrogate(packs)
    after, _, _ = await rate()
    assert before < 0.5 < after
