"""Draws at a temperature by depth: the credit weighs them, and the gradient stays that of the policy itself."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, ItemsView, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from choices import Choices, Guide, Softmax, p_a, tree_gradient, true_gradient, z_scores
from not_none import not_none
from numpy.typing import NDArray
from search_trees import random_tree, tiny_model

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.temper import Temperatures
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Context
from treewright.training.credit import InexactTree, TreeArrays, estimate, split_loo, split_loo_reference
from treewright.training.credit.trees import tree_arrays
from treewright.training.crediting import best_paths
from treewright.training.pack import join_packs, pack_trees
from treewright.training.parallel.forest import cut, from_bytes, to_bytes
from treewright.training.step import Trainer, TrainSettings
from treewright.training.tempered import weighed

from .credit_trees import random_batch


def warm(p: float, temperature: float) -> float:
    """The probability of the first of two, at a temperature."""
    a, b = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    return float(a / (a + b))


# -- exactly, by enumeration ------------------------------------------------------------------------------------------

POLICY = {"": 0.8, "a": 0.3, "b": 0.6}
REWARD = {"aa": 1.0, "ab": 0.25, "ba": 0.0, "bb": 0.5}
HEAT = (1.4, 0.6)  # at the root, and one turn below


def outcomes() -> ItemsView[Any, float]:
    """Every tree that the search can grow, with its probability: two draws at the root; the child that the guide likes
    best, b, or a where there is no b, is expanded with two draws; the other is closed by a rollout of the policy."""
    q = warm(POLICY[""], HEAT[0])
    tables: dict[Any, float] = {}
    for first in itertools.product("ab", repeat=2):
        p_first = math.prod(q if x == "a" else 1 - q for x in first)
        liked, *others = sorted(set(first), reverse=True)
        low = warm(POLICY[liked], HEAT[1])
        for second in itertools.product("ab", repeat=2):
            p_second = math.prod(low if x == "a" else 1 - low for x in second)
            for closing in itertools.product("ab", repeat=len(others)):
                moves = zip(others, closing, strict=True)
                p_third = math.prod(POLICY[o] if c == "a" else 1 - POLICY[o] for o, c in moves)
                key = (tuple(sorted(first)), liked, tuple(sorted(second)), closing)
                tables[key] = tables.get(key, 0.0) + p_first * p_second * p_third
    return tables.items()


def ratio(state: str, move: str, temperature: float) -> float:
    p, q = POLICY[state], warm(POLICY[state], temperature)
    return p / q if move == "a" else (1 - p) / (1 - q)


def grown(
    first: Sequence[str], liked: str, second: Sequence[str], closing: Sequence[str]
) -> tuple[TreeArrays, list[Any]]:
    """Arrays of one such tree, and (state, move) of every node's edge."""
    parent, mult, weight = [-1], [1], [1.0]
    edges: list[Any] = [None]
    for move in sorted(set(first)):
        parent.append(0)
        mult.append(first.count(move))
        weight.append(ratio("", move, HEAT[0]))
        edges.append(("", move))
    rest = list(closing)
    for node, (_, state) in list(enumerate(edges[1:], 1)):
        moves = sorted(set(second)) if state == liked else [rest.pop(0)]
        for move in moves:
            parent.append(node)
            mult.append(second.count(move) if state == liked else 1)
            weight.append(ratio(state, move, HEAT[1]) if state == liked else 1.0)
            edges.append((state, move))
    reward = [REWARD.get("".join(e), 0.0) if e else 0.0 for e in edges]
    return TreeArrays.of(parent, mult=mult, reward=reward, importance=weight), edges


def expected(weighs: bool, tau: float) -> NDArray[Any]:
    """Expected Σ coef ∇ log π by state, where the gradient is that of the log-odds of a."""
    total = dict.fromkeys(POLICY, 0.0)
    for key, p in outcomes():
        arrays, edges = grown(*key)
        if not weighs:
            arrays = arrays.with_(importance=np.ones(len(arrays)))
        coef = split_loo(arrays, tau=tau, root_baseline=0.3).coef
        for node, edge in enumerate(edges):
            if edge:
                total[edge[0]] += p * coef[node] * ((edge[1] == "a") - POLICY[edge[0]])
    return np.array(list(total.values()))


