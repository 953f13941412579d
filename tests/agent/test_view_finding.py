"""The list of the viewer: full text in an index beside the store, order by columns, weights by their step."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner
from view_trees import Growth, keep, walks, write_store

from treewright.agent.cli.main import app
from treewright.agent.view import Filters, Reader, make_app, write_page
from treewright.agent.view.finding import Finder, terms_of
from treewright.agent.view.listing import SORTS
from treewright.envs.errors import TreewrightError
from treewright.search.store import TreeStore
from treewright.training.manifest import MANIFEST

GOALS = ["Book a quiet table", "为两个人订一张桌子", "Réserver une chambre à Orléans", "खाना मँगाओ", "Ж"]


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty place for a store in either database."""
    return tmp_path / "t.sqlite" if request.param == "sqlite" else request.getfixturevalue("new_database")()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "find"


def tasks_with(reader: Reader, text: str, **more: Any) -> set[Any]:
    return {row.task_id for row, _ in reader.listing(Filters(text=text, **more)).rows}


def one(
    task: str, said: str = "wait", seen: str = "The kettle sings.", error: str | None = None, **more: Any
) -> Growth:
    """A tree of one step with texts of its own."""
    grown = Growth(task=task, **more)
    grown.text = lambda kind, words: {"text": said, "observation": seen, "argument": f"arg-{task}"}.get(kind, words)
    grown.apply(0, [grown.draft(None, grown.seen(1, True, 1.0, error=error), share=1.0)])
    grown.tree.chosen = 1
    return grown


# -- full text --------------------------------------------------------------------------------------------------------


def test_goals_actions_observations_answers_and_errors_are_found(where: Path | str) -> None:
    grown = [
        one("goal", goal="Repair the parser"), one("said", said='hum {"tune": "Greensleeves"}'),
        one("seen", seen="An owl\nlooks down."), one("wrong", error="no such key: ember"), one("plain"),
    ]  # fmt: skip
    write_store(where, grown)
    with TreeStore.open(where, read_only=True) as store, closing(Reader(store)) as reader:
        for words, task in [
            ("repair", "goal"), ("greenSLEEVES", "said"), ("owl", "seen"), ("ember", "wrong"), ("arg-plain", "plain"),
            ('"owl\nlooks"', "seen"), ("ow owl", "seen"),
        ]:  # fmt: skip
            assert tasks_with(reader, words) == {task}, words
        assert tasks_with(reader, "kettle") == {"goal", "said", "wrong", "plain"}
        assert tasks_with(reader, "kettle repair") == {"goal"}, "every word must stand somewhere in the tree"
        assert tasks_with(reader, '"kettle repair"') == set(), "a phrase must stand as it is"
        assert tasks_with(reader, "kettle first said") == {"said"}, "names count as well"
        assert not tasks_with(reader, "100%") and not tasks_with(reader, "AND OR NEAR( *")
        hit = next(iter(reader.listing(Filters(text="owl")).hits.values()))
        assert (hit.node, hit.kind, hit.before, hit.found, hit.nodes) == (1, "observation", "An ", "owl", 1)


@pytest.mark.parametrize(
    ("word", "at"), [("桌子", 1), ("桌", 1), ("CHAMBRE", 2), ("Re\u0301server", 2), ("मँगाओ", 3), ("ж", 4)]
)
def test_every_script_is_found_also_by_one_or_two_characters(tmp_path: Path, word: str, at: int) -> None:
    write_store(tmp_path / "t.sqlite", [Growth(goal, f"walk-{i}") for i, goal in enumerate(GOALS)], finish=False)
    with TreeStore.open(tmp_path / "t.sqlite", read_only=True) as store, closing(Reader(store)) as reader:
        assert tasks_with(reader, word) == {f"walk-{at}"}


