"""Each recipe trains the packaged seedling one visible step from stored trees; stale and inexact data are refused."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from not_none import not_none

from treewright.agent.config import Config, load_config
from treewright.agent.judges.prm import PrmEvaluator
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.loop import Learner, evaluator_of, grow_for_training, make_trainer, tasks_for
from treewright.agent.runs.recipes import grow_from, prefix_rounds, spar_rounds
from treewright.envs.errors import TreewrightError
from treewright.search.header import TreeHeader
from treewright.search.rooted import prefix_ids, prefix_length, search_from, start_at
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Candidate, Completion, NodeStatus, Origin
from treewright.training import checkpoint
from treewright.training.credit.arrays import Credit, InexactTree, TreeArrays
from treewright.training.credit.trees import tree_arrays
from treewright.training.loss import Mode
from treewright.training.pack import TokenRow, pack_rows
from treewright.training.packed import PackedBatch
from treewright.training.recipes import fronts, prefix
from treewright.training.recipes.imitate import path_rows, sft
from treewright.training.recipes.prefer import Pair, _first_attempt, branch_pairs, dpo, spar_pairs
from treewright.training.recipes.prm import Prm, Step, steps_of, train_prm
from treewright.training.step import Trainer, TrainSettings, frozen
from treewright.training.versions import StaleTrees, age_of, weights_version


def config(folder: Any, **settings: Any) -> Config:
    given = {"search.expansions": 4, "train.lr": 1e-3, "train.minibatches": 1, "loop.tasks": 10} | settings
    return load_config(
        None, [f"folder={folder}", "name=t", 'worlds.suites=["kg"]', *(f"{k}={v}" for k, v in given.items())]
    )


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Tree]]:
    """A run's folder and its trees: the seedling on twenty-four kg tasks."""
    folder = tmp_path_factory.mktemp("run")

    async def work() -> tuple[Any, list[Tree]]:
        cfg = config(folder)
        policy = open_policy("seedling")
        with TreeStore.open(cfg.store_at) as store:
            async with open_worlds(["kg"]) as worlds:
                await grow_for_training(cfg, tasks_for(worlds, "train", 0, 24), worlds, policy, "t", 0, store)
        await policy.close()
        with TreeStore.open(cfg.store_at, read_only=True) as store:
            return folder, [store.load(row.tree_id) for row in store.trees(status="done")]

    return asyncio.run(work())


def trainer(**settings: Any) -> Trainer:
    made: Trainer = make_trainer(config("unused", **settings), SEEDLING)
    return made


def logp(t: Trainer, context: Any, response: Any) -> float:
    (pack,) = pack_rows([[prefix_row(context, response)]])
    with torch.no_grad():
        return float(t.logprobs(pack)[0].sum())


def prefix_row(context: tuple[int, ...], response: tuple[int, ...]) -> TokenRow:
    from treewright.training.pack import TokenRow

    return TokenRow(context=tuple(context), response=tuple(response))


def total(t: Trainer, rows: list[list[TokenRow]]) -> float:
    return sum(logp(t, r.context, r.response) for group in rows for r in group)


