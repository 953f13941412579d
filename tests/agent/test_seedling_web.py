"""The packaged model for web pages: its files, its card, what it can do, and where the demo uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from treewright.agent.config import load_config
from treewright.agent.policies.policy import SEEDLING, SEEDLING_WEB, seedling_folder
from treewright.agent.policies.template import WINDOWS, window_of
from treewright.agent.runs.demo import parts_of
from treewright.agent.runs.loop import model_folder
from treewright.agent.seedling.build import load_seedling
from treewright.agent.seedling.evaluate import evaluate
from treewright.agent.seedling.pages import PLANS
from treewright.envs.errors import TreewrightError
from treewright.envs.registry import suite


def test_the_files_are_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in SEEDLING_WEB.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(sizes)
    assert sum(sizes.values()) <= 8 * 2**20


def test_the_card_says_what_the_settings_beside_it_say() -> None:
    report = json.loads((SEEDLING_WEB / "seedling.json").read_text())
    card = (SEEDLING_WEB / "README.md").read_text()
    assert f"{report['parameters']:,} parameters" in card
    assert "treewright seedling --web FOLDER" in card
    for name, score in report["held_out"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        assert row.endswith(f"| {score['sampled']:.1%} | {score['greedy']:.1%} |")
        assert f"| {report['demonstrations'][name]:,} | {report['plans'][name]['noise']['rate']:.2f} |" in row


def test_it_is_made_as_the_repository_says() -> None:
    report = json.loads((SEEDLING_WEB / "seedling.json").read_text())
    assert set(report["plans"]) == set(PLANS)
    for name, plan in PLANS.items():
        kept = report["plans"][name]
        assert (kept["tasks"], kept["noise"]["rate"], kept["right"]) == (plan.tasks, plan.noise.rate, plan.right)


async def test_it_knows_market_but_not_reliably() -> None:
    from treewright.envs.web.plain import plain_suite

    torch.set_num_threads(1)
    model, encoder = load_seedling(SEEDLING_WEB)
    report = json.loads((SEEDLING_WEB / "seedling.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]
    plain = plain_suite(suite("market"))
    tasks = plain.tasks("test", 40)
    greedy = await evaluate(model, encoder, plain, tasks, greedy=True, sessions=40)
    sampled = await evaluate(model, encoder, plain, tasks, seed=1, sessions=40)
    wins = [sum(e.reward for e in episodes) / 40 for episodes in (sampled, greedy)]
    assert abs(wins[0] - report["held_out"]["market"]["sampled"]) <= 0.2
    assert abs(wins[1] - report["held_out"]["market"]["greedy"]) <= 0.2


def test_it_is_named_seedling_web_unless_a_folder_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert seedling_folder("") == SEEDLING
    assert seedling_folder("web") == model_folder("seedling:web") == SEEDLING_WEB
    (tmp_path / "web").mkdir()
    assert seedling_folder("web") == SEEDLING_WEB
    (tmp_path / "web" / "config.json").write_text("{}")
    assert seedling_folder("web") == Path("web")


def test_the_demo_learns_web_pages_with_it_and_the_rest_with_the_seedling() -> None:
    config = load_config(None, [])
    found = parts_of(config, ["kg", "market", "miniwob:simple"])
    assert [(part.policy.spec, mine) for part, mine in found] == [
        ("seedling", ["kg"]),
        ("seedling:web", ["market", "miniwob:simple"]),
    ]
    other = config.model_copy(update={"policy": config.policy.model_copy(update={"spec": "hf:mine"})})
    assert parts_of(other, ["kg", "market"]) == [(other, ["kg", "market"])]


def test_a_suite_of_some_pages_has_the_window_of_the_whole() -> None:
    assert window_of(WINDOWS, "miniwob:simple") == window_of(WINDOWS, "miniwob") == 1
    assert window_of(WINDOWS, "kg") is None


def test_some_pages_of_miniwob_are_a_suite_of_their_own() -> None:
    pytest.importorskip("miniwob", reason="pip install --no-deps miniwob")
    two = suite("miniwob:click-test,enter-text")
    tasks = two.tasks("test", 3)
    assert [task.data["page"] for task in tasks] == ["click-test", "enter-text", "click-test"]
    assert {task.suite for task in tasks} == {two.name}
    assert len({task.data["page"] for task in suite("miniwob:simple").tasks("train", 40)}) == 20
    with pytest.raises(TreewrightError, match="did you mean 'click-test'"):
        suite("miniwob:click-tset")
    with pytest.raises(TreewrightError, match="write miniwob:simple"):
        suite("miniwob:,")
