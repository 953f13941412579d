"""The page: one template with its own script and style inside, allowed by their hashes and nothing else.

The same page serves a store over the local server and, with its data inside, as one file. Whatever comes from worlds
or models reaches the document as text only; the policy below would stop it from running even if it did not.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from treewright.agent.view.curves import curves_json
from treewright.agent.view.payload import (
    Decode,
    advantage_json,
    columns_json,
    dump,
    facets_json,
    find_decoder,
    list_json,
    turns_json,
)
from treewright.agent.view.plots import plots_json
from treewright.agent.view.reading import Filters, Reader
from treewright.agent.view.report import clean, figure
from treewright.envs.errors import TreewrightError
from treewright.envs.whole import write_whole
from treewright.search.store import TreeStore

__all__ = ["policy_of", "render_page", "render_report", "write_page"]

SCRIPTS = (
    "base.js", "source.js", "model.js", "draw.js", "map.js", "pane.js", "text.js", "details.js", "list.js",
    "compare.js", "keys.js", "app.js",
)  # fmt: skip
TEXT = 20_000  # characters of one text in a file
NODES = 100_000  # nodes of all trees together in a file


@cache
def _static() -> Environment:
    loader = PackageLoader("treewright.agent.view", "static")
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    env.filters["figure"] = lambda value: clean(figure(value))
    return env


@cache
def _script() -> str:
    parts = "".join(_source(name) for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


@cache
def _source(name: str) -> str:
    return (Path(__file__).parent / "static" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def policy_of(served: bool) -> str:
    """The content security policy: our script, our style, pictures from data, and the own server where there is one."""
    rules = [
        "default-src 'none'",
        f"script-src 'sha256-{_hash(_script())}'",
        f"style-src 'sha256-{_hash(_source('viewer.css'))}'",
        "img-src data:",
        *(["connect-src 'self'"] if served else []),
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return "; ".join(rules)


def render_page(title: str, data: Any = None) -> str:
    """The page; with `data` it needs no server."""
    return (
        _static()
        .get_template("viewer.html.jinja")
        .render(
            title=clean(title),
            policy=policy_of(data is None),
            css=Markup(_source("viewer.css")),  # our own files, and JSON that `dump` made safe for its place
            script=Markup(_script()),
            data=Markup(dump(data)),
        )
    )


def render_report(
    title: str,
    note: str,
    table: tuple[Sequence[str], Sequence[Sequence[object]]],
    figures: Sequence[tuple[str, str, str]],
    training: tuple[Sequence[str], Sequence[Sequence[object]]] = ((), ()),
) -> str:
    """A page without script: tables of trees and of updates, and (caption, light SVG, dark SVG) of each chart as
    `draw_svg` made them."""
    css = _source("viewer.css")
    return (
        _static()
        .get_template("report.html.jinja")
        .render(
            title=clean(title),
            note=note,
            policy=f"default-src 'none'; style-src 'sha256-{_hash(css)}'; base-uri 'none'; form-action 'none'",
            css=Markup(css),
            header=table[0],
            rows=table[1],
            update_header=training[0],
            updates=training[1],
            figures=[(caption, Markup(light), Markup(dark)) for caption, light, dark in figures],
        )
    )


def write_page(
    path: str | Path, store: TreeStore, filters: Filters | None = None, most: int = 50, decode: Decode | None = None
) -> Path:
    """Writes one HTML file with the newest trees that match, at most `most`, and returns its path.

    Long texts are cut. The file is replaced as a whole or not at all. Raises TreewrightError if nothing matches or
    if the trees have more nodes together than a page can hold, and OSError where it cannot be written.
    """
    with closing(Reader(store)) as reader:
        data = _data(reader, filters, most, decode)
    return write_whole(path, render_page(f"trees of {store.title}", data))


def _data(reader: Reader, filters: Filters | None, most: int, decode: Decode | None) -> dict[str, Any]:
    store = reader.store
    listing = reader.listing(filters or Filters(), most)
    if not listing.rows:
        raise TreewrightError(f"no tree of {store.name} matches; type: treewright view {store.name}")
    nodes = sum(row.nodes for row, _ in listing.rows)
    if nodes > NODES:
        raise TreewrightError(f"{nodes} nodes are too many for one file ({NODES}); narrow it with --most or filters")
    weights = reader.weights()
    return {
        "list": list_json(listing, weights),
        "facets": facets_json(reader.facets(), weights),
        "trees": {row.tree_id: _whole(reader, row.tree_id, decode) for row, _ in listing.rows},
        "plots": plots_json(store, filters),
        "curves": curves_json(store),
        "store": store.title,
    }


def _whole(reader: Reader, tree_id: str, decode: Decode | None) -> dict[str, Any]:
    turns = reader.turns(tree_id)
    own = find_decoder(turns, decode)
    found = {"tree": columns_json(reader.columns(tree_id), reader.weights()), "turns": turns_json(turns, own, TEXT)}
    try:
        found["advantage"] = advantage_json(reader, tree_id)
    except TreewrightError as error:
        found["advantage"] = {"error": str(error)}
    return found
