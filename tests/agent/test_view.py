"""The viewer without a browser: what it reads equals what the store loads, and who may ask the server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import typer
from closeness import assert_near
from not_none import not_none
from speed import patient
from typer.testing import CliRunner
from view_trees import Growth, big, keep, walks, write_store
from walker import Likelihood, Walker

from treewright.agent.cli.view import report_command, view_command
from treewright.agent.view import Filters, Reader, make_app, write_page
from treewright.agent.view.payload import advantage_json, columns_json, decoder, dump, find_decoder, pieces, turns_json
from treewright.agent.view.reading import EFFECTS
from treewright.agent.view.weights import Weights
from treewright.envs.errors import TreewrightError
from treewright.envs.maze import SUITE, Maze
from treewright.envs.types import Effect, Observation
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.store import STATUSES, StoreError, TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus, Outcome
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

from .small import compact

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typer.main import Typer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TreeStore]:
    with TreeStore.open(write_store(tmp_path / "t.sqlite", walks(3)), read_only=True) as opened:
        yield opened


async def searched(path: Path | str, eager: bool) -> Tree:
    async def opened() -> Maze:
        return Maze()

    with TreeStore.open(path) as store:
        return await search(
            SUITE.tasks("train", 3)[2], Pool(opened, 1, deadline=patient(5)), Walker(), rule=best_first(eager=eager),
            settings=Settings(in_flight=2, close=True), budget=Budget(expansions=10), evaluator=Likelihood(),
            store=store,
        )  # fmt: skip


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return np.array_equal(np.asarray(left, float), np.asarray(right, float), equal_nan=True)


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty place for a store in either database."""
    return tmp_path / "t.sqlite" if request.param == "sqlite" else request.getfixturevalue("new_database")()


@pytest.mark.parametrize("eager", [True, False])
async def test_what_is_read_of_a_real_search_equals_the_loaded_tree(where: Path | str, eager: bool) -> None:
    await searched(where, eager)
    with TreeStore.open(where, read_only=True) as store:
        reader = Reader(store)
        (row,) = store.trees()
        tree, found = store.load(row.tree_id), reader.columns(row.tree_id)
        turns = reader.turns(row.tree_id)
        a = found.arrays
        assert (
            list(found.pops) == tree.pops and found.tokens[-1] == tree.spent.policy_tokens + tree.spent.closing_tokens
        )
        assert list(a["parent"]) == tree.parent and list(a["born"]) == tree.born
        assert [STATUSES[s] for s in a["status"]] == tree.status and [EFFECTS[e] for e in a["effect"]] == tree.effect
        assert same(a["reward"], tree.rewards()) and np.allclose(a["score"], tree.score, equal_nan=True)
        assert [bool(f & 1) for f in a["flags"]] == [e is not None for e in tree.error]
        assert [bool(f & 2) for f in a["flags"]] == tree.closing
        assert [t.node for t in turns] == list(range(len(tree)))
        for turn in turns:
            i = turn.node
            assert turn.completion.token_ids == tree.ids[i] and turn.completion.logprobs == tree.logprobs[i]
            assert (turn.action, turn.error, turn.fault) == (tree.action[i], tree.error[i], tree.fault[i])
            assert turn.observation == tree.observation[i] and (turn.keep, turn.delta) == (tree.keep[i], tree.delta[i])
        for node in range(len(tree)):
            assert reader.path(row.tree_id, node) == [turns[i] for i in tree.path(node)]


def test_faults_of_the_policy_and_of_the_world_are_read(tmp_path: Path) -> None:
    grown = Growth()
    grown.apply(0, [grown.draft(outcome=grown.seen(1, fault="the browser died")), grown.draft(outcome=grown.seen(1))])
    grown.apply(2, [grown.draft(outcome=grown.seen(2))], fault="the server stayed away")
    grown.apply(2, [], fault="again", drawn=0)
    write_store(tmp_path / "t.sqlite", [grown])
    with TreeStore.open(tmp_path / "t.sqlite", read_only=True) as store:
        turns, tree = Reader(store).turns(grown.tree.tree_id), store.load(grown.tree.tree_id)
    assert [t.fault for t in turns] == tree.fault == [None, "the browser died", "again", "the server stayed away"]