def test_sft_makes_good_paths_likelier_and_lowers_its_loss(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    t, rows = trainer(), path_rows(trees)
    before = total(t, rows)
    stats = sft(t, trees, epochs=3)
    assert total(t, rows) > before and stats["loss"] < stats["first_loss"]
    assert len(rows) == stats["paths"] > 3


def test_a_head_is_read_in_front_of_responses_and_never_a_target(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    plain, headed = path_rows(trees), path_rows(trees, head=(5, 6, 7))
    for one, two in zip(plain, headed, strict=True):
        for a, b in zip(one, two, strict=True):
            assert b.context == (*a.context, 5, 6, 7) and b.response == a.response
    (pack, *_) = pack_rows(headed)
    assert len(pack.target) == len({(int(p)) for p in pack.target})
    trained = {int(pack.ids[i]) for i in pack.target}
    assert 7 not in trained or any(7 in r.response for group in headed for r in group)


def test_dpo_widens_the_margin_of_the_better_sibling(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    t, pairs = trainer(), branch_pairs(trees, 0.25)
    assert len(pairs) > 3

    def margin() -> np.floating[Any]:
        return np.mean([logp(t, p.prompt, p.chosen) - logp(t, p.prompt, p.rejected) for p in pairs])

    before = margin()
    first = dpo(t, pairs, beta=0.5)
    assert first["first_loss"] == pytest.approx(np.log(2), rel=1e-5)  # π is its own reference
    assert margin() > before
    assert first["loss"] < first["first_loss"] and first["margin"] > 0 and first["accuracy"] > 0.5  # after the step


def test_the_loss_of_dpo_is_the_formula_against_the_given_reference(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    pairs = branch_pairs(trees, 0.25)[:3]
    moved = trainer()
    sft(moved, trees)
    t = Trainer(trainer().model, TrainSettings(lr=1e-4), reference=frozen(moved.model))
    here, there = ([(logp(m, p.prompt, p.chosen), logp(m, p.prompt, p.rejected)) for p in pairs] for m in (t, moved))
    margins = [0.3 * ((a - c) - (b - d)) for (a, b), (c, d) in zip(here, there, strict=True)]
    expected = float(np.mean([np.log1p(np.exp(-m)) for m in margins]))
    assert dpo(t, pairs, beta=0.3)["first_loss"] == pytest.approx(expected, rel=1e-4)


def test_spar_pairs_prefer_what_the_search_found_to_what_failed(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    pairs = spar_pairs(trees)
    assert pairs and all(p.chosen != p.rejected and p.gap > 0 for p in pairs)
    t = trainer()
    before = sum(logp(t, p.prompt, p.chosen) - logp(t, p.prompt, p.rejected) for p in pairs)
    dpo(t, pairs, beta=0.5)
    assert sum(logp(t, p.prompt, p.chosen) - logp(t, p.prompt, p.rejected) for p in pairs) > before


@pytest.mark.parametrize("status", [NodeStatus.FAULT, NodeStatus.OPEN, NodeStatus.DRAFT, NodeStatus.TERMINAL])
def test_an_attempt_that_is_not_known_to_have_failed_is_not_rejected(
    grown: tuple[Any, list[Tree]], status: NodeStatus
) -> None:
    """A fault, a step that the budget left open, a draft, an end whose reward nobody knows."""
    tree = copy.deepcopy(next(tree for tree in grown[1] if spar_pairs([tree])))
    last = _first_attempt(tree)[-1]
    tree.status[last] = status
    if status is not NodeStatus.OPEN:
        tree._truth[last] = math.nan
    assert not spar_pairs([tree])


def test_a_prm_learns_the_values_of_steps_and_comes_back_from_its_folder(
    grown: tuple[Any, list[Tree]], tmp_path: Path
) -> None:
    _, trees = grown
    t = trainer()
    model = Prm(t.model, t.tokenizer)
    steps = steps_of(trees)
    stats = train_prm(model, trees, epochs=4, lr=1e-3, max_tokens=1500)
    assert stats["loss"] < stats["first_loss"] and stats["brier"] < stats["base"]
    good, bad = [s for s in steps if s.value > 0.9], [s for s in steps if s.value < 0.1]
    assert np.mean(model.scores(good)) > np.mean(model.scores(bad)) + 0.03
    again = Prm.load(model.save(tmp_path / "prm", {"trees": len(trees)}))
    assert again.scores(steps[:5]) == pytest.approx(model.scores(steps[:5]), rel=1e-4)
    with pytest.raises(TreewrightError, match="vocabulary"):
        again.scores([Step((10**6,), (1,))])
    with pytest.raises(TreewrightError, match="no PRM"):
        Prm.load(tmp_path)


async def test_a_prm_guides_a_search_as_its_evaluator(grown: tuple[Any, list[Tree]], tmp_path: Path) -> None:
    t = trainer()
    model = Prm(t.model, t.tokenizer)
    folder = model.save(tmp_path / "prm", {})
    cfg = config(tmp_path, **{"search.evaluator": f"prm:{folder}"})
    policy = open_policy("seedling")
    async with open_worlds(["kg"]) as worlds:
        (tree,) = await grow_for_training(cfg, tasks_for(worlds, "train", 0, 1), worlds, policy, "t", 0)
    await policy.close()
    node = tree.children[0][0]
    expected = model.scores([Step(tree.context_ids(0), tree.ids[node])])[0]
    assert tree.score[node] == pytest.approx(expected, rel=1e-4) and tree.spent.judge_tokens > 0
    candidate = Candidate((), Completion("x"), None, None, None, NodeStatus.DRAFT, 0.0, 1)
    with pytest.raises(TreewrightError, match="token ids"):
        await PrmEvaluator(model).evaluate(tree.task, [candidate])


async def test_a_tree_can_begin_at_a_stored_node(grown: tuple[Any, list[Tree]], tmp_path: Path) -> None:
    _, trees = grown
    source, leaf = next((t, i) for t in trees for i in t.leaves() if t.depth[i] >= 3)
    start = start_at(source, source.path(leaf)[2])
    cfg = config(tmp_path, **{"search.root_draws": 3})
    policy = open_policy("seedling")
    async with open_worlds(["kg"]) as worlds:
        (tree,) = await grow_from(cfg, [start], worlds, policy, "from")
    await policy.close()
    assert tree.exact and prefix_length(tree) == 2 and tree.header.continues == start.source
    assert prefix_ids(tree) == start.ids and {tree.origin[i] for i in (1, 2)} == {Origin.STORED}
    assert tree.context_ids(2) == source.context_ids(start.source[1])  # token in, token out
    shown = [not_none(tree.observation[i]).fingerprint for i in (0, 1, 2)]
    assert shown == [not_none(source.observation[i]).fingerprint for i in source.path(start.source[1])]
    assert tree.drawn[2] == 3 and tree.spent.expansions == 2 + 4
    arrays = tree_arrays([tree, source])
    assert not arrays.trainable[1:3].any() and arrays.group[0] != arrays.group[-1]
    assert tree_arrays([tree, source], by="task").group.max() == 0


async def test_a_prefix_that_does_not_repeat_ends_in_a_fault(grown: tuple[Any, list[Tree]], tmp_path: Path) -> None:
    _, trees = grown
    source, leaf = next((t, i) for t in trees for i in t.leaves() if t.depth[i] >= 3)
    start = start_at(source, source.path(leaf)[2])
    other = replace(start, turns=(start.turns[0], replace(start.turns[1], prompt=(1, 2, 3))))
    policy = open_policy("seedling")
    async with open_worlds(["kg"]) as worlds:
        tree = await search_from(other, worlds["kg"].suite.open, policy)
        with pytest.raises(TreewrightError, match="whole tree"):
            from treewright.search.rules import rule

            await search_from(start, worlds["kg"].suite.open, policy, rule=rule("reexpand"))
    await policy.close()
    assert not tree.exact and any("does not repeat" in (f or "") for f in tree.fault)


@pytest.mark.parametrize("name", ["prefixrl", "prefix_rft", "pppo"])
async def test_prefix_recipes_train_one_visible_step_from_stored_nodes(
    name: str, grown: tuple[Any, list[Tree]], tmp_path: Path
) -> None:
    _, trees = grown
    skipped = {"loop.skip_tasks": '{"kg": 5}'} if name == "pppo" else {}
    cfg = config(tmp_path, **{"search.root_draws": 6, "search.expansions": 3}, **skipped)
    t = make_trainer(cfg, SEEDLING)
    learner, policy = Learner(t, cfg.home / "checkpoints"), open_policy("seedling")
    seen: dict[str, Any]
    before, seen = frozen(t.model), {}
    learn = Trainer.learn

    def spy(
        self: Any, trees: Any, arrays: TreeArrays, credit: Credit, *, mode: Any = None, **options: Any
    ) -> dict[str, float]:
        seen.update(trees=trees, arrays=arrays, credit=credit, mode=mode)
        return learn(self, trees, arrays, credit, mode=mode, **options)

    with TreeStore.open(cfg.store_at) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "learn", spy)
        async with open_worlds(["kg"]) as worlds:
            rounds = await prefix_rounds(cfg, name, worlds, policy, learner, trees, updates=1, starts=12, store=store)
            others = {task.id for task in tasks_for(worlds, "train", 0, 7)[5:]}
    assert policy.version == weights_version(t.model) != weights_version(before)
    await policy.close()
    assert rounds[0]["trained_tokens"] > 0 and not_none(checkpoint.latest(cfg.home / "checkpoints")).step == 1
    given: list[Any]
    given, offset = [], 0
    for tree in seen["trees"]:
        given += range(offset + 1, offset + 1 + prefix_length(tree))
        offset += len(tree)
    coef = seen["credit"].coef
    if name == "prefixrl":
        assert seen["mode"] is None and (coef[given] == 0).all() and (coef != 0).any()
    elif name == "prefix_rft":
        assert set(seen["mode"][given]) == {Mode.TOP_ENTROPY} and Mode.PG in seen["mode"]
    else:
        assert {tree.task.id for tree in seen["trees"]} <= others
        assert set(seen["mode"][given]) == {Mode.PG} and (np.delete(seen["mode"], given) == Mode.NONE).all()
        assert (coef[given] > 0).any() and (coef[given] < 0).any()
        was, now = (_credited(m, t, seen) for m in (before, t.model))
        assert now > was


def _credited(model: Any, t: Any, seen: dict[str, Any]) -> float:
    """Σ coef · log π of every credited node: what the update shall raise."""
    out, offset = 0.0, 0
    for tree in seen["trees"]:
        for i in range(1, len(tree)):
            coef = seen["credit"].coef[offset + i]
            if coef and seen["mode"][offset + i] != Mode.NONE:
                (pack,) = pack_rows([[prefix_row(tree.context_ids(tree.parent[i]), tree.ids[i])]])
                with torch.no_grad():
                    out += coef * float(t.logprobs(pack, model)[0].sum())
        offset += len(tree)
    return out


def test_shares_fall_or_rise_along_a_half_cosine_and_leave_a_turn_to_draw() -> None:
    shares = [prefix.share_at(i, 5, 0.95, 0.05) for i in range(5)]
    assert shares[0] == pytest.approx(0.95) and shares[-1] == pytest.approx(0.05) and shares[2] == pytest.approx(0.5)
    assert shares == sorted(shares, reverse=True)
    assert [fronts._kept(4, s) for s in (0.05, 0.5, 0.95)] == [0, 2, 3]
    with pytest.raises(TreewrightError, match="'prefixrl'"):
        prefix.recipe("prefixlr")


def test_equal_fronts_are_pooled_by_their_exact_tokens(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    starts = prefix.drawn_starts(trees, 0.4)
    keys = [(s.task.id, s.ids) for s in starts]
    assert len(keys) == len(set(keys)) and all(s.turns for s in starts)
    for tree in trees:
        mine = [s for s in starts if s.task.id == tree.task.id]
        assert sum(s.mass for s in mine) <= 1 + 1e-6


async def test_spar_iterates_search_pairs_and_dpo(tmp_path: Path) -> None:
    cfg = config(tmp_path, **{"loop.tasks": 8})
    t = make_trainer(cfg, SEEDLING)
    learner, policy = Learner(t, cfg.home / "checkpoints"), open_policy("seedling")
    async with open_worlds(["kg"]) as worlds:
        rounds = await spar_rounds(cfg, worlds, policy, learner, rounds=2, beta=0.5)
    assert len(rounds) == 2 and rounds[0]["pairs"] > 0
    assert policy.version == weights_version(t.model)
    await policy.close()
    manifest = json.loads((not_none(checkpoint.latest(cfg.home / "checkpoints")).path / "manifest.json").read_text())
    assert manifest["extra"] == {"iteration": 0, "recipe": "spar"}


# -- staleness and exactness -----------------------------------------------------------------------------------------


def test_trees_of_older_weights_are_refused_by_age_and_corrected_within_it(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    half = len(trees) // 2
    strict = trainer()
    assert strict.update(trees[:half])["oldest"] == 0
    with pytest.raises(StaleTrees, match=rf"of {len(trees) - half} trees {len(trees) - half} were drawn more than 0"):
        strict.update(trees[half:])
    lenient = trainer(**{"train.max_staleness": 1, "train.lr": 3e-3})
    lenient.update(trees[:half])
    now = weights_version(lenient.model)
    assert (
        age_of(trees[0].header.policy_version, not_none(lenient.versions)) == 1
        and age_of(now, not_none(lenient.versions)) == 0
    )
    seen: dict[str, Any] = {}
    descend = lenient.descend_surrogate

    def spy(
        packs: Sequence[PackedBatch], options: Any = None, on_pack: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        seen.update(packs=packs, options=options, stale=[lenient.logprobs(p)[0].detach() for p in packs])
        return descend(packs, options, on_pack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "descend_surrogate", lambda self, *a, **k: spy(*a, **k))
        stats = lenient.update(trees[half:])
    assert stats["oldest"] == 1 and seen["options"].by_action
    # the gap is that of whole actions between the weights now and those that drew, not of tokens
    gaps = []
    for pack, here in zip(seen["packs"], seen["stale"], strict=True):
        change = (here - torch.from_numpy(pack.behaviour))[torch.from_numpy(pack.term)]
        gaps += [float(change[torch.from_numpy(pack.sequence == q)].sum()) for q in set(pack.sequence.tolist())]
    assert stats["sampler_gap"] == pytest.approx(max(map(abs, gaps)), rel=1e-3) and stats["sampler_gap"] > 1e-3
    assert stats["truncated"] < 1
    with pytest.raises(TreewrightError, match="trained on before"):
        lenient.update(trees[half:])


def test_trees_of_weights_that_the_trainer_never_had_are_refused(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    t = trainer(**{"train.max_staleness": 5})
    foreign = replace(trees[0].header, policy_version="elsewhere")
    trees = [trees[1], _with_header(trees[0], foreign)]
    with pytest.raises(StaleTrees, match="1 by weights that this trainer never had"):
        t.update(trees)


def _with_header(tree: Tree, header: TreeHeader) -> Tree:
    from copy import copy

    other = copy(tree)
    other.header = header
    return other


def test_the_history_of_weights_comes_back_with_a_checkpoint(grown: tuple[Any, list[Tree]], tmp_path: Path) -> None:
    _, trees = grown
    t = trainer()
    t.update(trees[:6])
    checkpoint.save(t, tmp_path)
    again = trainer()
    checkpoint.restore(again, not_none(checkpoint.latest(tmp_path)))
    assert again.versions == t.versions and len(not_none(t.versions)) == 2
    with pytest.raises(StaleTrees):
        again.update(trees[6:])


def test_inexact_trees_are_refused_where_values_decide_and_taken_where_they_do_not(
    grown: tuple[Any, list[Tree]],
) -> None:
    from copy import copy

    _, trees = grown
    broken = copy(next(t for t in trees if path_rows([t])))
    broken.reasons = ["a fault persisted"]
    t = trainer()
    calls: tuple[Callable[[], Any], ...]
    calls = (lambda: t.update([broken]), lambda: train_prm(Prm(t.model, None), [broken]))
    for call in calls:
        with pytest.raises(InexactTree, match="allow_biased"):
            call()
    assert sft(t, [broken])["paths"] == 1


def test_recipes_say_what_is_missing(grown: tuple[Any, list[Tree]]) -> None:
    _, trees = grown
    t = trainer()
    with pytest.raises(TreewrightError, match="none of"):
        sft(t, trees, min_outcome=9.0)
    with pytest.raises(TreewrightError, match="no pairs"):
        dpo(t, [])
    with pytest.raises(TreewrightError, match="beta"):
        dpo(t, [Pair((1,), (2,), (3,), 1.0)], beta=0)
    for name, said in (("likelyhood", "likelihood"), ("prm", "prm:FOLDER")):
        with pytest.raises(TreewrightError, match=said):
            evaluator_of(config("x", **{"search.evaluator": name}).search)