def test_the_index_is_made_once_and_the_store_stays_as_it_is(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_store(tmp_path / "t.sqlite", walks(3))
    before = {file: file.read_bytes() for file in tmp_path.glob("t.sqlite*")}
    os.chmod(path, 0o444)
    with TreeStore.open(path, read_only=True) as store, closing(Reader(store)) as reader:
        found = tasks_with(reader, "orchard")
    (index,) = cache.glob("*.sqlite")
    assert found and stat.S_IMODE(index.stat().st_mode) == 0o600
    assert {file: file.read_bytes() for file in before} == before
    monkeypatch.setattr(Finder, "_tree", None)  # a second index would have to read trees
    with TreeStore.open(path, read_only=True) as store, closing(Reader(store)) as reader:
        assert tasks_with(reader, "orchard") == found


def test_without_a_folder_to_write_the_index_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TREEWRIGHT_CACHE", str(tmp_path / "file"))
    path = write_store(tmp_path / "t.sqlite", [one("a")])
    with TreeStore.open(path, read_only=True) as store, closing(Reader(store)) as reader:
        assert tasks_with(reader, "kettle") == {"a"}


def test_an_index_that_is_damaged_is_named_and_those_of_stores_that_are_gone_go(tmp_path: Path, cache: Path) -> None:
    path = write_store(tmp_path / "t.sqlite", [one("a")])
    with TreeStore.open(path, read_only=True) as store, closing(Reader(store)) as reader:
        tasks_with(reader, "kettle")
        (index,) = cache.glob("*.sqlite")
        with sqlite3.connect(index) as raw:
            raw.execute("DROP TABLE places")
        with pytest.raises(TreewrightError, match="TREEWRIGHT_CACHE"):
            reader.finder.trees_with("kettle")
    path.rename(tmp_path / "moved.sqlite")
    with TreeStore.open(tmp_path / "moved.sqlite", read_only=True) as store, closing(Reader(store)) as reader:
        assert tasks_with(reader, "kettle") == {"a"} and not index.exists()


async def test_what_a_search_adds_is_found_and_what_is_replaced_is_not(where: Path | str, cache: Path) -> None:
    grown = Growth(task="growing").grow(4)
    with (
        TreeStore.open(where) as writer,
        TreeStore.open(where, read_only=True) as store,
        closing(Reader(store)) as reader,
    ):
        await writer.create(grown.tree.header)
        assert tasks_with(reader, '"stand at the crossroads"') == {"growing"} and not tasks_with(
            reader, '"after 1 turns"'
        )
        for n, (expansion, first) in enumerate(grown.expansions):
            await writer.append(grown.tree.tree_id, expansion, first)
            if n == 0:
                assert tasks_with(reader, '"after 1 turns"') == {"growing"}
        await writer.finish(grown.tree)
        assert tasks_with(reader, '"after 8 turns"') == {"growing"}
        await keep(writer, one("later", seen="A heron."))
        assert tasks_with(reader, "heron") == {"later"}
    if not isinstance(where, str):
        where.unlink()  # noqa: ASYNC240
        write_store(where, [one("later", seen="A stork.")])
        with TreeStore.open(where, read_only=True) as store, closing(Reader(store)) as reader:
            assert not tasks_with(reader, "heron") and tasks_with(reader, "stork") == {"later"}


async def test_a_search_answers_before_all_texts_are_read_and_says_how_far_it_is(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treewright.agent.view.server.PATIENCE", -1.0)
    with TreeStore.open(write_store(tmp_path / "t.sqlite", walks(2)), read_only=True) as store:
        transport = httpx.ASGITransport(make_app(store, "s"))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1/s") as asked:
            found = (await asked.get("/api/list", params={"text": "orchard"})).json()
            assert found["indexed"] == 0.0 and found["total"] == 0
            monkeypatch.setattr("treewright.agent.view.server.PATIENCE", 60.0)
            found = (await asked.get("/api/list", params={"text": "orchard"})).json()
            assert found["indexed"] == 1.0 and found["total"] == 4 and "orchard" in found["rows"][0]["hit"]["found"]


def test_half_surrogates_nul_and_quotes_are_looked_for_like_other_texts(tmp_path: Path) -> None:
    odd = one("odd", seen='He said "stop\0it" \ud800 now')
    path = write_store(tmp_path / "t.sqlite", [odd])
    with TreeStore.open(path, read_only=True) as store, closing(Reader(store)) as reader:
        for text in ("stop", '"stop\0it"', "now", '\ud800 "he said"'):
            assert tasks_with(reader, text) == {"odd"}, text
    assert terms_of('a "b  c" d"e "" "') == ["a", "b  c", "de"]


def test_a_file_holds_the_trees_whose_texts_match(tmp_path: Path) -> None:
    path = write_store(tmp_path / "t.sqlite", [one("a", seen="A heron."), one("b", seen="A stork.")])
    with TreeStore.open(path, read_only=True) as store:
        html = write_page(tmp_path / "t.html", store, Filters(text="heron")).read_text()
    assert "A heron." in html and "A stork." not in html


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SORTS)
def test_each_column_sorts_both_ways_and_what_is_not_known_comes_last(where: Path | str, name: str) -> None:
    grown = [*walks(3), Growth("Æsop", "walk-9", "third", "walker-3").grow(2)]
    write_store(where, grown)
    write_store(where, [Growth("begun", "walk-8", "first", "walker-1", attempt=3).grow(3)], finish=False)
    values: dict[str, Callable[[Any, str], Any]] = {
        "sign": lambda r, g: r.success,
        "task": lambda r, g: (r.suite, r.task_id, r.attempt),
        "goal": lambda r, g: g.casefold(),
        "status": lambda r, g: r.status,
        "outcome": lambda r, g: r.outcome,
        "nodes": lambda r, g: r.nodes,
        "expansions": lambda r, g: r.spent.expansions,
        "exact": lambda r, g: r.exact,
        "tokens": lambda r, g: r.spent.policy_tokens + r.spent.closing_tokens,
        "steps": lambda r, g: r.spent.env_steps + r.spent.closing_steps,
        "version": lambda r, g: r.policy_version,
        "run": lambda r, g: r.run,
        "begun": lambda r, g: r.created,
    }
    of = values[name]
    with TreeStore.open(where, read_only=True) as store:
        reader = Reader(store)
        for sort, back in ((name, False), (f"-{name}", True)):
            rows = [of(*row) for row in reader.listing(Filters(), sort=sort).rows]
            known = [value for value in rows if value is not None]
            assert len(rows) == 8 and rows[: len(known)] == known == sorted(known, reverse=back), sort
            parts = [reader.listing(Filters(), 3, at, sort).rows for at in (0, 3, 6)]
            assert [of(*row) for part in parts for row in part] == rows, "pages go on where the last one ended"


async def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with TreeStore.open(write_store(tmp_path / "t.sqlite", walks(1)), read_only=True) as store:
        transport = httpx.ASGITransport(make_app(store, "s"))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1/s") as asked:
            found = await asked.get("/api/list", params={"sort": "-price"})
            assert found.status_code == 400 and "'price'" in found.json()["error"]


# -- weights ----------------------------------------------------------------------------------------------------------


def weights(n: int) -> str:
    return f"{n:032x}".replace("0", "a")


def checkpoints(folder: Path, versions: list[Any], step: int, aliases: dict[str, Any] | None = None) -> None:
    at = folder / "checkpoints" / f"step-{step:06d}"
    at.mkdir(parents=True)
    told = {"step": step, "version": "x", "files": {}, "versions": versions, "aliases": aliases or {}}
    (at / MANIFEST).write_text(json.dumps(told))


def run_of(home: Path, versions: list[Any], run: str = "first") -> Any:
    (home / run).mkdir(parents=True)
    grown = [Growth(task=f"walk-{i}", run=run, version=version).grow(2) for i, version in enumerate(versions)]
    return write_store(home / run / "trees.sqlite", grown)


def called(path: Path, **filters: Any) -> list[Any]:
    with TreeStore.open(path, read_only=True) as store:
        reader = Reader(store)
        names = reader.weights()
        rows = reader.listing(Filters(**filters), sort="version").rows
        return [names.name(row.policy_version, row.run) for row, _ in rows]


def test_weights_are_called_by_the_steps_of_their_run(tmp_path: Path) -> None:
    known = [weights(n) for n in (9, 5, 7)]
    path = run_of(tmp_path, [*reversed(known), weights(8), "gpt@host", "served"])
    checkpoints(tmp_path / "first", known, 2, {"served": known[1]})
    assert called(path) == ["step 0", "step 1", "step 1", "step 2", weights(8)[:8], "gpt@host"]
    assert called(path, policy_version="step 2") == ["step 2"] == called(path, policy_version=known[2])
    assert called(path, text='"step 1"') == ["step 1", "step 1"]


def test_steps_that_no_checkpoint_knows_any_more_are_counted_by_rounds(tmp_path: Path) -> None:
    known = [weights(n) for n in (4, 3, 2)]
    path = run_of(tmp_path, known)
    checkpoints(tmp_path / "first", known, 8)  # four steps in each of two rounds
    damaged = tmp_path / "first" / "checkpoints" / "step-000004"
    damaged.mkdir()
    (damaged / MANIFEST).write_text("{half")
    assert called(path) == ["round 0", "round 1", "step 8"]


def test_runs_in_one_store_keep_their_own_steps(tmp_path: Path) -> None:
    shared, first, second = weights(1), weights(2), weights(3)
    grown = [Growth(task=version[-1], run=run, version=version).grow(1) for run, version in
             (("first", shared), ("first", first), ("second", shared), ("second", second))]  # fmt: skip
    path = write_store(tmp_path / "runs" / "all" / "trees.sqlite", grown)
    checkpoints(tmp_path / "runs" / "first", [shared, first], 1)
    checkpoints(tmp_path / "runs" / "second", [shared, second], 1)
    with TreeStore.open(path, read_only=True) as store:
        names = Reader(store).weights()
    assert names.name(first, "first") == "step 1" == names.name(second, "second")
    assert names.name(first) == "step 1 of first" and names.name(shared) == "step 0 of first = step 0 of second"


def test_a_run_whose_name_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    checkpoints(tmp_path / "secret", [weights(1)], 0)
    path = write_store(
        tmp_path / "home" / "trees.sqlite", [Growth(run="../secret", version=weights(1)).grow(1), Growth()]
    )
    assert called(path, run="../secret") == [weights(1)[:8]]


def test_the_commands_take_words_of_texts_and_steps(tmp_path: Path) -> None:
    known = [weights(n) for n in (9, 5)]
    (tmp_path / "first").mkdir()
    grown = [one(f"t{i}", seen=seen, version=version) for i, (seen, version) in
             enumerate([("A heron.", known[0]), ("A heron.", known[1]), ("A stork.", known[1])])]  # fmt: skip
    path = str(write_store(tmp_path / "first" / "trees.sqlite", grown))
    checkpoints(tmp_path / "first", known, 1)
    page, narrow = tmp_path / "v.html", ["--find", "heron", "--policy-version", "step 1"]
    done = CliRunner().invoke(app, ["view", path, "--html", str(page), *narrow])
    assert done.exit_code == 0, done.output
    assert '"task_id":"t1"' in page.read_text() and '"task_id":"t0"' not in page.read_text()
    assert "A stork." not in page.read_text()
    done = CliRunner().invoke(app, ["report", path, "--out", str(tmp_path / "r"), *narrow])
    report = (tmp_path / "r" / "report.html").read_text()
    assert done.exit_code == 0 and "1 finished trees" in report and "step 1" in report and known[1] not in report