def exact_gradient() -> NDArray[Any]:
    value = {s: POLICY[s] * REWARD[s + "a"] + (1 - POLICY[s]) * REWARD[s + "b"] for s in "ab"}
    slope: Callable[[str, float, float], float] = lambda s, a, b: POLICY[s] * (1 - POLICY[s]) * (a - b)  # noqa: E731
    below = [(POLICY[""] if s == "a" else 1 - POLICY[""]) * slope(s, REWARD[s + "a"], REWARD[s + "b"]) for s in "ab"]
    return np.array([slope("", value["a"], value["b"]), *below])


@pytest.mark.parametrize("tau", [0.0, 3.0])
def test_the_expected_gradient_of_tempered_trees_is_the_true_one_over_all_outcomes(tau: float) -> None:
    assert math.isclose(sum(p for _, p in outcomes()), 1.0)
    np.testing.assert_allclose(expected(True, tau), exact_gradient(), atol=1e-12)


def test_without_the_weights_the_same_trees_give_another_gradient() -> None:
    assert np.abs(expected(False, 3.0) - exact_gradient()).max() > 0.1 * np.abs(exact_gradient()).max()


@pytest.mark.parametrize("seed", range(8))
def test_the_fast_estimator_is_its_formulas_with_weights_too(seed: int) -> None:
    arrays = random_batch(seed, exact=seed % 2 == 0)
    rho = np.exp(np.random.default_rng(seed).normal(0, 0.5, len(arrays)))
    arrays = arrays.with_(importance=np.where(arrays.parent < 0, 1.0, rho))
    for options in ({}, {"tau": 0.0}, {"weight_power": 0.5, "root_baseline": 0.2}):
        fast, slow = (f(arrays, allow_biased=True, **options) for f in (split_loo, split_loo_reference))
        for name in ("value", "coef", "weight", "ess"):
            want = getattr(slow, name)
            np.testing.assert_allclose(
                getattr(fast, name), want, rtol=1e-9, atol=1e-9 * np.nanmax(np.abs(want), initial=1e-3), err_msg=name
            )


def test_estimators_that_take_no_weights_refuse_such_trees_and_unknown_weights_are_a_reason() -> None:
    arrays = TreeArrays.of([-1, 0, 0], reward=[0, 1, 0], importance=[1, 0.5, 2.0])
    with pytest.raises(InexactTree, match="grpo: 2 nodes were drawn at other temperatures"):
        estimate("grpo", arrays)
    assert estimate("split_loo", arrays).coef[1] != 0
    with pytest.raises(InexactTree, match="drawn at other temperatures, weights not known"):
        estimate("split_loo", arrays.with_(importance=[1, np.nan, 2.0]))


# -- by the engine ----------------------------------------------------------------------------------------------------

RISING = Temperatures(start=0.8, growth=0.8, most=2.2)


class Warm(Softmax):
    """Draws as it is asked to."""

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        heat = context.temperature or 1.0
        p = warm(p_a(bytes(context.ids).decode()), heat)
        out = []
        for seed in seeds:
            a = random.Random(seed).random() < p
            said, logprob = ("a {}", p) if a else ("b {}", 1 - p)
            out.append(Completion(said, (1 if a else 2,), (math.log(logprob),), temperature=heat))
        return out


async def opened() -> Choices:
    return Choices()


