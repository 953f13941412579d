"""The kernels page says what the code does and what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "kernels.md").read_text()


def test_the_plan_example_gives_the_values_beside_it() -> None:
    block = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(block, names)
    shown = re.findall(r"^(plan\.\S+)\s+# (\[.*\])$", block, re.MULTILINE)
    assert len(shown) == 2
    for expression, value in shown:
        assert str(eval(expression, names)) == value


def test_the_tables_are_the_committed_measurement() -> None:
    table = json.loads((DOCS / "kernels.json").read_text())["table"]
    columns = {
        "cpu": ("family", "rows", "speedup", "ideal", "of ideal"),
        "training step": ("family", "row tokens", "speedup", "ideal", "of ideal"),
        "decoding": ("branches", "shared tokens", "faster", "smaller"),
    }
    for name, wanted in columns.items():
        for row in table[name]:
            cells = [_cell(column, row[column]) for column in wanted]
            assert f"| {' | '.join(cells)} |" in PAGE


def _cell(column: str, value: Any) -> str:
    return f"{value:.1f}" if column == "smaller" else f"{value:.2f}" if isinstance(value, float) else str(value)
