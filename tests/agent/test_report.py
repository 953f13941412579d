"""The HTML report and the drawing in text: what they show, and that nothing untrusted gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from rich.cells import cell_len

from treewright.agent.view.report import clean, figure, render_text, write_report
from treewright.envs.types import Action, Effect, Observation, Task
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

PAYLOADS = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</title></style></pre></svg><script>document.title='owned'</script>",
    "<svg onload=document.title='owned'><a href='javascript:document.title=1'>x</a>",
    "]]>--><iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "{{ 7*7 }}{% for x in y %}&lt;b&gt;'\"`<b>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'><base href=//127.0.0.1>",
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred\u202egnp.exe\x9b1m",
]
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "div", "table", "tr", "th", "td"),
    *("a", "span", "section", "dl", "dt", "dd", "p", "ol", "li", "pre", "b", "i", "footer"),
    *("svg", "path", "circle", "rect", "text"),
}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[Any]
        self.attributes: list[Any]
        self.tags: set[Any]
        self.tags, self.attributes, self.texts = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def all(self, name: str) -> list[Any]:
        return [value for _, key, value in self.attributes if key == name]


def tree_of(
    levels: int = 3,
    draws: int = 2,
    said: str = "go",
    shown: str = "seen",
    error: str | None = None,
    fault: str | None = None,
    goal: str = "a goal",
    status: NodeStatus | None = None,
) -> Tree:
    """A full tree: every node of a level is expanded; the leaves are TERMINAL, every second of them solved."""
    root = Outcome(Observation(shown, "f"), NodeStatus.OPEN)
    tree = Tree.start(
        TreeHeader(
            run="run", task=Task("suite", "task/1", goal), attempt=0, seed=0, policy_version="v", settings={}, root=root
        )
    )
    solved = 0
    for depth in range(levels):
        for node in [i for i in range(len(tree)) if tree.depth[i] == depth]:
            drafts = []
            for slot in range(draws):
                last = depth == levels - 1
                solved += last
                state = status or (NodeStatus.TERMINAL if last else NodeStatus.OPEN)
                ids = (*said.encode("utf-8", "replace"), 256)
                done = Completion(said, ids, (-0.7,) * len(ids), finish_reason="stop", policy_version="v")
                outcome = Outcome(
                    Observation(shown, f"{node} {slot}", provenance=shown),
                    state,
                    reward=float(solved % 2),
                    effect=Effect.READ,
                    keep=0,
                    delta=(),
                    error=error,
                    fault=fault,
                )
                action = None if error else Action.of(said, where=said)
                seed = 1000 * node + slot
                drafts.append(
                    Draft(
                        after=0,
                        slot=slot,
                        mult=1,
                        share=1 / draws,
                        seed=seed,
                        completion=done,
                        action=action,
                        error=error,
                        effect=Effect.READ,
                        score=0.5,
                        outcome=outcome,
                    )
                )
            tree.apply(
                Expansion(
                    seq=len(tree.pops),
                    node=node,
                    closing=False,
                    drawn=draws,
                    outcome=None,
                    drafts=tuple(drafts),
                    spent=Spent(expansions=1),
                )
            )
    tree.chosen = len(tree) - 1
    tree.reveal()
    return tree


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_tag_of_untrusted_text_survives(tmp_path: Path, payload: str) -> None:
    trees = [
        tree_of(said=payload, shown=payload, goal=payload),
        tree_of(said=payload, shown=payload, error=payload),
        tree_of(levels=1, fault=payload, status=NodeStatus.FAULT),
    ]
    trees[0].inexact(payload)
    table = ([payload, "n"], [[payload, 1]])
    html = write_report(tmp_path / "r.html", trees, payload, table, decode=lambda ids: payload).read_text()
    page = Page(html)
    assert page.tags <= TAGS, page.tags - TAGS
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]
    assert all(value.startswith("#t") for value in page.all("href"))
    assert "\x1b" not in html and "\u202e" not in html and "\x9b" not in html
    assert page.text.count(clean(payload)) > 10


def test_the_policy_of_the_page_allows_its_own_style_and_nothing_else(tmp_path: Path) -> None:
    html = write_report(tmp_path / "r.html", [tree_of()], "t").read_text()
    style = not_none(re.search(r"<style>(.*?)</style>", html, re.S))[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(value for tag, name, value in Page(html).attributes if tag == "meta" and "default-src" in value)
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "http://" not in html and "https://" not in html and "url(" not in html and "@import" not in html


@pytest.mark.skipif(shutil.which("chromium-headless-shell") is None, reason="no Chromium")
def test_nothing_runs_in_a_browser_and_the_style_is_applied(tmp_path: Path) -> None:
    trees = [tree_of(levels=1, said=p, shown=p, goal=p) for p in PAYLOADS]
    path = write_report(tmp_path / "r.html", trees, "quiet", ([p for p in PAYLOADS], []))
    command = ["chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{path}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert "<title>quiet</title>" in dom and "owned</title>" not in dom
    assert Page(dom).tags <= TAGS | {"tbody"}


def test_a_link_for_every_node_leads_to_one_card(tmp_path: Path) -> None:
    trees = [tree_of(), tree_of(levels=7)]
    assert len(trees[1]) > 200
    page = Page(write_report(tmp_path / "r.html", trees, "t").read_text())
    ids, links = page.all("id"), page.all("href")
    assert len(ids) == len(set(ids))
    assert {f"#{anchor}" for anchor in ids} == set(links)
    assert len(links) == sum(map(len, trees)) + len(trees)


def test_status_is_a_shape_value_a_colour_and_weight_a_width(tmp_path: Path) -> None:
    tree = tree_of(levels=1, draws=4)
    tree.status[1:] = [NodeStatus.DRAFT, NodeStatus.COMMITTED, NodeStatus.FAULT, NodeStatus.TERMINAL]
    tree.score[1:] = [0.0, 1.0, math.nan, 0.52]
    page = Page(write_report(tmp_path / "r.html", [tree], "t").read_text())
    drawn = [value for _, name, value in page.attributes if name == "class" and value.startswith("node ")]
    assert drawn[:5] == ["node dot v0", "node diamond v10", "node cross none", "node circle none", "node square v5"]
    assert page.all("stroke-width") == ["4.0"] * 4
    assert [value for value in page.all("class") if value.startswith("edge")] == ["edge"] * 3 + ["edge chosen"]


def test_advantages_colour_the_nodes_around_zero(tmp_path: Path) -> None:
    tree = tree_of(levels=1)
    tree.chosen = None
    given = {tree.tree_id: [0.0, -2.0, 2.0]}
    html = write_report(tmp_path / "r.html", [tree], "t", advantages=given).read_text()
    drawn = [value for value in Page(html).all("class") if value.startswith("node ")]
    assert sorted(drawn[:3]) == ["node circle a5", "node square a0", "node square a10"]
    assert "advantage <b>-2</b>" in html and "nothing was chosen" in html


def test_the_chosen_path_shows_tokens_with_their_log_probs(tmp_path: Path) -> None:
    html = write_report(tmp_path / "r.html", [tree_of(said="go")], "t").read_text()
    assert 'title="token 103, log-prob -0.700, probability 0.497">g</span>' in html
    decoded = write_report(tmp_path / "r.html", [tree_of()], "t", decode=lambda ids: f"[{ids[0]}]").read_text()
    assert ">[103]</span>" in decoded


def test_long_observations_are_cut_and_say_so(tmp_path: Path) -> None:
    html = write_report(tmp_path / "r.html", [tree_of(levels=1, shown="x" * 50_000)], "t").read_text()
    assert "… 38\u202f000 more characters" in html and "… 48\u202f000 more characters" in html
    assert len(html) < 100_000


def test_an_unfinished_tree_and_an_empty_report_are_written_too(tmp_path: Path) -> None:
    tree = Tree.start(
        TreeHeader(
            run="run",
            task=Task("s", "t", "g"),
            attempt=0,
            seed=0,
            policy_version="v",
            settings={},
            root=Outcome(Observation("x"), NodeStatus.OPEN),
        )
    )
    assert "reset" not in write_report(tmp_path / "a" / "r.html", [tree], "t").read_text()
    assert "<h1>nothing</h1>" in write_report(tmp_path / "r.html", [], "nothing").read_text()
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["r.html"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (math.nan, "–"), (True, "yes"), (3, "3"), (12345, "12\u202f345"), (0.12345, "0.123"),
        (1234.5, "1\u202f234"), ("<b>", "<b>"),
    ],
)  # fmt: skip
def test_report_figures_are_formatted(value: Any, shown: str) -> None:
    assert figure(value) == shown


# -- the terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("width", [20, 80])
def test_text_has_one_line_per_node_no_wider_than_asked_and_no_escapes(payload: str, width: int) -> None:
    tree = tree_of(said=payload, goal=f"{payload}\nsecond line 日本語", error=payload)
    lines = render_text(tree, width).split("\n")
    start = next(i for i, line in enumerate(lines) if "● start" in line)  # above it stand goal and facts, wrapped
    assert 2 <= start <= 8 and len(lines) == start + len(tree) + 1
    assert all(cell_len(line) <= width for line in lines)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", "".join(lines))


def test_text_marks_the_chosen_path_and_shows_weights_scores_and_rewards() -> None:
    lines = render_text(tree_of(levels=2), 60).split("\n")
    assert lines[-8:-1] == [
        "* ● start",
        "  ├─ ● go go  w 0.5  s 0.5  r 0",
        "  │  ├─ ■ go go  w 0.25  s 0.5  r 1",
        "  │  └─ ■ go go  w 0.25  s 0.5  r 0",
        "* └─ ● go go  w 0.5  s 0.5  r 0",
        "     ├─ ■ go go  w 0.25  s 0.5  r 1",
        "*    └─ ■ go go  w 0.25  s 0.5  r 0",
    ]


def test_a_very_deep_tree_is_drawn_without_recursion(tmp_path: Path) -> None:
    tree = tree_of(levels=1100, draws=1)
    lines = render_text(tree, 80).split("\n")
    assert len(lines) - next(i for i, line in enumerate(lines) if "start" in line) == 1101 + 1
    assert write_report(tmp_path / "r.html", [tree], "t").stat().st_size > 100_000


def test_clean_keeps_lines_and_ordinary_text() -> None:
    assert (
        clean("a\r\nb\tc\rd é 日本 \x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x07")
        == "a\nb\tc\nd é 日本 red link"
    )
