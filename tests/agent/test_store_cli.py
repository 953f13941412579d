"""What the commands about stores say and how they end."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from treewright.agent.cli.bench import bench
from treewright.agent.cli.compare import compare_command
from treewright.agent.cli.store import find_store, store_app
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Observation, Task
from treewright.search.store import StoreError, TreeStore
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent


async def fill(path: str, run: str, rewards: list[Any]) -> None:
    with TreeStore.open(path) as store:
        for i, reward in enumerate(rewards):
            root = Outcome(Observation("root"), NodeStatus.OPEN)
            tree = Tree.start(
                TreeHeader(
                    run=run,
                    task=Task("kg", f"t{i}", "g"),
                    attempt=0,
                    seed=1,
                    policy_version="v1",
                    settings={},
                    root=root,
                )
            )
            seen = Outcome(Observation("end", "f"), NodeStatus.TERMINAL, reward=reward)
            done = Completion("go", (1, 2), (-1.0, -1.0), policy_version="v1")
            draft = Draft(
                after=0, slot=0, mult=1, share=1.0, seed=1, completion=done, action=Action.of("go"), outcome=seen
            )
            expansion = Expansion(
                seq=0,
                node=0,
                closing=False,
                drawn=1,
                outcome=None,
                drafts=(draft,),
                spent=Spent(expansions=1, policy_tokens=2, judge_tokens=0, env_steps=1),
            )
            await store.create(tree.header)
            await store.append(tree.tree_id, expansion, 1)
            tree.apply(expansion)
            tree.chosen = 1
            await store.finish(tree)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    asyncio.run(fill("runs/one/trees.sqlite", "one", [0.0, 0.0, 1.0, 0.0]))
    asyncio.run(fill("runs/two/trees.sqlite", "two", [1.0, 1.0, 1.0, 0.0]))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def say(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(store_app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def test_a_whole_store_is_checked_counted_merged_emptied_and_compacted(home: Path) -> None:
    assert say("check", "one") == (0, "4 trees, everything is whole")
    code, said = say("stats", "one")
    assert code == 0 and "one │ kg │ done │ 4 │ 1" in said and "8 tokens" in said and "nodes 8" in said
    assert say("merge", "all.db", "one", "two") == (0, "copied 8")
    assert say("delete", "all.db", "-w", "run=one") == (0, "4 trees would be deleted; add --yes")
    assert say("delete", "all.db", "-w", "run=one", "--yes")[1].startswith("4 trees deleted")
    code, said = say("compact", "all.db")
    assert code == 0 and "contents freed" in said
    assert say("check", "all.db") == (0, "4 trees, everything is whole")


def test_trees_are_merged_into_the_store_of_a_run_or_a_folder(home: Path) -> None:
    assert say("merge", "one", "two") == (0, "copied 4")
    assert say("merge", "runs/two", "one") == (0, "copied 4 present 4")
    (home / "runs/three").mkdir()
    (home / "runs/three/run.toml").write_text('store = "elsewhere.db"\n')
    assert say("merge", "three", "one") == (0, "copied 8")
    assert say("check", "elsewhere.db") == say("check", "one") == (0, "8 trees, everything is whole")
    assert sorted(p.name for p in home.iterdir() if not p.name.startswith("elsewhere")) == ["runs"]
    assert say("merge", "new/all.db", "one") == (0, "copied 8")


@pytest.mark.parametrize("name", ["three", "runs/three", "runs", "."])
@pytest.mark.parametrize("command", ["merge", "repair"])
def test_a_folder_without_a_store_takes_no_trees(command: str, name: str, home: Path) -> None:
    (home / "runs/three").mkdir()
    with pytest.raises(TreewrightError, match=r"^\S+ is a folder; name a file in it, such as \S+$"):
        say(command, *([name, "one"] if command == "merge" else ["one", name]))
    assert [p.name for p in home.iterdir()] == ["runs"] and not list(home.glob("runs/three/*"))


@pytest.mark.parametrize("name", ["two", "runs/two"])
def test_what_is_whole_is_not_saved_in_a_run(name: str, home: Path) -> None:
    with pytest.raises(
        TreewrightError, match=r"^runs/two is a folder; name a file in it, such as runs/two/new.sqlite$"
    ):
        say("repair", "one", name)
    with pytest.raises(TreewrightError, match=r"has trees already; repair into a new file$"):
        say("repair", "one", "runs/two/trees.sqlite")
    assert [p.name for p in home.iterdir()] == ["runs"] and say("check", "two")[0] == 0


def test_a_store_cannot_be_a_folder_or_lie_in_a_file(home: Path) -> None:
    (home / "file").touch()
    with pytest.raises(StoreError, match=r"^runs is a folder; name a file in it"):
        TreeStore.open("runs")
    with pytest.raises(
        TreewrightError,
        match=r"^cannot open file/all\.db for writing: file cannot be a folder; name another place$",
    ):
        say("merge", "file/all.db", "one")


def test_damage_is_named_and_what_is_whole_is_saved(home: Path) -> None:
    with sqlite3.connect(home / "runs/one/trees.sqlite") as raw:
        raw.execute("UPDATE nodes SET text = 'x' WHERE tree = 2 AND id = 1")
    code, said = say("check", "one")
    assert code == 1 and "expansion 0 is damaged" in said and "store repair one NEW_FILE" in said
    code, said = say("repair", "one", "new.db")
    assert code == 1 and "cut, 0 expansions" in said and said.endswith("copied 3 cut 1")
    assert say("check", "new.db")[0] == 0


@pytest.mark.parametrize(
    "text",
    ["created<yesterday", "ended<2020-31-01", "nodes<3k", "outcome<low", "outcome!=abc", "success=maybe", "seed>x"],
)
def test_a_filter_whose_value_does_not_fit_deletes_nothing(text: str, home: Path) -> None:
    name = text.partition("<")[0].partition(">")[0].partition("=")[0].rstrip("!")
    with pytest.raises(TreewrightError, match=f"^{name} takes .*, not '"):
        say("delete", "one", "-w", text, "--yes")
    assert say("check", "one") == (0, "4 trees, everything is whole")


def test_filters_by_date_success_and_text_delete_what_they_say(home: Path) -> None:
    assert say("delete", "one", "-w", "created<2020-01-01", "--yes")[1].startswith("0 trees deleted")
    assert say("delete", "one", "-w", "task_id=t0", "-w", "created>2020-01-01")[1].startswith("1 trees would")
    assert say("delete", "one", "-w", "task_id!=t0", "-w", "task_id!=t1")[1].startswith("2 trees would")
    assert say("delete", "one", "-w", "success=YES", "--yes")[1].startswith("1 trees deleted")
    assert say("delete", "one", "-w", "ended>=2020-01-01T00:00Z", "--yes")[1].startswith("3 trees deleted")


def test_two_runs_are_compared(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_command(["one", "two"])
    said = " ".join(capsys.readouterr().out.split())
    assert "25.0 %" in said and "75.0 %" in said and "+50.0" in said and "8 / 8" in said
    say("merge", "all.db", "one", "two")
    compare_command(["all.db#one", "all.db#two"])
    assert "+50.0" in capsys.readouterr().out
    with pytest.raises(TreewrightError, match="has the runs one, two"):
        compare_command(["all.db#three", "one"])


def test_a_store_that_is_not_there_is_named_with_the_places_looked_at(home: Path) -> None:
    with pytest.raises(TreewrightError, match=r"neither a file of this name nor runs/none/trees\.sqlite"):
        say("check", "none")


def test_the_benchmark_writes_its_figures_with_the_hardware(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.benchmarks import store as bench_store

    monkeypatch.setattr(bench_store, "measure", lambda *given, more: {"store_rows_per_s": (5.0, "rows/s")})
    bench("store", quick=True, json=home / "out" / "store.json")
    body = json.loads((home / "out" / "store.json").read_text())
    assert body["figures"] == {"store_rows_per_s": {"value": 5.0, "unit": "rows/s"}} and body["hardware"]["cores"]
    assert body["quick"] is True


def test_a_folder_and_the_name_of_a_run_find_their_store(home: Path) -> None:
    for name in ("one", "runs/one", "runs/one/trees.sqlite"):
        assert Path(find_store(name)).samefile(home / "runs" / "one" / "trees.sqlite")


def test_every_command_has_help() -> None:
    app: Any = typer.main.get_command(store_app)
    assert sorted(app.commands) == ["check", "compact", "delete", "merge", "repair", "stats"]
    assert all(command.help for command in app.commands.values())