def test_drafts_of_a_live_world_wait_unexecuted(tmp_path: Path) -> None:
    grown = Growth()
    waits = Outcome(Observation(""), NodeStatus.DRAFT, effect=Effect.IRREVERSIBLE)
    grown.apply(0, [grown.draft(effect=Effect.IRREVERSIBLE), grown.draft()])
    grown.apply(1, [], drawn=0, outcome=waits)
    write_store(tmp_path / "t.sqlite", [grown])
    with TreeStore.open(tmp_path / "t.sqlite", read_only=True) as store:
        reader = Reader(store)
        columns, turns = reader.columns(grown.tree.tree_id), reader.turns(grown.tree.tree_id)
        tree = store.load(grown.tree.tree_id)
    assert [t.observation for t in turns[1:]] == [None, None]
    assert [EFFECTS[e] for e in columns.arrays["effect"]] == tree.effect


def test_a_damaged_expansion_is_named_and_not_shown(tmp_path: Path) -> None:
    grown = Growth().grow(4)
    path = write_store(tmp_path / "t.sqlite", [grown])
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE nodes SET text = 'forged' WHERE id = 2")
    with TreeStore.open(path, read_only=True) as store, pytest.raises(StoreError, match="expansion 0 is damaged"):
        Reader(store).path(grown.tree.tree_id, 2)


def test_unknown_trees_and_nodes_are_named(store: TreeStore) -> None:
    reader = Reader(store)
    with pytest.raises(StoreError, match="is not in this store"):
        reader.columns("0" * 32)
    with pytest.raises(StoreError, match="has no node 9999"):
        reader.path(store.trees()[0].tree_id, 9999)


def test_filters_narrow_the_list_and_its_counts(store: TreeStore) -> None:
    reader = Reader(store)
    everything = reader.listing(Filters())
    assert everything.total == everything.done == 6 and len(everything.rows) == 6
    assert [row.created for row, _ in everything.rows] == sorted((r.created for r, _ in everything.rows), reverse=True)
    assert {row.run for row, _ in reader.listing(Filters(run="second")).rows} == {"second"}
    solved, failed = (reader.listing(Filters(success=value)).total for value in (True, False))
    assert solved + failed == 6 and solved == everything.solved
    assert reader.listing(Filters(text="walk-1 WALKER-2")).total == 1
    assert reader.listing(Filters(text="walk_1")).total == 0, "an underscore is not a wildcard"
    assert reader.listing(Filters(suite="walks", task_id="walk-2", policy_version="walker-1", status="done")).total == 1
    assert [len(reader.listing(Filters(), 4, at).rows) for at in (0, 4, 8)] == [4, 2, 0]
    assert dict(reader.facets()) == {
        "suite": ["walks"], "split": ["train"], "run": ["first", "second"], "policy_version": ["walker-1", "walker-2"],
        "status": ["done"],
    }  # fmt: skip


async def test_a_growing_tree_is_read_while_it_is_written_and_its_rewards_stay_sealed(tmp_path: Path) -> None:
    grown = Growth().grow(6)
    with (
        TreeStore.open(tmp_path / "t.sqlite") as writer,
        TreeStore.open(tmp_path / "t.sqlite", read_only=True) as opened,
    ):
        reader, name = Reader(opened), grown.tree.tree_id
        await writer.create(grown.tree.header)
        assert reader.pulse([name])["pops"] == {name: ["running", 0]}
        for n, (expansion, first) in enumerate(grown.expansions):
            await writer.append(name, expansion, first)
            found = reader.columns(name)
            assert len(found.pops) == n + 1 and len(not_none(found.labels)) == len(found.arrays["node"])
            assert np.isnan(found.arrays["reward"]).all()
        assert reader.pulse([name]) == {"trees": 1, "running": 1, "pops": {name: ["running", len(grown.expansions)]}}
        with pytest.raises(TreewrightError, match="sealed until the search ends"):
            advantage_json(reader, name)
        await writer.finish(grown.tree)
        assert not np.isnan(reader.columns(name).arrays["reward"]).all()
        assert reader.pulse([name])["pops"][name][0] == "done"


def test_advantages_are_split_loo_over_the_weight(store: TreeStore) -> None:
    reader, name = Reader(store), store.trees()[0].tree_id
    tree, sent = store.load(name), advantage_json(reader, name)
    credit = estimate("split_loo", tree_arrays([tree]), allow_biased=True)
    values = np.frombuffer(base64.b64decode(sent["values"]), "<f4")
    assert_near(values * credit.weight, credit.coef, 1e-6)
    assert sent["biased"] == list(tree_arrays([tree]).why_inexact()[0])


