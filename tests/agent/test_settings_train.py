"""Settings of training and of the loop: each changes the weights that an update gives; and the list of every key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.config import explained, load_config
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.runs.evaluate import Evaluation
from treewright.agent.runs.loop import make_trainer
from treewright.envs.registry import suite
from treewright.search.store import TreeStore
from treewright.search.tree import Tree

ROOT = Path(__file__).parents[1]
TWO = ("train.lr=0.01", "train.max_tokens=400")  # two minibatches, far enough apart for ratios to leave 1
FOUR = ("train.lr=0.003", "train.max_tokens=100", "train.minibatches=4")
PULL = (*TWO, "train.kl_coef=0.5")
CASES = {
    "lr": ("train.lr=0.01",),
    "warmup": ("train.warmup=9",),
    "weight_decay": ("train.weight_decay=0.5",),
    "minibatches": ("train.minibatches=1", "train.max_tokens=400"),
    "loss": ("train.loss=cispo", *TWO),
    "clip": ("train.clip=0.0001", *TWO),
    "clip_high": ("train.clip_high=0.0001", *FOUR),
    "dual_clip": ("train.dual_clip=1.0001", "train.loss=dual_clip", *FOUR),
    "adaptive_clip": ("train.adaptive_clip=5", "train.clip=0.001", *TWO),
    "kl": ("train.kl=k2", *PULL),
    "kl_coef": ("train.kl_coef=0.5", *TWO),
    "entropy_coef": ("train.entropy_coef=0.1",),
    "sft_coef": ("train.sft_coef=0.5",),
    "sampler_cap": ("train.sampler_cap=0.5",),
    "reference": ("train.reference=REFERENCE", *PULL),
    "max_kl": ("train.max_kl=0.0001", *TWO),
    "grad_clip": ("train.grad_clip=0.0001",),
    "estimator": ("train.estimator=sibling",),
    "options": ("train.options.tau=9", "train.estimator=split_loo"),
    "unit": ("train.unit=token",),
    "tau": ("train.tau=9",),
    "weight_power": ("train.weight_power=0.5",),
    "max_tokens": ("train.max_tokens=400",),
    "optimizer": ("train.optimizer=muon",),
    "optimizer_options": ('train.optimizer_options={"betas": [0.5, 0.5]}',),
    "schedule": ("train.schedule=linear", "train.schedule_steps=3", *TWO),
    "schedule_steps": ("train.schedule_steps=9", "train.schedule=linear", *TWO),
    "precision": ("train.precision=bfloat16",),
    "lora.rank": ("train.lora.rank=4",),
    "lora.alpha": ("train.lora.alpha=4", "train.lora.rank=4", *TWO),
    "lora.targets": ('train.lora.targets=["q_proj"]', "train.lora.rank=4"),
}
"""Key of [train] → the setting, and settings beside it."""

ELSEWHERE = {
    "train.checkpointing": "training/test_exact_training.py::checkpointing",
    "train.replay_routes": "training/test_replay_trees.py::replay_routes=False",
    "train.memory": "training/test_memory.py::memory=",
    "loop.push": "agent/test_push.py::test_a_loop_s_checkpoint_is_pushed_where_the_trainer_holds_it",
    "loop.collectors": "agent/test_ranks_loop.py::loop.collectors=2",
    "loop.lease": "helpers/ranks_loop.py::loop.lease=2",
    "train.lora.dropout": "training/test_optim.py::dropout",
    "search.evidence_judge": "agent/test_entailment.py::search.evidence_judge=",
    "name": "agent/test_cli.py::test_collect_show_and_eval",
    "folder": "agent/test_train_cli.py::test_every_way_to_train_leaves_a_checkpoint_that_is_a_policy",
    "store": "agent/test_cli_texts.py::test_a_store_of_postgresql_is_exported_and_imported_by_its_url",
    "seed": "agent/test_settings_reach.py::test_seed_contexts_and_distinct_draws_reach_the_tree",
    "worlds.digest": "agent/test_digesting.py::worlds.digest=",
    "worlds.same_page": "envs/test_web_own_site.py::worlds.same_page=distance",
    "worlds.web": "envs/test_web_own_site.py::worlds.web.calm=",
    "worlds.agent": "agent/test_gateway_docs.py::worlds.agent.output",
    "policy.newest": "agent/test_next_lines.py::policy.newest=false",
    "policy.spec": "agent/test_plugins.py::test_run_collect_and_eval_take",
    "policy.options": "agent/test_plugins.py::policy__options__word",
    "policy.contexts": "agent/test_settings_reach.py::policy.contexts",
    "policy.distinct": "agent/test_settings_reach.py::policy.distinct",
    "policy.memory": "agent/test_propose.py::policy.memory",
    "policy.proposer": "agent/test_plugins.py::policy__proposer=",
    "policy.proposer_options": "agent/test_plugins.py::policy__proposer_options__mark",
    "worlds.suites": "agent/test_own_world.py::test_one_toml_serves_run_collect_and_eval",
    "worlds.sessions": "agent/test_settings_reach.py::worlds.sessions",
    "worlds.deadline": "agent/test_settings_reach.py::worlds.deadline",
    "worlds.tasks_file": "agent/test_cli.py::worlds.tasks_file",
    "worlds.reward": "agent/test_cli.py::worlds.reward",
    "worlds.corpus": "agent/test_cli.py::--corpus",
    "worlds.questions": "agent/test_cli.py::--questions",
    "worlds.retriever": "agent/test_cli.py::worlds.retriever",
    "worlds.encoder": "agent/test_settings_train.py::test_an_encoder_and_the_grading",
    "worlds.stemming": "envs/test_retrieval_words.py::stemming",
    "worlds.grading": "agent/test_settings_train.py::test_an_encoder_and_the_grading",
    "search.trees": "agent/test_settings_reach.py::search.trees",
    "search.segments": "agent/test_segments_reach.py::search.segments",
    "search.temperature_by_depth": "agent/test_temperature_by_depth.py::search.temperature_by_depth.growth",
    "train.loss_options": "agent/test_plugins.py::train__loss_options__scale",
    "train.top_entropy": "training/test_loss.py::top_entropy=0.5",
    "train.clip_rows": "training/test_loss.py::clip_rows=True",
    "train.save_every": "training/test_progress.py::train.save_every=0",
    "train.chunk_tokens": "training/test_pack_and_step.py::chunk_tokens=size",
    "train.allow_biased": "agent/test_next_lines.py::test_trees_that_are_not_exact",
    "train.max_staleness": "agent/test_behind.py::test_trees_of_a_loop_that_was_behind",
    "track.trackers": "agent/test_track.py::track.trackers",
    "track.options": "agent/test_track.py::track.options",
    "loop.iterations": "agent/test_settings_train.py::test_the_loop_makes",
    "loop.tasks": "agent/test_settings_train.py::test_the_loop_makes",
    "loop.suite_tasks": "agent/test_settings_train.py::test_the_loop_makes",
    "loop.skip_tasks": "agent/test_settings_train.py::test_the_loop_makes",
    "loop.checkpoints": "agent/test_settings_train.py::test_the_loop_makes",
    "loop.prm_every": "agent/test_vstar.py::loop.prm_every=1",
    "loop.behind": "agent/test_behind.py::test_trees_are_one_update_old",
    "loop.curriculum.share": "training/test_curriculum.py::share=0.4",
    "loop.curriculum.sources": "agent/test_curriculum_loop.py::loop.curriculum.sources=a",
    "loop.curriculum.rare": "training/test_curriculum.py::rare=0.6",
    "loop.curriculum.target": "training/test_curriculum.py::target=0.75",
    "loop.curriculum.step": "training/test_curriculum.py::step=5",
    "loop.curriculum.patience": "training/test_curriculum.py::patience=1",
    "loop.curriculum.unit": 'training/test_curriculum.py::unit="token"',
    "eval.split": "agent/test_settings_train.py::test_eval_takes",
    "eval.tasks": "agent/test_settings_train.py::test_eval_takes",
    "eval.expansions": "agent/test_settings_reach.py::eval.expansions",
}
"""Where every other key is shown to have its effect: a file of tests, and what stands in it."""


def call(*words: str) -> str:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, words)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("grown")
    call("collect", "--suites", "kg", "--tasks", "6", "--set", f"folder={folder}", "--set", "search.expansions=3")
    with TreeStore.open(folder / "trees.sqlite", read_only=True) as store:
        return [store.load(row.tree_id) for row in store.trees()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of other weights than the seedling's."""
    folder = tmp_path_factory.mktemp("reference")
    trainer = make_trainer(load_config(), SEEDLING)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(1.01)
    trainer.model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def updated(trees: list[Any], reference: Path) -> Callable[..., Any]:
    """Settings → the weights' version after one update on the trees; each is made once."""
    known = {}

    def update(*settings: Any) -> Any:
        if settings not in known:
            given = [s.replace("REFERENCE", str(reference)) for s in settings]
            trainer = make_trainer(load_config(None, given), SEEDLING)
            trainer.update(trees)
            known[settings] = trainer.versions[-1]
        return known[settings]

    return update


