"""Documents mapped and reduced along their headings: the tree of headings, what is asked, confidences, the command."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.runs.digest import Section, digest, parts_of, sections, titles
from treewright.envs import TreewrightError

TEXT = """Preface.

# Travel
## Trains
Ada approves trains.
## Planes
Bob approves planes.
```
# no heading
```
# Food
Nobody cooks.
"""


def shape(section: Section) -> tuple[Any, list[Any]]:
    return (section.title, [shape(s) for s in section.below])


def test_headings_of_three_kinds_are_a_tree() -> None:
    tree = sections(TEXT)
    assert shape(tree) == ("", [("Travel", [("Trains", []), ("Planes", [])]), ("Food", [])])
    assert tree.text.strip() == "Preface." and "# no heading" in tree.below[0].below[1].text
    rest = "Title\n=====\n\nOne\n---\n\ntext\n\nTwo\n---\n\nOther\n=====\n"
    assert shape(sections(rest)) == ("", [("Title", [("One", []), ("Two", [])]), ("Other", [])])
    numbered = "1 Scope\n\ntext\n\n1.1 Terms\n\nmore\n\n2 Rules\n\n1 of 3 is no heading\nhere"
    assert titles(sections(numbered)) == ["1 Scope", "1.1 Terms", "2 Rules"]
    assert titles(sections("### Deep\n# Top\n### Below")) == ["Deep", "Top", "Below"]


def test_pieces_hold_everything_and_are_never_too_long() -> None:
    text = "\n\n".join(f"paragraph {i} " + "x" * (7 * i % 50) for i in range(30)) + "y" * 500
    pieces = parts_of(text, 120)
    assert max(map(len, pieces)) <= 120 and "".join("".join(pieces).split()) == "".join(text.split())
    assert parts_of("  ", 10) == []


class Reads:
    def __init__(self) -> None:
        self.prompts: list[Any]
        self.prompts, self.at_once, self.most = [], 0, 0

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.prompts.append(prompt)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if prompt.startswith("Notes on"):
            return "Ada and Bob" if "Ada" in prompt and "Bob" in prompt else "?"
        return next((name for name in ("Ada", "Bob") if f"{name} approves" in prompt), "nothing.")

    async def first_tokens(self, prompts: Sequence[str]) -> list[Any]:
        yes = 0.9 if "Ada and Bob" in prompts[0] else 0.6
        return [{"Yes": math.log(yes), "No": math.log(1 - yes)}]


async def test_notes_are_joined_section_by_section_and_empty_ones_go_no_further() -> None:
    model = Reads()
    found = await asyncio.wait_for(digest(TEXT, "who approves?", model, at_once=2), 120)
    assert (not_none(found.answer).text, round(not_none(found.answer).confidence, 6)) == ("Ada and Bob", 0.9)
    assert [path for path, _ in found.notes] == ["Travel › Trains", "Travel › Planes", "Travel"]
    joined = [p for p in model.prompts if p.startswith("Notes on")]
    assert len(joined) == 1 and "- Ada (60% sure)\n- Bob (60% sure)" in joined[0], "only Travel had two notes"
    assert found.calls == len(model.prompts) + 3 and model.most <= 2


async def test_a_document_that_says_nothing_gives_none_and_an_empty_one_is_refused() -> None:
    assert (await digest("Nothing here.", "who?", Reads())).answer is None
    with pytest.raises(TreewrightError, match="document with text"):
        await digest(" ", "who?", Reads())


def test_a_document_is_digested_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import treewright.agent.policies.propose as opening

    class Policy(Reads):
        async def close(self) -> None:
            pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "open_proposer", lambda section: Policy())
    (tmp_path / "book.md").write_text(TEXT)
    done = CliRunner().invoke(app, ["digest", "book.md", "who approves?", "--notes"])
    assert done.exit_code == 0 and "Travel › Trains: Ada (60% sure)" in done.output, done.output
    assert "Ada and Bob  (90% sure)" in done.output
    missing = CliRunner().invoke(app, ["digest", "none.md", "who?"])
    assert missing.exit_code != 0 and "none.md" in str(missing.exception)
