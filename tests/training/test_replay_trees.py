"""Routes in trees: packs keep apart what was routed differently, and updates replay it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from not_none import not_none
from numpy.typing import NDArray
from replayed import EACH, FAMILIES, grads, model_of, near, row_logprobs, some_routes
from search_trees import random_tree

from treewright.envs.errors import TreewrightError
from treewright.search.routes import decode_routes, encode_routes
from treewright.search.tree import Tree
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.decoders.replay import replaying
from treewright.training.lora import attach
from treewright.training.model import prepare, tree_logprobs
from treewright.training.pack import pack_trees
from treewright.training.packed import PackedBatch
from treewright.training.routed import record_routes
from treewright.training.settings import LoraSettings
from treewright.training.step import Trainer, TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread", "all_float64")


def routed_tree(seed: int, layers: int = 2, share: float = 0.8, whole: bool = False, **options: Any) -> Tree:
    """A random tree whose draws tell the experts of what they added, some of them of more or less, some of nothing.

    Siblings are often routed alike over what they share.
    """
    tree, rng = random_tree(seed, **options), np.random.default_rng(seed)
    alike: dict[int, NDArray[Any]] = {}
    for node in range(1, len(tree)):
        above = tree.parent[node]
        read = len(tree.context_ids(above)) + len(tree.ids[node]) - 1
        again = 0 if whole else int(rng.choice([0, 0, 1, 4]))
        most = min(read, len(tree.delta[above]) + len(tree.ids[node]) + again)
        count = most if whole or rng.random() < 0.7 else int(rng.integers(0, most + 1))
        if whole or rng.random() < share:
            given = some_routes(most, layers, int(rng.integers(10**6)), unknown=0)
            shared = alike.setdefault(above, given)[: most - len(tree.ids[node])]
            if rng.random() < 0.7:
                given[: len(shared)] = shared
            tree.routes[node] = encode_routes(given[most - count :])
    return tree


def slow_row(tree: Tree, node: int) -> tuple[tuple[int, ...], NDArray[Any]]:
    """The row of a node, and the experts of each of its tokens: what each draw on its path tells, the last one wins."""
    ids: tuple[int, ...] = ()
    known: list[Any] = []
    for i in tree.path(node)[1:]:
        above = tree.parent[i]
        kept = tree.keep[above] if above else 0
        known = known[:kept]
        ids = ids[:kept] + tree.delta[above] + tree.ids[i]
        known += [None] * (len(ids) - len(known))
        found = decode_routes(tree.routes[i]) if tree.routes[i] else ()
        for at, route in enumerate(found, len(ids) - 1 - len(found)):
            known[at] = route
    assert ids == tree.context_ids(tree.parent[node]) + tree.ids[node]
    return ids, np.stack([np.full((2, EACH), -1, np.int16) if r is None else r for r in known])


def credited(trees: list[Any], **options: Any) -> tuple[list[PackedBatch], NDArray[Any]]:
    arrays = tree_arrays(trees)
    credit = estimate("split_loo", arrays)
    return pack_trees(trees, arrays, credit, **options), credit.coef


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_packs_of_trees_with_routes_give_each_row_s_own_log_probs_and_gradient(window: bool, flat: bool) -> None:
    model = model_of("Mixtral")
    trees = [routed_tree(seed, window=window, expansions=3) for seed in (1, 2)]
    nodes = [(tree, node) for tree in trees for node in range(len(tree))]
    each = [np.full(len(tree.ids[n]), c) for (tree, n), c in zip(nodes, credited(trees)[1], strict=True)]
    (pack,), coef = credited(trees, tokens=each if flat else None)
    assert pack.routes is not None and pack.routes.shape == (len(pack), 2, EACH) and pack.routes.dtype == np.int16
    model.zero_grad()
    total = 0.0
    for (tree, node), c in zip(nodes, coef, strict=True):
        if c:
            ids, given = slow_row(tree, node)
            logp = row_logprobs(model, torch.tensor(ids), given, FAMILIES["Mixtral"])[-len(tree.ids[node]) :].sum()
            (logp * c).backward()
            total += float(logp.detach()) * c
    wanted = grads(model)
    trainer = Trainer(model)
    model.zero_grad()
    with replaying(model, pack.routes):
        logp = tree_logprobs(model, *trainer._inputs(pack))[0]
        value = (logp * torch.from_numpy(pack.coef)).sum()
        value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == pytest.approx(total, rel=1e-9)
    near(grads(model), wanted)
    near(trainer.logprobs(pack)[0].detach(), logp.detach(), 1e-12)


def test_siblings_that_share_tokens_stand_together_only_where_they_were_routed_alike() -> None:
    tree = random_tree(1, expansions=1)
    first, second = tree.children[0][:2]
    tree.ids[first], tree.ids[second] = (7, 8, 9), (7, 8, 5)
    tree.logprobs[first] = tree.logprobs[second] = (-1.0,) * 3
    alike = some_routes(len(tree.delta[0]) + 2, 2, unknown=0)
    (plain,), _ = credited([tree])
    tree.routes[first] = tree.routes[second] = encode_routes(alike)
    (same,), _ = credited([tree])
    assert len(same) == len(plain) and plain.routes is None
    other = alike.copy()
    other[-2] = other[-2, :, ::-1]  # of token 7
    tree.routes[second] = encode_routes(other)
    (apart,), _ = credited([tree])
    assert len(apart) == len(plain) + 2 and sorted(apart.ids.tolist()).count(7) == plain.ids.tolist().count(7) + 1
    assert (credited([tree], replay=False)[0][0].ids == plain.ids).all()


def test_the_last_token_of_an_answer_stands_once_for_it_and_for_what_comes_after() -> None:
    trees = [routed_tree(seed, whole=True, expansions=0) for seed in range(9)]
    trees = [tree for tree in trees if len(tree) == 3]
    assert len(trees) > 2
    for tree in trees:
        ((pack,), _), ((plain,), _) = (credited([tree], every=True, replay=on) for on in (True, False))
        assert (pack.ids == plain.ids).all() and (pack.parent == plain.parent).all()
        routes = not_none(pack.routes)
        assert (routes[:-1] >= 0).all() and (routes[-1] == -1).all(), "the last token was read by nobody"
        assert len(pack.target) == len(plain.target)


def test_trees_without_routes_beside_others_are_routed_by_the_trainer() -> None:
    with_routes, without = routed_tree(1, expansions=3, whole=True), random_tree(2, expansions=3)
    (pack,), _ = credited([with_routes, without], every=True)
    alone = credited([without], every=True)[0][0]
    routes = not_none(pack.routes)
    assert alone.routes is None and (routes[-len(alone) :] == -1).all() and (routes >= 0).any()
    other = routed_tree(3, layers=5, whole=True)
    with pytest.raises(
        TreewrightError, match=r"2 layers with 2 experts a token and 5 layers with 2 .* different models"
    ):
        credited([with_routes, other], every=True)


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        (some_routes(99, 2, unknown=0), r"node \d+ of tree .* has routes of 99 tokens, but \d+ were read"),
        (some_routes(1, 3, unknown=0), "routes of .* layers with 2 experts a token at node .* one model drew the tree"),
    ],
)
def test_routes_that_do_not_fit_their_tree_are_refused(routes: NDArray[Any], words: str) -> None:
    tree = routed_tree(1, whole=True)
    tree.routes[len(tree) - 1] = encode_routes(routes)
    with pytest.raises(TreewrightError, match=words):
        credited([tree], every=True)


@pytest.mark.parametrize("more", [{}, {"checkpointing": True, "chunk_tokens": 40}])
def test_an_update_replays_what_the_sampler_did_and_says_how_much(more: dict[str, Any], single: None) -> None:
    model = model_of("Qwen3Moe").float()
    prepare(model)
    trees = [random_tree(seed, task=f"t{seed}", expansions=3) for seed in range(3)]
    for tree in trees:
        record_routes(tree, model)
    assert all(tree.routes[i] for tree in trees for i in range(1, len(tree)))
    stats = Trainer(model, TrainSettings(lr=1e-4, minibatches=1, **more)).update(trees)
    assert 0.8 < stats["routes_replayed"] < 1 and stats["routing_flips"] == 0
    other = [routed_tree(seed + 5, task=f"t{seed}", expansions=3) for seed in range(3)]
    stats = Trainer(model, TrainSettings(lr=1e-4, minibatches=1, **more)).update(other)
    assert 0.3 < stats["routes_replayed"] < 1 and stats["routing_flips"] > 0.5
    off = Trainer(model, TrainSettings(lr=1e-4, replay_routes=False)).update(other)
    assert "routes_replayed" not in off


def test_a_sampler_that_routes_otherwise_leaves_no_gap_where_it_is_replayed(single: None) -> None:
    model = model_of("Mixtral").float()
    trees = [routed_tree(seed, task=f"t{seed}", expansions=3) for seed in range(3)]
    for tree in trees:
        for node in range(1, len(tree)):
            ids, given = slow_row(tree, node)
            with torch.no_grad():
                logp = row_logprobs(model, torch.tensor(ids), given, FAMILIES["Mixtral"])
            tree.logprobs[node] = tuple(logp[-len(tree.ids[node]) :].tolist())
    gaps = {}
    for replay in (True, False):
        settings = TrainSettings(lr=1e-9, minibatches=1, replay_routes=replay)
        gaps[replay] = Trainer(copy.deepcopy(model), settings).update(trees)["sampler_gap"]
    assert gaps[True] < 1e-5 < 1e-2 < gaps[False]


def test_an_update_of_an_adapter_replays_and_learns(tmp_path: Path, single: None) -> None:
    pytest.importorskip("peft")
    model = attach(model_of("Mixtral").float(), LoraSettings(rank=2), tmp_path)
    trainer = Trainer(model, TrainSettings(lr=1e-2, minibatches=1, kl_coef=0.1, checkpointing=True))
    stats = trainer.update([routed_tree(seed, task=f"t{seed}", expansions=3) for seed in range(2)])
    assert stats["routing_flips"] > 0.5 and stats["grad_norm"] > 0
    assert stats["reference_kl"] == pytest.approx(0, abs=1e-6), "the reference takes the same experts"


def test_an_update_on_routes_of_another_model_changes_no_weight() -> None:
    model = model_of("Mixtral")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(TreewrightError, match=r"has 2 with experts.* train\.replay_routes=false"):
        Trainer(model).update([routed_tree(seed, layers=5, task=f"t{seed}") for seed in range(3)])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