@pytest.mark.parametrize("key", CASES)
def test_a_setting_of_training_changes_the_weights_that_come_out(updated: Callable[..., Any], key: str) -> None:
    setting, *beside = CASES[key]
    assert updated(setting, *beside) != updated(*beside)


def test_the_same_settings_give_the_same_weights(trees: list[Any], updated: Callable[..., Any]) -> None:
    trainer = make_trainer(load_config(), SEEDLING)
    trainer.update(trees)
    assert trainer.versions[-1] == updated()


def test_the_loop_makes_its_iterations_of_its_tasks_and_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call("loop", "-n", "l", "--suites", "kg,stdlib", "--set", "loop.iterations=3", "--set", "loop.tasks=2",
         "--set", 'loop.suite_tasks={"kg": 3}', "--set", 'loop.skip_tasks={"kg": 4}', "--set", "loop.checkpoints=2",
         "--set", "search.expansions=1")  # fmt: skip
    home = Path("runs/l")
    assert len((home / "metrics.jsonl").read_text().splitlines()) == 3
    assert len(list((home / "checkpoints").glob("step-*"))) == 2
    with TreeStore.open(home / "trees.sqlite", read_only=True) as store:
        kg, stdlib = ({tree.task_id for tree in store.trees(suite=name)} for name in ("kg", "stdlib"))
    assert kg == {task.id for task in suite("kg").tasks("train", 13)[4:]}, "none of the first four"
    assert stdlib == {task.id for task in suite("stdlib").tasks("train", 6)}


