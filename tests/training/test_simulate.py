"""What a run on many GPUs will take: by formula, by constants that say where they are from, and as measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks_child import together
from search_trees import random_tree

from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree
from treewright.training.balance import Part, fitted
from treewright.training.simulate import (
    MACHINES,
    MODELS,
    forecast,
    machine_named,
    recorded_forest,
    seconds_of,
    shape_of,
    with_constants,
)

EMPTY = Tree.start(random_tree(9).header)
"""A tree of its root alone."""


def test_weights_of_known_models_are_what_their_publishers_say() -> None:
    for name, billions in (("0.6b", 0.596), ("4b", 4.02), ("8b", 8.19), ("9b", 9.4), ("32b", 32.8), ("70b", 70.6)):
        assert MODELS[name].weights / 1e9 == pytest.approx(billions, rel=0.01), name


def test_more_gpus_take_less_time_and_memory_and_every_constant_has_a_source() -> None:
    few = forecast(MODELS["9b"], MACHINES["h200"], 8, engines=8)
    many = forecast(MODELS["9b"], MACHINES["h200"], 32, engines=8)
    assert many.step < few.step and many.memory_total < few.memory_total and many.slots < few.slots
    apart = forecast(MODELS["9b"], MACHINES["h200"], 8, engines=8, behind=False)
    assert apart.round_seconds == pytest.approx(apart.step + apart.sample + apart.weights)
    assert few.round_seconds == pytest.approx(max(few.step, few.sample) + few.weights)
    assert all(word.source.split(":")[0] in ("published", "assumed", "given, or the default of this command")
               for word in few.constants.values())  # fmt: skip
    assert 0 <= few.idle_ranks < 0.2 and few.memory["weights, a share of each"] == 4 * MODELS["9b"].weights / 8
    faster = with_constants(MACHINES["h200"], {"linear": 0.9})
    assert forecast(MODELS["9b"], faster, 8, engines=8).step < few.step


def test_unknown_names_and_impossible_settings_are_refused() -> None:
    with pytest.raises(TreewrightError, match="did you mean 'h200'"):
        machine_named("h20")
    with pytest.raises(TreewrightError, match="did you mean 'linear'"):
        with_constants(MACHINES["h100"], {"linaer": 0.5})
    with pytest.raises(TreewrightError, match="above 0"):
        with_constants(MACHINES["h100"], {"linear": 0.0})
    with pytest.raises(TreewrightError, match="several GPUs"):
        forecast(MODELS["70b"], MACHINES["h100"], 8, engines=8)
    with pytest.raises(TreewrightError, match="has no hidden_size"):
        shape_of({"num_attention_heads": 4}, "mine")
    shape = shape_of({"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
                      "vocab_size": 100, "num_key_value_heads": 2, "tie_word_embeddings": True}, "mine")  # fmt: skip
    assert shape.weights == 2 * (64 * 16 * 12 + 3 * 64 * 128 + 2 * 64) + 64 * 100


def test_the_measured_step_of_two_processes_is_what_the_costs_of_other_steps_say(tmp_path: Path) -> None:
    """In seconds of the processor, which other programs do not change much: of three, at least two within a third."""
    together("timed", tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())
    costs = fitted(found["tokens"], found["pairs"], found["seconds"])
    ratios = []
    for one in found["held_out"]:
        parts = [Part(t, p) for t, p in one["parts"]]
        ratios.append(one["busy"] / seconds_of(parts, one["plan"], costs))
    assert sum(0.67 < ratio < 1.5 for ratio in ratios) >= 2, ratios


def test_a_recorded_forest_has_the_tokens_and_pairs_that_the_trainer_packs() -> None:
    trees = [random_tree(seed, window=seed % 2 == 1) for seed in range(6)]
    found = recorded_forest([*trees, EMPTY])
    assert len(found.parts) == sum(len(tree) > 1 for tree in trees)
    for part, tree in zip(found.parts, [t for t in trees if len(t) > 1], strict=True):
        prefixes, pairs = set[tuple[int, ...]](), 0
        for node in range(1, len(tree)):
            row = tree.context_ids(tree.parent[node]) + tree.ids[node]
            for end in range(1, len(row) + 1):
                if row[:end] not in prefixes:
                    prefixes.add(row[:end])
                    pairs += end
        assert (part.tokens, part.pairs) == (len(prefixes), pairs)
    assert 0 < found.sampled < 1 and found.depth > 1
    with pytest.raises(TreewrightError, match="no tree holds tokens"):
        recorded_forest([EMPTY])


def test_a_forecast_on_recorded_trees_takes_their_sizes() -> None:
    found = recorded_forest(random_tree(seed) for seed in range(12))
    f = forecast(MODELS["0.6b"], machine_named("h200"), 4, engines=4, trees=96, recorded=found)
    assert f.constants["tokens"].source == "the trees of the run"
    assert f.constants["depth"].value == found.depth and 0 <= f.idle_ranks < 1
