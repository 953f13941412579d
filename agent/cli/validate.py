"""`treewright validate`: whether a file holds trees as docs/tree-format.md says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.cli.options import say
from treewright.envs.errors import TreewrightError

__all__ = ["validate_command"]


def validate_command(
    file: Annotated[Path, typer.Argument(help="JSON lines, one tree a line, as `export --formats raw` writes them.")],
) -> None:
    """Check a tree file: its form, what must hold between its parts, each tree's digest. Ends with 1 if one is wrong.

    treewright validate data/raw/raw/train.jsonl
    """
    from treewright.envs.lines import BadLine, json_lines
    from treewright.training.export.written import problems

    trees = nodes = 0
    wrong: list[str] = []
    try:
        for number, row in json_lines(file):
            trees += 1
            found = [row.why] if isinstance(row, BadLine) else problems(row)
            wrong += [f"{file}, line {number}: {one}" for one in found]
            nodes += 0 if found else len(row["nodes"])
    except OSError as error:
        raise TreewrightError(
            f"cannot read {file}: {error.strerror}; name a file of treewright export data --formats raw"
        ) from error
    if not trees:
        raise TreewrightError(
            f"{file} holds no tree; write one: treewright export FOLDER --formats raw --file-type jsonl"
        )
    for line in wrong:
        say(line)
    if wrong:
        raise typer.Exit(1)
    say(f"{trees} trees with {nodes} nodes, all good")