def test_eval_takes_the_split_and_the_number_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import treewright.agent.runs.evaluate as runs

    monkeypatch.chdir(tmp_path)
    seen, whole = [], runs.evaluate

    async def watched(tasks: Any, *args: Any, **options: Any) -> tuple[dict[str, Evaluation], list[Tree]]:
        seen.extend(tasks)
        return await whole(tasks, *args, **options)

    monkeypatch.setattr(runs, "evaluate", watched)
    call("eval", "--suites", "reach_world:SUITE", "--policy", "reach_world:Walker", "--set", "eval.split=train",
         "--set", "eval.tasks=2")  # fmt: skip
    assert [task.id for task in seen] == ["train-0", "train-1"]


def test_an_encoder_and_the_grading_reach_the_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.jsonl").write_text('{"title": "Whale", "text": "Whales eat krill."}\n')
    Path("q.jsonl").write_text(
        "".join(json.dumps({"id": f"q{i}", "question": "what?", "answer": "pink krill"}) + "\n" for i in range(4))
    )
    Path("says_krill.py").write_text('def say(task, turns, tools, rng):\n    return \'answer {"text": "krill"}\'\n')
    line = ["collect", "--corpus", "c.jsonl", "--questions", "q.jsonl", "--tasks", "1", "--policy",
            "scripted:says_krill:say"]  # fmt: skip
    rewards = {}
    for grading in ("exact", "f1"):
        call(*line, "-n", grading, "--set", f"worlds.grading={grading}")
        with TreeStore.open(Path("runs") / grading / "trees.sqlite", read_only=True) as store:
            tree = store.load(store.trees()[0].tree_id)
        rewards[grading] = max(tree.outcome_of(leaf) for leaf in tree.leaves())
    assert rewards["exact"] == 0 < rewards["f1"] < 1
    with pytest.raises(Exception, match="no_such_encoder"):
        call(*line, "-n", "d", "--set", "worlds.retriever=dense", "--set", "worlds.encoder=./no_such_encoder")


def test_every_key_of_the_configuration_is_shown_to_have_an_effect() -> None:
    reach = (ROOT / "agent" / "test_settings_reach.py").read_text()
    search = {f"search.{key}" for key in explained() if f'"{key}": ' in reach} | {
        key for key in explained() if key.startswith("search.") and f'    "{key.partition(".")[2]}": ' in reach
    }
    train = {f"train.{key}" for key in CASES}
    assert set(explained()) == search | train | set(ELSEWHERE), "a key is new, or gone: say where its effect is shown"
    for key, place in ELSEWHERE.items():
        file, _, text = place.partition("::")
        assert text in (ROOT / file).read_text(), f"{key}: {place}"
