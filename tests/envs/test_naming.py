"""A module of one's own that has the name of an installed one: the message names the file that was imported."""

from __future__ import annotations

import site
from pathlib import Path

import pytest

from treewright.agent.policies.opening import open_policy
from treewright.envs import TreewrightError
from treewright.envs.naming import load_named


@pytest.mark.parametrize(
    ("path", "spec", "imported"),
    [
        ("site.py", "site:reward", site.__file__),
        ("json/__init__.py", "json:reward", "json/__init__.py"),
        ("calendar.py", "calendar:reward", "calendar.py"),
    ],
)
def test_a_module_that_an_installed_one_hides_is_named_with_the_file_that_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, spec: str, imported: str
) -> None:
    own = tmp_path / path
    own.parent.mkdir(exist_ok=True)
    own.write_text("def reward(task, history):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TreewrightError) as caught:
        load_named(spec, "reward")
    text = str(caught.value)
    assert f"module {spec.partition(':')[0]!r} (" in text and imported in text
    assert f"{path} here was not imported, since an installed module has its name: rename it" in text


def test_a_policy_in_such_a_module_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.py").write_text("def walker(task, turns, tools, rng):\n    return ''\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TreewrightError, match=r"site\.py\) has no 'walker'; site\.py here was not imported"):
        open_policy("scripted:site:walker")


def test_a_misspelt_name_in_a_module_of_ones_own_is_told_with_its_file_and_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_rewards_here.py").write_text("def reward(task, history):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TreewrightError, match=r"shop_rewards_here\.py\) has no 'rewardd'; did you mean 'reward'\?"):
        load_named("shop_rewards_here:rewardd", "reward")