async def found(count: int) -> NDArray[Any]:
    """Gradients of `count` trees by the real search, guided, with weights from the policy's own probabilities."""
    pool, out, task = Pool(opened, 1), [], Task("choices", "t", "choose", horizon=3)
    for i in range(count):
        tree = await search(
            replace(task, id=f"t{i}"), pool, Warm(), rule=best_first(draws=2, root_draws=3), evaluator=Guide(),
            budget=Budget(expansions=3), settings=Settings(seed=1, close=True, temperature_by_depth=RISING),
        )  # fmt: skip
        assert tree.exact
        plain = [0.0]
        for node in range(1, len(tree)):
            state = "".join(not_none(tree.action[i]).name for i in tree.path(node)[1:-1])
            plain.append(p_a(state) if not_none(tree.action[node]).name == "a" else 1 - p_a(state))
            asked = 1.0 if tree.closing[node] else RISING.at(tree.depth[node] - 1)
            assert tree.temperature[node] == asked
        rho = [p / math.exp(sum(tree.logprobs[n])) if n else 1.0 for n, p in enumerate(plain)]
        arrays = tree_arrays([tree])
        assert np.isnan(arrays.importance[1:]).sum() == sum(t != 1 for t in tree.temperature[1:])
        arrays = arrays.with_(importance=rho)
        out.append(tree_gradient(tree, estimate("split_loo", arrays, root_baseline=0.3)))
    return np.array(out)


async def test_search_at_temperatures_by_depth_gives_the_true_gradient_within_noise() -> None:
    mean = await found(250)
    assert z_scores(mean).max() < 4.0
    assert mean.mean(0) @ true_gradient() / np.linalg.norm(mean.mean(0)) / np.linalg.norm(true_gradient()) > 0.9


async def test_a_policy_that_does_not_draw_as_asked_is_told() -> None:
    task = Task("choices", "t", "choose", horizon=3)
    with pytest.raises(TreewrightError, match=r"asked for a draw at temperature 0\.8, and the policy drew at 1"):
        await search(task, Choices(), Softmax(), settings=Settings(temperature_by_depth=RISING))


def test_temperatures_are_a_line_with_a_ceiling_or_a_function_and_above_0() -> None:
    assert [Temperatures(start=1.0, growth=0.5, most=1.8).at(d) for d in range(4)] == [1.0, 1.5, 1.8, 1.8]
    assert Temperatures(by="math:exp", most=50).at(2) == math.exp(2)
    for wrong in ({"start": 0}, {"most": -1}, {"growth": math.nan}):
        with pytest.raises(TreewrightError, match=r"search\.temperature_by_depth\."):
            Temperatures(**wrong)
    with pytest.raises(TreewrightError, match="at depth 2; it must be above 0"):
        Temperatures(growth=-0.5).at(2)


# -- by the trainer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def heated(tree: Tree, every: int = 2) -> Tree:
    """The tree, each second draw made at another temperature."""
    for node in range(1, len(tree)):
        tree.temperature[node] = 1.5 if node % every else 1.0
    return tree


