"""Rows out of trees: what each says, checked on trees small enough to know the answer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from search_trees import random_tree

from treewright.agent.runs.evaluate import any_solved
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Effect, Observation, Task
from treewright.search.store.ending import result_of
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeKind, NodeStatus, Origin, Outcome, Spent
from treewright.training.crediting import best_paths
from treewright.training.export import ExportOptions, View, atif_documents, columns, dpo_rows, prefix_rows, prm_rows
from treewright.training.export.atif18 import atif18
from treewright.training.export.peers import openai_preference, verifiers_trace
from treewright.training.export.rows import sft_rows

VERSION = "v1"


def draft(
    slot: int,
    k: int,
    ids: tuple[int, ...],
    text: str,
    outcome: Outcome,
    after: int = 0,
    error: str | None = None,
    origin: Origin = Origin.POLICY,
    version: str = VERSION,
    trainable: bool = True,
) -> Draft:
    logprobs = (-0.5,) * len(ids) if origin is Origin.POLICY else ()
    done = Completion(
        text, ids, logprobs, finish_reason="stop", policy_version=version, trainable=trainable, origin=origin
    )
    action = None if error else Action.of("do", text=text)
    return Draft(
        after=after,
        slot=slot,
        mult=1,
        share=1 / k,
        seed=100 + slot + sum(ids),
        completion=done,
        action=action,
        error=error,
        effect=Effect.READ,
        outcome=outcome,
    )


def seen(
    text: str,
    status: NodeStatus = NodeStatus.OPEN,
    reward: float = 0.0,
    keep: int = 0,
    delta: tuple[int, ...] = (),
    parts: tuple[Any, ...] = (),
    error: str | None = None,
) -> Outcome:
    return Outcome(
        Observation(text, text, provenance="environment", parts=parts),
        status,
        reward=reward,
        effect=Effect.READ,
        keep=keep,
        delta=delta,
        error=error,
    )


def small(
    version: str = VERSION,
    origin: Origin = Origin.POLICY,
    parts: tuple[Any, ...] = (),
    error: str | None = None,
    pad: str = "",
) -> Tree:
    """root → a (opens, two endings: 1 and 0) and b (ends with 0)."""
    root = Outcome(Observation("here" + pad, "r"), NodeStatus.OPEN, delta=(1, 2))
    tree = Tree.start(
        TreeHeader(
            run="run", task=Task("s", "t", "find it"), attempt=0, seed=7, policy_version=VERSION, settings={}, root=root
        )
    )
    a = draft(0, 2, (10,), "go", seen("there", keep=3, delta=(3,), parts=parts, error=error), error=error)
    b = draft(1, 2, (11, 12), "stay", seen("lost", NodeStatus.TERMINAL), origin=origin, version=version)
    tree.apply(Expansion(seq=0, node=0, closing=False, drawn=2, outcome=None, drafts=(a, b), spent=Spent(expansions=1)))
    good = draft(0, 2, (20,), "take", seen("won", NodeStatus.TERMINAL, 1.0))
    bad = draft(1, 2, (21,), "drop", seen("lost", NodeStatus.TERMINAL))
    tree.apply(
        Expansion(seq=1, node=1, closing=False, drawn=2, outcome=None, drafts=(good, bad), spent=Spent(expansions=1))
    )
    tree.chosen = 4
    tree.reveal()
    return tree


def view(tree: Tree, **options: Any) -> View:
    return View(tree, **options)


def test_sft_takes_the_steps_of_the_best_path_and_never_an_observation_as_target() -> None:
    first, second = sft_rows(view(small()))
    assert first["prompt"] == [{"role": "user", "content": "find it\n\nhere"}]
    assert first["completion"] == [{"role": "assistant", "content": "go"}]
    assert [m["role"] for m in second["prompt"]] == ["user", "assistant", "user"]
    assert second["completion"] == [{"role": "assistant", "content": "take"}]
    assert second["prompt_ids"] == [1, 2, 10, 3] and second["completion_ids"] == [20]
    assert (first["outcome"], first["value"], second["value"]) == (1.0, 0.5, 1.0)


def test_the_tokens_style_masks_everything_but_the_step() -> None:
    second = list(sft_rows(view(small(), style="tokens")))[1]
    assert second["input_ids"] == [1, 2, 10, 3, 20] and second["completion_mask"] == [0, 0, 0, 0, 1]


def test_the_text_style_shows_what_the_policy_read_where_a_decoder_is_given() -> None:
    spell = lambda ids: "".join(f"<{i}>" for i in ids)  # noqa: E731
    decoded = list(sft_rows(view(small(), style="text", decode=spell)))[1]
    assert (decoded["prompt"], decoded["completion"]) == ("<1><2><10><3>", "<20>")
    joined = list(sft_rows(view(small(), style="text")))[1]
    assert joined["prompt"] == "find it\n\nhere\n\ngo\n\nthere\n\n" and joined["completion"] == "take"


def test_the_chosen_path_is_taken_only_if_it_was_good_and_all_good_paths_share_steps() -> None:
    assert not list(sft_rows(view(small()), "chosen"))
    assert [r["node"] for r in sft_rows(view(small()), "chosen", 0.0)] == [1, 4]
    assert [r["node"] for r in sft_rows(view(small()), "all", 0.0)] == [1, 3, 2, 4]


def test_invalid_output_on_a_good_path_stays_in_prompts_and_is_no_target() -> None:
    it = view(small(error="no such action"))
    (row,) = sft_rows(it)
    assert row["node"] == 3 and "go" in str(row["prompt"])
    assert it.skipped == {"invalid output on a good path is not imitated": 1}


def test_dpo_pairs_the_best_with_the_worst_sibling_by_the_estimators_values() -> None:
    top, below = dpo_rows(view(small()))
    assert (top["chosen_node"], top["rejected_node"], top["gap"]) == (1, 2, 0.5)
    assert (below["chosen_value"], below["rejected_value"], below["node"]) == (1.0, 0.0, 1)
    assert top["prompt"] == [{"role": "user", "content": "find it\n\nhere"}]
    assert below["chosen"] == [{"role": "assistant", "content": "take"}] and below["rejected_ids"] == [21]
    assert top["on_policy"] and below["chosen_ess"] == 1.0


def test_dpo_leaves_out_pairs_below_the_gap_and_with_too_few_leaves() -> None:
    assert [r["node"] for r in dpo_rows(view(small()), min_gap=0.6)] == [1]
    assert not list(dpo_rows(view(small()), min_ess=1.5))


def twice_said(*values: tuple[str, float]) -> Tree:
    """root → ends of these texts and rewards, each in tokens of its own."""
    root = Outcome(Observation("here", "r"), NodeStatus.OPEN, delta=(1, 2))
    task = Task("s", "t", "find it")
    tree = Tree.start(
        TreeHeader(run="run", task=task, attempt=0, seed=7, policy_version=VERSION, settings={}, root=root)
    )
    ends = [
        draft(i, len(values), (30 + i,), text, seen("end", NodeStatus.TERMINAL, reward))
        for i, (text, reward) in enumerate(values)
    ]
    tree.apply(
        Expansion(seq=0, node=0, closing=False, drawn=len(ends), outcome=None, drafts=tuple(ends), spent=Spent())
    )
    tree.reveal()
    return tree


def test_equal_words_in_other_tokens_are_a_pair_only_where_tokens_are_written() -> None:
    tree = twice_said(("go", 1.0), ("go", 0.0))
    for style in ("conversational", "text"):
        it = view(tree, style=style)
        assert not list(dpo_rows(it)) and it.skipped == {"siblings that say the same": 1}
    assert [(r["chosen_ids"], r["rejected_ids"]) for r in dpo_rows(view(tree, style="tokens"))] == [([30], [31])]
    it = view(tree)
    assert not list(openai_preference(it)) and it.skipped == {"siblings that say the same": 1}


def test_where_best_and_worst_say_the_same_the_widest_pair_that_differs_is_taken() -> None:
    tree = twice_said(("go", 1.0), ("stay", 0.75), ("wait", 0.125), ("go", 0.0))
    it = view(tree)
    (row,) = dpo_rows(it)
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("go", "wait") and row["gap"] == 0.875
    assert not it.skipped
    assert not list(dpo_rows(it, min_gap=0.9)) and it.skipped == {"siblings that say the same": 1}
    assert len(list(dpo_rows(view(tree), pairs="all"))) == 5


@pytest.mark.parametrize("change", [{"version": "v0"}, {"origin": Origin.DEMO}])
def test_a_pair_with_a_side_that_other_weights_wrote_is_marked_or_left_out(change: dict[str, Any]) -> None:
    tree = small(**change)
    versions = ["v1", "v1", change.get("version", "v1"), "v1", "v1"]
    assert [r["on_policy"] for r in dpo_rows(view(tree, versions=versions))] == [False, True]
    assert [r["node"] for r in dpo_rows(view(tree, versions=versions), on_policy=True)] == [1]


@pytest.mark.parametrize("status", [NodeStatus.DRAFT, NodeStatus.FAULT, NodeStatus.UNREACHABLE, NodeStatus.PRUNED])
def test_a_sibling_that_was_not_executed_or_failed_is_in_no_pair_and_on_no_path(status: NodeStatus) -> None:
    tree = small()
    tree.status[2] = status
    assert [r["node"] for r in dpo_rows(view(tree))] == [1]
    assert 2 not in {n for r in prm_rows(view(tree)) for n in r["nodes"]}


def unrated(*nodes: int) -> Tree:
    """The small tree; of these ends nobody knows the reward."""
    tree = small()
    for node in nodes:
        tree._truth[node] = math.nan
    return tree


def test_an_end_of_unknown_reward_has_no_return_and_is_no_path_to_imitate() -> None:
    tree = unrated(4, 2)
    assert [tree.outcome_of(i) for i in (1, 3)] == [0.0, 1.0] and all(math.isnan(tree.outcome_of(i)) for i in (4, 2))
    it = view(tree)
    assert [r["node"] for r in sft_rows(it, "all", -math.inf)] == [1, 3]
    assert it.skipped == {"paths whose reward is not known": 2}
    assert it.best("chosen", -math.inf) == [] and result_of(tree) == (None, None) and any_solved(tree) is True
    assert any_solved(unrated(3)) is None and any_solved(small()) is True
    documents = {name: json.dumps(one, allow_nan=False) for name, one in atif_documents(it, "1")}
    assert sum('"outcome"' in one for one in documents.values()) == 1
    json.dumps([*atif18(it), *verifiers_trace(it), *prm_rows(it)], allow_nan=False)


def test_the_best_path_is_the_best_known_one_wherever_the_unknown_stands() -> None:
    for node in (2, 4):
        assert best_paths([unrated(node)]).tolist() == [0, 1, 0, 1, 0]
    assert not best_paths([unrated(2, 3, 4)]).any()


def test_prm_labels_a_step_by_whether_anything_below_it_succeeded() -> None:
    rows = {tuple(r["nodes"]): r for r in prm_rows(view(small()))}
    assert rows[1, 3]["labels"] == [True, True] and rows[1, 4]["labels"] == [True, False]
    assert rows[2,]["labels"] == [False] and rows[1, 4]["values"] == [0.5, 0.0]
    assert rows[1, 3]["prompt"] == "find it\n\nhere" and rows[1, 3]["completions"] == ["go", "there\ntake"]
    strict = {tuple(r["nodes"]): r for r in prm_rows(view(small()), 0.5)}
    assert strict[1, 3]["labels"] == [False, True]


def test_prefixes_are_what_the_policy_read_with_its_own_tokens_marked() -> None:
    (row,) = prefix_rows(view(small()))
    assert (row["prompt_ids"], row["prefix_ids"], row["prefix_mask"]) == ([1, 2], [10, 3], [1, 0])
    assert row["prefix"] == [{"role": "assistant", "content": "go"}, {"role": "user", "content": "there"}]
    assert [json.loads(a)[0]["name"] for a in row["actions"]] == ["do"]


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_prompt_and_prefix_join_to_the_context_whatever_the_template_keeps(seed: int, window: bool) -> None:
    tree = random_tree(seed, window)
    for row in prefix_rows(view(tree, style="tokens"), "all", 0.0):
        assert tuple(row["prompt_ids"] + row["prefix_ids"]) == tree.context_ids(row["node"])
        assert len(row["prefix_mask"]) == len(row["prefix_ids"])


@pytest.mark.parametrize("seed", range(4))
def test_pairs_of_random_trees_are_siblings_and_every_pair_beats_the_gap(seed: int) -> None:
    tree = random_tree(seed)
    pairs = list(dpo_rows(view(tree), 0.2, "all"))
    assert all(tree.parent[r["chosen_node"]] == tree.parent[r["rejected_node"]] == r["node"] for r in pairs)
    assert all(r["gap"] >= 0.2 for r in pairs)
    extremes = list(dpo_rows(view(tree), 0.2))
    assert len({r["node"] for r in extremes}) == len(extremes) <= len(pairs)


def test_images_keep_a_path_out_of_text_formats_and_are_counted() -> None:
    it = view(small(parts=({"type": "image", "png": b"x"},)))
    assert [r["nodes"] for r in prm_rows(it)] == [[2]]
    assert it.skipped == {"an observation holds images or other parts, which text formats cannot show": 2}
    assert [r["node"] for r in dpo_rows(it)] == [0]


def test_a_tree_with_nodes_that_need_all_children_has_no_pairs_and_says_so() -> None:
    tree = small()
    tree.kind[0] = NodeKind.ALL
    it = view(tree)
    assert not list(dpo_rows(it)) and not list(prm_rows(it)) and len(list(sft_rows(it))) == 2
    assert any("need all" in why for why in it.skipped)


def test_atif_documents_are_numbered_steps_with_calls_tokens_and_the_place_in_the_tree() -> None:
    documents = dict(atif_documents(view(small()), "1.2"))
    assert len(documents) == 3
    one = documents[f"{small().tree_id}-3.json"]
    assert one["schema_version"] == "ATIF-v1.4" and one["agent"]["model_name"] == VERSION
    assert [s["step_id"] for s in one["steps"]] == [1, 2, 3]
    assert [s["source"] for s in one["steps"]] == ["user", "agent", "agent"]
    last = one["steps"][2]
    assert last["metrics"]["prompt_token_ids"] == [1, 2, 10, 3] and last["metrics"]["completion_token_ids"] == [20]
    assert last["metrics"]["logprobs"] == [-0.5]
    (result,) = last["observation"]["results"]
    assert result == {"source_call_id": last["tool_calls"][0]["tool_call_id"], "content": "won"}
    assert one["extra"]["tree_id"] == small().tree_id and (last["extra"]["node"], last["extra"]["weight"]) == (3, 0.25)
    json.dumps(documents, allow_nan=False)


def test_half_surrogates_in_a_world_do_not_break_a_row() -> None:
    tree = small(pad="\udc80")
    for rows in (sft_rows, dpo_rows, prm_rows, prefix_rows):
        json.dumps(list(rows(view(tree))), ensure_ascii=False).encode()


@pytest.mark.parametrize("style", ["conversational", "text", "tokens"])
def test_every_row_has_exactly_the_columns_that_are_declared(style: str) -> None:
    kinds: dict[str, Any] = {"sft": sft_rows, "dpo": dpo_rows, "prm": prm_rows, "prefix": prefix_rows}
    for name, rows in kinds.items():
        (first, *_) = rows(view(small(), style=style))
        assert list(first) == list(columns(name, style))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"style": "chat"}, "conversational, text, tokens"),
        ({"formats": ("sft", "ppo")}, "no format named 'ppo'"),
        ({"formats": ()}, "no format named ''"),
        ({"min_gap": -1}, "negative"),
        ({"min_gap": math.nan}, "min_gap = nan is no number"),
        ({"label_threshold": math.nan}, "label_threshold = nan is no number"),
        ({"file_type": "csv"}, "parquet, jsonl"),
        ({"paths": "worst"}, "best, chosen, all"),
    ],
)
def test_wrong_options_are_named_with_what_is_allowed(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TreewrightError, match=said):
        ExportOptions(**given)
