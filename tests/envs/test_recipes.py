"""Files of recipes: read, as a world to act in, as plans that are ranked, kept and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.view.reading import Reader
from treewright.envs import Action, InvalidAction, TreewrightError
from treewright.envs.check import check_env
from treewright.envs.recipes import least_costs, read_recipes
from treewright.envs.registry import suite
from treewright.search.store import TreeStore
from treewright.search.types import NodeKind

ROWS = [
    {"goal": "soup", "needs": ["mix", "water"], "cost": 1, "name": "cook"},
    {"goal": "soup", "needs": [], "cost": 9, "name": "buy"},
    {"goal": "mix", "needs": ["salt"], "cost": 1},
    {"goal": "salt", "needs": ["mix"], "cost": 0},
    {"goal": "salt", "needs": [], "cost": 2, "name": "sea"},
    {"goal": "water", "needs": [], "cost": 0},
    {"target": "soup"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipes.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def take(goal: str, way: int) -> Action:
    return Action.of("take", goal=goal, way=way)


async def test_a_plan_is_made_way_by_way_and_paid_by_the_least_cost(file: Path) -> None:
    found = suite(f"recipes:{file}")
    env = await found.open()
    seen = await env.reset(found.tasks("train", 1)[0], 0)
    assert "0: cook mix + water, cost 1" in seen.text
    await env.step(take("soup", 0), 0)
    await env.step(take("mix", 0), 0)
    with pytest.raises(InvalidAction, match="itself"):
        await env.step(take("salt", 0), 0)
    with pytest.raises(InvalidAction, match="not open"):
        await env.step(take("soup", 1), 0)
    await env.step(take("salt", 1), 0)
    done = await env.step(take("water", 0), 0)
    assert done.terminated and done.reward == 1.0
    await env.reset(found.tasks("train", 1)[0], 0)
    assert (await env.step(take("soup", 1), 0)).reward == pytest.approx(4 / 9)


async def test_the_world_of_recipes_passes_the_conformance_kit(file: Path) -> None:
    found = suite(f"recipes:{file}")
    (await check_env(found.open, found.tasks("train", 1))).raise_if_failed()


def test_least_costs_by_hand(file: Path) -> None:
    assert least_costs(read_recipes(file).ways) == {"soup": 4.0, "mix": 3.0, "salt": 2.0, "water": 0.0}


@pytest.mark.parametrize(
    "line", ["{", '{"needs": []}', '{"goal": "a", "cost": -1}', '{"goal": "a", "needs": "b"}', "[1]"]
)
def test_a_line_that_is_no_recipe_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"goal": "x"}\n' + line)
    with pytest.raises(TreewrightError, match="line 2"):
        read_recipes(tmp_path / "bad.jsonl")


def test_routes_are_ranked_kept_and_drawn(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["routes", str(file), "--name", "plans"])
    assert done.exit_code == 0, done.output
    assert "1. cost 4, the least" in done.output and "2. cost 9" in done.output and "treewright view" in done.output
    with TreeStore.open("runs/plans/trees.sqlite", read_only=True) as store:
        (row,) = store.trees()
        tree = store.load(row.tree_id)
        columns = Reader(store).columns(row.tree_id)
    needed = [i for i in range(len(tree)) if tree.kind[i] is NodeKind.ALL]
    assert needed == [i for i in range(len(tree)) if columns.arrays["flags"][i] & 4] and len(needed) == 3
    chosen = not_none(tree.chosen)
    assert tree.text[chosen] == "cook mix + water (1)" and tree.score[chosen] == 1.0
    assert tree.outcome_of(not_none(tree.chosen)) == 1.0 and row.success
    wrong = CliRunner().invoke(app, ["routes", str(file), "--target", "bread"])
    assert wrong.exit_code != 0 and "bread" in str(wrong.exception)


def test_the_same_file_is_a_world_to_act_in(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["run", f"recipes:{file}/0", "--policy", "scripted:treewright.agent.policies.uniform:uniform_calls"]
    done = CliRunner().invoke(app, [*line, "--set", "search.draws=8", "--expansions", "4"])
    assert done.exit_code == 0, done.output
