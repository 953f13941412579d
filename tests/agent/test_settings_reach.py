"""No key is without effect: each setting, through `run` and `eval` as a user calls them, shows in the tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.runs.evaluate import Evaluation
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

JUDGED = ("search.evaluator=reach_world:Judge",)
FAILS, SLOW = 1, 3


@pytest.fixture
def grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command with settings and gives the trees that it grew."""
    import treewright.agent.runs.evaluate as runs

    monkeypatch.chdir(tmp_path)
    trees, whole = [], runs.evaluate

    async def watched(*args: Any, **options: Any) -> tuple[dict[str, Evaluation], list[Tree]]:
        results, found = await whole(*args, **options)
        trees.extend(found)
        return results, found

    monkeypatch.setattr(runs, "evaluate", watched)

    def grow(command: Any, *settings: Any, task: int = 0) -> Tree:
        import reach_world

        trees.clear()
        reach_world.Steps.failed.clear()
        reach_world.SEEN.update(open=0, most_open=0, drawing=set(), most_trees=0, goals=set())
        words = [w for s in settings for w in ("--set", s)]
        line = {
            "run": ["run", f"reach_world:SUITE/{task}"],
            "eval": ["eval", "--suites", "reach_world:SUITE", "--tasks", str(task + 1), "--expansions", "12"],
        }[command]
        told = [w for w in line if not (w in ("--expansions", "12") and any("expansions=" in s for s in settings))]
        result = CliRunner().invoke(app, [*told, "--policy", "reach_world:Walker", *words])
        if result.exception is not None:
            raise result.exception
        return trees[-1]

    return grow


def budget(key: str, limit: float, spent: str) -> tuple[str, tuple[Any, ...], int, Callable[[Any, Any], Any]]:
    return (f"search.{key}={limit}", (), 0,
            lambda tree, _: tree.stopped_by == key and tree.header.settings["budget"][key] == limit and
            0 < getattr(tree.spent, spent) <= limit)  # fmt: skip


def header(
    key: str, value: int, setting: Any = None, given: Any = None
) -> tuple[str, tuple[Any, ...], int, Callable[[Any, Any], Any]]:
    return (f"search.{setting or key}={given or value}", (), 0,
            lambda tree, before: tree.header.settings.get(key) == value != before.header.settings.get(key))  # fmt: skip


def statuses(tree: Tree) -> set[Any]:
    return set(tree.status)


def invalid(tree: Tree) -> list[Any]:
    return [e for e in tree.error if e]


CASES = {
    "policy_tokens": budget("policy_tokens", 500, "policy_tokens"),
    "env_steps": budget("env_steps", 5, "env_steps"),
    "money": budget("money", 4.0, "money"),
    "judge_tokens": ("search.judge_tokens=45", JUDGED, 0, lambda t, _: t.stopped_by == "judge_tokens"),
    "seconds": ("search.seconds=1e-9", (), 0,
                lambda t, b: t.stopped_by == "seconds" != b.stopped_by and len(t) < len(b)),
    "answers": ("search.answers=1", (), 0, lambda t, b: t.stopped_by == "answers" and len(t) < len(b)),
    "stop": ("search.stop=first", (), 0, lambda t, b: t.stopped_by == "first" and len(t) < len(b)),
    "in_flight": ("search.in_flight=3", (), 0,
                  lambda t, b: t.header.settings["width"] == 3 != b.header.settings["width"]),
    "close": ("search.close=true", (), 0, lambda t, b: NodeStatus.OPEN in statuses(b) and t.spent.closing_steps > 0),
    "retries": ("search.retries=0", (), FAILS,
                lambda t, b: NodeStatus.FAULT in statuses(t) and NodeStatus.FAULT not in statuses(b)),
    "repairs": header("repairs", 0),
    "share_results": ("search.share_results=true", ('policy.options={"same": true}',), 0,
                      lambda t, b: t.spent.env_steps < b.spent.env_steps),
    "merge": ("search.merge=false", ('policy.options={"words": false}',), 0, lambda t, b: len(t) > len(b)),
    "evidence": ("search.evidence=all", (), 0, lambda t, b: len(invalid(t)) == len(t) - 1 and not invalid(b)),
    "peers": header("peers", 2),
    "draws": ("search.draws=3", (), 0, lambda t, b: max(t.drawn[1:]) == 3 > max(b.drawn[1:])),
    "root_draws": ("search.root_draws=2", (), 0, lambda t, b: t.drawn[0] == 2 < b.drawn[0]),
    "max_tokens": ("search.max_tokens=5", (), 0, lambda t, _: max(map(len, t.ids)) == 5),
    "expansions": ("search.expansions=2", (), 0, lambda t, b: t.spent.expansions == 2 < b.spent.expansions),
    "rule": ("search.rule=breadth_first", (), 0, lambda t, _: t.header.settings["rule"].startswith("breadth_first")),
    "options": ("search.options.alpha=0.25", ("search.rule=astar",), 0,
                lambda t, b: "0.25" in t.header.settings["rule"] != b.header.settings["rule"]),
    "evaluator": (*JUDGED, (), 0, lambda t, _: t.score[1] == 0.5 and t.spent.judge_tokens > 0),
    "evaluator_options": ("search.evaluator_options.worth=0.125", JUDGED, 0, lambda t, _: t.score[1] == 0.125),
}  # fmt: skip
"""Key of [search] → (the setting, settings beside it, which task, what must hold of the tree with it and without)."""


@pytest.mark.parametrize("command", ["run", "eval"])
@pytest.mark.parametrize("key", CASES)
def test_a_setting_of_the_search_shows_in_the_tree(grown: Callable[..., Any], command: str, key: str) -> None:
    setting, beside, task, holds = CASES[key]
    if key == "expansions" and command == "eval":
        setting = "eval.expansions=2"  # eval has its own, so that 0 is the policy alone
    before = grown(command, *beside, task=task)
    assert holds(grown(command, setting, *beside, task=task), before)


def test_evidence_that_is_quoted_passes(grown: Callable[..., Any]) -> None:
    assert not invalid(grown("run", "search.evidence=all", "policy.options.quotes=true"))


def test_trees_sessions_and_deadline_bound_what_runs_at_once(grown: Callable[..., Any]) -> None:
    import reach_world

    grown("eval", "search.trees=1", "worlds.deadline=20", task=2)
    assert reach_world.SEEN["most_trees"] == 1
    slow = grown("eval", "search.trees=4", "worlds.sessions=2", "worlds.deadline=20", task=2)
    assert reach_world.SEEN["most_trees"] > 1 and reach_world.SEEN["most_open"] == 2 and slow is not None
    with pytest.raises(Exception, match=r"0\.2"):
        grown("run", "worlds.deadline=0.2", "search.retries=0", task=SLOW)


@pytest.mark.parametrize("command", ["run", "eval"])
def test_seed_contexts_and_distinct_draws_reach_the_tree(grown: Callable[..., Any], command: str) -> None:
    import reach_world

    before = grown(command)
    assert grown(command, "seed=1").text != before.text
    grown(command, 'policy.contexts=["plain", "history:1"]')
    assert len(reach_world.SEEN["goals"]) > 1
    apart = grown(command, "policy.distinct=true", 'policy.options={"words": false}', "search.merge=false",
                  "search.root_draws=2")  # fmt: skip
    assert len({apart.text[i] for i in apart.children[0]}) == 2