def test_large_trees_come_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treewright.agent.view.reading.LABELLED", 10)
    grown = Growth().grow(6)
    with TreeStore.open(write_store(tmp_path / "t.sqlite", [grown]), read_only=True) as store:
        sent = columns_json(Reader(store).columns(grown.tree.tree_id), Weights("", []))
    assert sent["labels"] is None and len(base64.b64decode(sent["columns"]["parent"])) == 4 * len(grown.tree)


# -- tokens as text ---------------------------------------------------------------------------------------------------


def test_bytes_decode_themselves_and_other_ids_stay_numbers(store: TreeStore) -> None:
    reader, name = Reader(store), store.trees()[0].tree_id
    turns = reader.path(name, 5)
    sent = turns_json(turns, find_decoder(turns, None))
    assert "".join(sent[-1]["pieces"]) == sent[-1]["text"] and "crossroads" in "".join(sent[0]["added"])
    assert turns_json(turns, None)[-1]["pieces"] is None


def test_a_tokenizer_folder_decodes_and_wide_characters_stand_with_their_last_token(tmp_path: Path) -> None:
    compact().save_pretrained(tmp_path)
    decode = decoder(tmp_path)
    ids = compact().backend_tokenizer.encode("hello wörld 🌳").ids
    shown = pieces(ids, decode)
    assert "".join(shown) == "hello wörld 🌳" and len(shown) == len(ids) and "" in shown


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TreewrightError, match=r"tokenizer\.json"):
        decoder(tmp_path)


# -- the server -------------------------------------------------------------------------------------------------------


def client(store: TreeStore, host: str = "127.0.0.1:8765") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_app(store, "secret"))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765", headers={"host": host})


async def test_only_loopback_names_with_the_token_get_an_answer(store: TreeStore) -> None:
    async with client(store) as web:
        assert (await web.get("/secret/api/list")).status_code == 200
        assert (await web.get("/secret/api/list", headers={"host": "localhost:8765"})).status_code == 200
        for host in ("evil.example:8765", "127.0.0.1:80", "127.0.0.1", "", "127.0.0.1:8765.evil.example", "[::1]:8765"):
            assert (await web.get("/secret/", headers={"host": host})).status_code == 421, host
        for path in ("/", "/api/list", "/wrong/api/list", "/secretx/api/list"):
            found = await web.get(path)
            assert found.status_code == 404 and "walk" not in found.text
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert (await web.request(method, "/secret/api/list")).status_code == 405


