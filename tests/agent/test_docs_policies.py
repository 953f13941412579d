"""The page on policies shows the figures of its JSON and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_shows_every_figure_of_the_json() -> None:
    figures = json.loads((DOCS / "policies.json").read_text())["figures"]
    rows = re.findall(
        r"^\| `(\w+(?:\.\d)?)` \| ([\d.e+-]+) \| (.+) \|$", (DOCS / "policies.md").read_text(), re.MULTILINE
    )
    assert rows == [(name, f"{one['value']:.3g}", one["unit"]) for name, one in figures.items()]
