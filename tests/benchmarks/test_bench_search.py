"""The list of sections, the figures they compute from trees, and plans from demonstrations and stores."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from random import Random
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.config import load_config
from treewright.agent.judges.judge import Likelihood
from treewright.agent.judges.plans import PlanLikeness, demonstrated_plans
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.policies.uniform import uniform_calls
from treewright.agent.runs.evaluate import acting_rule
from treewright.agent.runs.loop import rule_of
from treewright.benchmarks import search as bench_search
from treewright.benchmarks.engine import cost_of, speedup
from treewright.benchmarks.rules import Found, _interval, _ratio, dealt, expansions_to, first_found, kept_tokens
from treewright.envs import TreewrightError
from treewright.envs.maze import SUITE
from treewright.envs.tools.office import MODEL, UNSEEN, oracle
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import RULES, rule
from treewright.search.rules.plan_memory import PlanMemory
from treewright.search.types import Budget

if TYPE_CHECKING:
    from treewright.envs.types import Task


def module(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    made = ModuleType(name)
    for key, function in functions.items():
        setattr(made, key, function)
    monkeypatch.setitem(sys.modules, name, made)


def missing(quick: bool) -> None:
    raise ImportError("no module named langgraph", name="langgraph")


def test_sections_are_measured_in_order_and_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    module(
        monkeypatch, "bench_parts", one=lambda quick: {"a": (1.0, "x"), "b": (math.inf, "x")},
        two=lambda quick: {"table/r/s/chosen": (50.0, "%"), "table/r/s/found": (60.0, "%")}, three=missing,
    )  # fmt: skip
    names = ["bench_parts:one", "bench_parts:two", "bench_parts:three"]
    result = bench_search.main(quick=True, sections=names)
    assert result["figures"]["a"] == {"value": 1.0, "unit": "x"} and "b" not in result["figures"]
    assert result["left_out"] == {"bench_parts:three": "needs the package langgraph"}
    assert "| r | 50 / 60 |" in bench_search.markdown(result["figures"])


def test_a_figure_given_twice_or_a_section_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, "bench_twice", one=lambda quick: {"a": (1.0, "x")}, two=lambda quick: {"a": (2.0, "x")})
    with pytest.raises(TreewrightError, match="'a'"):
        bench_search.main(sections=["bench_twice:one", "bench_twice:two"])
    for name in ("treewright.agent.nowhere:figures", "bench_twice:nothing", "bench_twice"):
        with pytest.raises(TreewrightError, match="section"):
            bench_search.section(name)


def test_some_sections_alone_by_a_part_of_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module(monkeypatch, "bench_some", one=lambda quick: {"a": (1.0, "x")}, two=lambda quick: {"b": (2.0, "x")})
    names = ["bench_some:one", "bench_some:two"]
    path = tmp_path / "parts.json"
    for part in ("one", "two"):
        bench_search.main(sections=names, only=[part], json_path=str(path))
    assert set(bench_search.load(path)["figures"]) == {"a", "b"}
    machine = {"cpu": "Other", "cores": 9, "memory_gib": 1.0, "gpus": []}
    other = bench_search.load(path) | {"commit": "another", "hardware": machine}
    path.write_text(json.dumps(other))
    bench_search.main(sections=names, only=["two"], json_path=str(path))
    again = bench_search.load(path)
    assert again["of"] == {"a": "another"} and set(again["figures"]) == {"a", "b"}
    assert again["on"] == {"another": machine} and again["hardware"] != machine
    assert "Of commit another on 9 cores of Other: `a`." in bench_search.report(again)
    path.write_text(json.dumps({k: v for k, v in again.items() if k != "on"}))
    bench_search.main(sections=names, only=["two"], json_path=str(path))
    assert "Of commit another: `a`." in bench_search.report(bench_search.load(path)), "hardware that nobody kept"
    assert list(bench_search.main(sections=names, only=["two"])["figures"]) == ["b"]
    with pytest.raises(TreewrightError, match="three"):
        bench_search.main(sections=names, only=["three"])


def test_every_listed_section_exists() -> None:
    assert all(callable(bench_search.section(name)) for name in bench_search.SECTIONS)


def test_paired_expansions_are_compared_with_an_interval() -> None:
    pairs = [(10, 2), (20, 4), (30, 3)]
    low, high = _interval(pairs)
    assert _ratio(pairs) == 60 / 9 and 5.0 <= low < 60 / 9 < high <= 10.0
    assert math.isnan(_ratio([])) and math.isnan(_interval(pairs[:1])[0])


def test_acting_goes_by_score_where_the_evaluator_knows_more_than_the_policy() -> None:
    assert "pick=mass" in acting_rule(None).name and "pick=mass" in acting_rule(Likelihood()).name
    assert "pick=score" in acting_rule(PlanLikeness(PlanMemory())).name


def found(*expansions: int | None) -> list[Any]:
    return [Found(None, e, False, 0) for e in expansions]  # type: ignore[arg-type]


def test_expansions_to_a_number_of_solved_tasks() -> None:
    assert expansions_to(found(5, None, 2, 9), 2) == 5.0
    assert expansions_to(found(5, None), 2) == math.inf


async def test_what_was_found_and_kept_is_read_off_the_tree() -> None:
    memory = await demonstrated_plans(MODEL.tasks("train", 40), MODEL.open, oracle)
    tree = await search(
        MODEL.tasks("test", 1)[0], Pool(MODEL.open), uniform_calls, evaluator=PlanLikeness(memory),
        rule=rule("beam", width=3, draws=80, root_draws=80), budget=Budget(expansions=20),
        settings=Settings(max_tokens=99),
    )  # fmt: skip
    at = first_found(tree)
    assert at is not None and any(tree.outcome_of(i) == 1.0 and tree.born[i] == at - 1 for i in tree.leaves())
    assert tree.outcome_of(not_none(tree.chosen)) == 1.0
    by_hand = 0
    for depth in range(1, 10):
        held = set()
        for i in range(len(tree)):
            if tree.depth[i] == depth and tree.drawn[i]:
                held |= set(tree.path(i)[1:])
        by_hand += sum(len(tree.ids[i]) + len(tree.delta[i]) for i in held)
    assert kept_tokens(tree) == by_hand > 0


async def test_demonstrations_of_test_tasks_are_refused() -> None:
    with pytest.raises(TreewrightError, match="not a training task"):
        await demonstrated_plans(MODEL.tasks("test", 1), MODEL.open, oracle)


async def test_a_small_tree_costs_something_and_is_stored() -> None:
    cost = await cost_of(60)
    assert 20 < cost.nodes < 120 and cost.cpu > 0 and cost.wall > 0


async def test_sessions_side_by_side_give_the_trees_of_one() -> None:
    def walk(task: Task, turns: Any, tools: Any, rng: Random) -> Any:
        return rng.choice(['move {"to": "east"}', 'move {"to": "south"}', "stop {}"])

    assert await speedup(SUITE, ScriptedPolicy(walk, trainable=False), 4, 12, 1) > 0


def test_plans_are_learned_from_a_store_and_guide_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.agent.cli.main import app

    monkeypatch.chdir(tmp_path)
    line = CliRunner()
    common = ["--suites", "maze", "--policy", "scripted:mazewalk:walker", "--tasks", "3"]
    grown = line.invoke(app, ["collect", "--name", "one", *common, "--set", "search.expansions=40"])
    assert grown.exit_code == 0, grown.output
    learned = line.invoke(app, ["plans", "plans.jsonl", "--name", "one"])
    assert learned.exit_code == 0 and "new plans" in learned.output
    assert len(PlanMemory.load(tmp_path / "plans.jsonl")) > 0
    options = ["--set", "search.rule=astar", "--set", "search.options.memory=plans.jsonl"]
    options += ["--set", "search.options.alpha=0.7"]
    again = line.invoke(app, ["collect", "--name", "two", *common, *options])
    assert again.exit_code == 0, again.output
    acted = line.invoke(app, ["run", "maze/0", "--policy", "scripted:mazewalk:walker", *options])
    assert acted.exit_code == 0, acted.output
    wrong = line.invoke(app, ["collect", "--name", "three", *common, *options, "--set", "search.options.alfa=1"])
    assert wrong.exit_code != 0 and "did you mean 'alpha'" in str(wrong.exception)


def test_what_is_dealt_out_among_processes_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treewright.benchmarks.rules.PROCESSES", 3)
    things: Any = range(10, 17)  # a part of them is what one process is asked for
    assert dealt(things.__getitem__, 7, True) == list(things)
    assert dealt(things.__getitem__, 7, False) == things, "where it is short this process does it"


PAGE = Path(__file__).parents[2] / "docs" / "search.md"


def test_the_page_shows_the_figures_of_its_file() -> None:
    assert bench_search.report(bench_search.load(PAGE.with_suffix(".json"))) in PAGE.read_text()


def test_the_page_says_of_a_model_of_steps_what_its_file_says_and_where_that_was_measured() -> None:
    made, flat = bench_search.load(PAGE.with_name("astar_learned.json")), bench_search.load(PAGE.with_suffix(".json"))
    assert re.fullmatch(r"[0-9a-f]{12}\+?", made["commit"]) and made["versions"]["treewright"] and not made["quick"]
    f = {name: row["value"] for name, row in {**flat["figures"], **made["figures"]}.items()}
    unseen = sum(task.data["kind"] in UNSEEN for task in MODEL.tasks("test", int(f["office_tasks"])))

    def of(name: str) -> int:
        return round(unseen * float(f[name]) / 100)

    said = (
        f"on {made['hardware']['cores']} cores of {made['hardware']['cpu']}, commit {made['commit']}",
        f"at {f['learned_budget']:g} expansions a task",
        f"{f['astar_learned_found']:.1f} % of the {f['office_tasks']:g} tasks found without a memory",
        f"{f['astar_joined_found']:.1f} % with one",
        f"uniform cost finds with {f['uniform_expansions']:g} expansions each with {f['astar_learned_expansions']:g}",
        f"({f['astar_learned_vs_uniform_expansions']:g} times fewer)",
        f"{of('astar_learned_found_unseen')} of {unseen} found without the memory",
        f"{of('astar_found_unseen')} of {unseen} ({f['astar_found_unseen']:g} %) with it",
        f"finds more, {f['best_first_learned_found']:.1f} %",
        f"a right end in {f['best_first_learned_chosen']:.1f} %",
        f"where A\\* does in {f['astar_learned_chosen']:.1f} %",
        f"best first finds {of('best_first_learned_found_unseen')} of {unseen}",
    )
    (text,) = re.findall(r"By a model of steps from.*?\n\n", PAGE.read_text(), re.DOTALL)
    missing = [part for part in said if part not in " ".join(text.split())]
    assert not missing


def test_a_page_without_a_place_for_figures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(TreewrightError, match="measured"):
        bench_search.write_page(PAGE.with_suffix(".json"), tmp_path / "page.md")


def test_the_page_names_every_rule_and_its_settings_are_understood() -> None:
    text = PAGE.read_text()
    assert all(f"`{name}`" in text for name in RULES)
    for line in re.findall(r"^treewright (?:collect|eval|run) .*$", text, re.MULTILINE):
        settings = [s for s in re.findall(r"--set (\S+)", line) if ".memory=" not in s]
        section = load_config(None, settings).search
        assert rule_of(section).name.startswith(section.rule.replace("auto", "best_first"))


def test_the_rule_of_ones_own_on_the_page_works(monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(body for body in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "deepest" in body)
    monkeypatch.setattr("treewright.search.RULES", dict(RULES))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["RULES"]["deepest"]().name == "deepest(draws=2)"


def test_the_command_line_keeps_the_sections_that_a_file_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from treewright.agent.cli.main import app

    module(monkeypatch, "bench_lines", one=lambda quick: {"a": (1.0, "x")}, two=lambda quick: {"b": (2.0, "x")})
    monkeypatch.setattr(bench_search.main, "__defaults__", (False, None, None, ("bench_lines:one", "bench_lines:two")))
    for part in ("one", "two"):
        done = CliRunner().invoke(app, ["bench", "search", "--only", part, "--json", str(tmp_path / "f.json")])
        assert done.exit_code == 0, done.output
    assert set(bench_search.load(tmp_path / "f.json")["figures"]) == {"a", "b"}