async def test_every_answer_keeps_other_pages_out(store: TreeStore) -> None:
    async with client(store) as web:
        for path in ("/secret/", "/secret/api/list", "/nowhere"):
            headers = (await web.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
            assert headers["cross-origin-resource-policy"] == "same-origin" and headers["cache-control"] == "no-store"
            assert headers["referrer-policy"] == "no-referrer" and "access-control-allow-origin" not in headers
        policy = (await web.get("/secret/")).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy


async def test_bad_questions_get_an_error_for_people(store: TreeStore) -> None:
    async with client(store) as web:
        found = await web.get("/secret/api/tree/nothing")
        assert found.status_code == 400 and "is not in this store" in found.json()["error"]
        assert (await web.get("/secret/api/list?limit=many")).status_code == 400
        assert len((await web.get("/secret/api/list?limit=2&offset=1&run=first")).json()["rows"]) == 2


async def test_the_plots_are_served_and_an_empty_store_says_so(store: TreeStore, tmp_path: Path) -> None:
    async with client(store) as web:
        assert len((await web.get("/secret/api/plots?run=first")).json()["plots"]) == 5
    with TreeStore.open(write_store(tmp_path / "e.sqlite", []), read_only=True) as empty:
        async with client(empty) as web:
            found = (await web.get("/secret/api/plots")).json()
            assert found["plots"] == [] and "no finished tree" in found["note"]
            assert (await web.get("/secret/api/list")).json()["total"] == 0


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_allows_its_own_script_and_style_by_hash_and_no_network(store: TreeStore, tmp_path: Path) -> None:
    html = write_page(tmp_path / "t.html", store).read_text("utf-8")
    policy = not_none(re.search(r'Content-Security-Policy" content="([^"]*)"', html))[1].replace("&#39;", "'")
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        body = not_none(re.search(rf"<{tag}>(.*?)</{tag}>", html, re.S))[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert "connect-src" not in policy and "unsafe" not in policy and "http" not in policy
    assert "require-trusted-types-for 'script'" in policy and "src=" not in html.partition("<script type")[0]


def test_data_in_the_file_cannot_end_its_element() -> None:
    nasty = {"a": "</script><!--<script>", "b": "\ud800\u2028é", "c": "&lt;"}
    text = dump(nasty)
    assert json.loads(text) == nasty and text.isascii() and not set("<>&") & set(text)


def test_too_many_nodes_for_a_file_and_nothing_to_show_are_named(
    store: TreeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TreewrightError, match="no tree of"):
        write_page(tmp_path / "t.html", store, Filters(suite="other"))
    monkeypatch.setattr("treewright.agent.view.page.NODES", 50)
    with pytest.raises(TreewrightError, match="too many for one file"):
        write_page(tmp_path / "t.html", store)
    assert not list(tmp_path.glob("*.html"))


async def test_long_texts_are_cut_in_the_file(tmp_path: Path) -> None:
    grown = Growth(text=lambda kind, words: words + "x" * 50_000 if kind == "observation" else words).grow(1)
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        await keep(store, grown)
        html = write_page(tmp_path / "t.html", store).read_text()
    assert "more characters" in html and len(html) < 1_500_000


# -- the command line -------------------------------------------------------------------------------------------------


def app() -> Typer:
    made = typer.Typer()
    made.command("view")(view_command)
    made.command("report")(report_command)
    return made


def test_the_commands_write_the_page_and_the_report(tmp_path: Path) -> None:
    write_store(tmp_path / "trees.sqlite", walks(2))
    run = CliRunner().invoke
    done = run(app(), ["view", str(tmp_path), "--html", str(tmp_path / "v.html"), "--run", "first", "--find", "walk-1"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "v.html").read_text().count('"suite":"walks"') >= 1
    done = run(app(), ["report", str(tmp_path / "trees.sqlite"), "--out", str(tmp_path / "r")])
    assert done.exit_code == 0 and (tmp_path / "r" / "report.html").read_text().count("<svg") == 10
    missing = run(app(), ["view", str(tmp_path / "none.sqlite")])
    assert isinstance(missing.exception, TreewrightError) and "there is no store" in str(missing.exception)


async def test_a_database_is_shown_like_a_file_and_its_password_is_not(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    url = write_store(new_database(), walks(3)).replace("tester@", "tester:s3cret@")
    with TreeStore.open(url, read_only=True) as store:
        assert store.title and "s3cret" not in store.title + store.name
        transport = httpx.ASGITransport(make_app(store, "secret"))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1/secret") as asked:
            page, found = await asked.get("/"), (await asked.get("/api/list", params={"text": "WALK-1"})).json()
            facets, plots = (await asked.get("/api/facets")).json(), (await asked.get("/api/plots")).json()
            tree = found["rows"][0]["id"]
            assert (await asked.get(f"/api/tree/{tree}")).status_code == 200
            assert len((await asked.get(f"/api/path/{tree}/3")).json()) == len(store.path_to(tree, 3))
    assert page.status_code == 200 and "s3cret" not in page.text
    assert found["total"] == 2 and facets["run"] == ["first", "second"] and len(plots["plots"]) == 5
    done = CliRunner().invoke(app(), ["view", url, "--html", str(tmp_path / "v.html")])
    assert done.exit_code == 0, done.output


def test_the_plots_of_a_file_are_of_the_trees_that_match(store: TreeStore, tmp_path: Path) -> None:
    def note(filters: Filters | None) -> Any:
        page = write_page(tmp_path / "t.html", store, filters).read_text("utf-8")
        data = json.loads(not_none(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S))[1])
        return data["plots"]["note"]

    assert note(None).startswith("6 finished trees") and note(Filters(run="first")).startswith("3 finished trees")


def test_a_large_tree_is_read_as_columns_and_one_path(tmp_path: Path) -> None:
    grown = big(3000)
    with TreeStore.open(write_store(tmp_path / "t.sqlite", [grown]), read_only=True) as store:
        reader = Reader(store)
        deepest = max(range(len(grown.tree)), key=lambda i: grown.tree.depth[i])
        assert len(reader.columns(grown.tree.tree_id).arrays["node"]) == len(grown.tree)
        assert [t.node for t in reader.path(grown.tree.tree_id, deepest)] == grown.tree.path(deepest)