def test_the_trainer_weighs_by_its_own_log_probs_over_those_of_the_draw(one_thread: None) -> None:
    trees = [heated(random_tree(seed, expansions=3)) for seed in range(3)]
    trainer, rows = Trainer(tiny_model(), TrainSettings(minibatches=1)), tiny_model()
    arrays = weighed(trees, tree_arrays(trees), trainer._plain_logprobs, 40)
    at = 0
    for tree in trees:
        for node in range(len(tree)):
            rho = arrays.importance[at]
            at += 1
            if not node or tree.temperature[node] == 1:
                assert rho == 1
                continue
            ids = torch.tensor([tree.context_ids(tree.parent[node]) + tree.ids[node]])
            with torch.no_grad():
                logits = rows(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
            n = len(tree.ids[node])
            own = sum(logits[-n - 1 + i, tree.ids[node][i]].item() for i in range(n))
            assert rho == pytest.approx(math.exp(own - sum(tree.logprobs[node])), rel=1e-4)


def test_what_the_credit_has_weighed_the_loss_does_not_correct_again(one_thread: None) -> None:
    trees = [heated(random_tree(5, expansions=4))]
    arrays = tree_arrays(trees)
    arrays = arrays.with_(importance=np.where(np.isnan(arrays.importance), 0.5, 1.0))
    (pack,) = pack_trees(trees, arrays, estimate("split_loo", arrays))
    known = [math.isnan(x) for x in pack.behaviour]
    assert any(known) and not all(known)
    mass = [1.0]
    for i in range(1, len(arrays)):
        mass.append(mass[arrays.parent[i]] * float(trees[0].share[i]) * arrays.importance[i])
    sizes = sum(m * n for m, n in zip(mass, arrays.n_tokens, strict=True) if n)
    every = pack_trees(trees, arrays, estimate("split_loo", arrays), every=True)
    assert sum(float(p.weight.sum()) for p in every) == pytest.approx(sizes)


def test_an_update_on_tempered_trees_needs_an_estimator_that_weighs_or_leave(one_thread: None) -> None:
    trees = [heated(random_tree(seed, expansions=3)) for seed in range(2)]
    stats = Trainer(tiny_model(), TrainSettings()).update(trees)
    assert math.isfinite(stats["loss"]) and stats["trained_tokens"] > 0
    with pytest.raises(TreewrightError, match=r"train\.estimator=rloo with train\.unit=turn does not weigh"):
        Trainer(tiny_model(), TrainSettings(estimator="rloo")).update(trees)
    Trainer(tiny_model(), TrainSettings(estimator="rloo", allow_biased=True)).update(trees)


# -- a supervised loss on what went best ------------------------------------------------------------------------------


def test_the_best_path_is_that_of_the_highest_return_above_0_and_weighs_what_it_earned() -> None:
    trees = [random_tree(seed, expansions=4) for seed in range(6)]
    weights, at = best_paths(trees), 0
    for tree in trees:
        mine, at = weights[at : at + len(tree)], at + len(tree)
        ends = {leaf: tree.outcome_of(leaf) for leaf in tree.leaves()}
        if max(ends.values()) <= 0:
            assert not mine.any()
            continue
        first = next(leaf for leaf in sorted(ends) if ends[leaf] == max(ends.values()))
        assert np.flatnonzero(mine).tolist() == tree.path(first)[1:] and set(mine[mine > 0]) == {ends[first]}


@pytest.mark.parametrize("unit", ["turn", "token"])
def test_the_supervised_term_adds_the_gradient_of_the_best_paths_likelihood(one_thread: None, unit: str) -> None:
    """Against one plain row for each tree's best path."""
    trees = [random_tree(seed, expansions=3) for seed in range(3)]
    model: Callable[[], Any] = lambda: tiny_model().double()  # noqa: E731

    def gradient(coef: float) -> torch.Tensor:
        made = Trainer(model(), TrainSettings(minibatches=1, sft_coef=coef, unit=unit, lr=1e-9, grad_clip=1e9))
        made.update(trees)
        return torch.cat([p.grad.flatten() for p in made.model.parameters()])

    rows = model()
    total: Any = 0.0
    for tree in trees:
        best = max(tree.leaves(), key=tree.outcome_of)
        for node in tree.path(best)[1:]:
            ids = torch.tensor([tree.context_ids(tree.parent[node]) + tree.ids[node]])
            logits, n = rows(input_ids=ids, use_cache=False).logits[0].log_softmax(-1), len(tree.ids[node])
            own = sum(logits[-n - 1 + i, tree.ids[node][i]] for i in range(n))
            total = total - 0.7 * max(0.0, tree.outcome_of(best)) * own / len(trees)
    total.backward()
    want = torch.cat([p.grad.flatten() for p in rows.parameters()])
    found = gradient(0.7) - gradient(0.0)
    assert want.norm() > 0 and (found - want).norm() / want.norm() < 1e-4


def test_packs_with_examples_travel_between_ranks_and_are_cut_as_they_were(one_thread: None) -> None:
    trees = [random_tree(seed, expansions=3) for seed in range(3)]
    arrays = tree_arrays(trees)
    (pack,) = pack_trees(trees, arrays, estimate("split_loo", arrays), imitate=best_paths(trees))
    (back,) = from_bytes(to_bytes([pack]))
    assert np.array_equal(not_none(back).imitate, pack.imitate) and pack.imitate.any()
    assert np.array_equal(join_packs(cut(pack)).imitate, pack.imitate)
