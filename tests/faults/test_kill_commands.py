"""Commands that are killed, stopped or cannot write, typed again: a few of each; kill_commands.py makes them all."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kill_lines import COLLECT, COMMITS, EXPORT, LOOP, TRAIN, UPGRADE
from kill_more import read_only, small_disk
from kill_trials import Broken, Fate, Line, Whole, place, trial, undisturbed, whole_files

Known = Callable[[Line], tuple[Path, Whole]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    """The folder that a line is typed in, and what is left by a run of it that nothing disturbs; made once."""
    made: dict[str, tuple[Path, Whole]] = {}

    def of(line: Line) -> tuple[Path, Whole]:
        if line.name not in made:
            home = tmp_path_factory.mktemp(line.name.replace(" ", "-"))
            line.begin(home / "base")
            made[line.name] = home / "base", undisturbed(line, home / "base", home)
        return made[line.name]

    yield of


def nth(whole: Whole, name: str, which: int) -> int:
    """The number of a point by what happens there: the first of its kind is 0, the last is -1."""
    return [i for i, point in enumerate(whole.points) if point.startswith(name)][which]


@pytest.mark.parametrize(
    ("line", "how", "name", "which"),
    [
        (COLLECT, "kill", "commit ", 4),
        (TRAIN, "kill", "sync runs/r/checkpoints", -1),  # the checkpoint is in its place, its metrics are not
        (LOOP, "kill", "commit ", -1),  # in the second iteration, with the weights of the first
        (EXPORT, "kill", "rename data", 0),
        (UPGRADE, "kill", "commit ", 0),
        (UPGRADE, "term", "committed ", 0),
        (COMMITS[0], "kill", "open ledger", 0),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_line_typed_again_ends_where_an_undisturbed_one_does(
    line: Line, how: str, name: str, which: int, known: Known, tmp_path: Path
) -> None:
    base, whole = known(line)
    counts: collections.Counter[str] = collections.Counter()
    with place(tmp_path) as folder:
        trial(line, base, folder, whole, Fate(how, at=nth(whole, name, which)), counts)
    assert counts["kills" if how == "kill" else "stops_asked"] == 1


def test_disks_that_are_small_or_cannot_be_written_end_an_export_with_one_sentence(
    known: Known, tmp_path: Path
) -> None:
    base, whole = known(EXPORT)
    counts: collections.Counter[str] = collections.Counter()
    try:
        read_only(EXPORT, base, tmp_path, whole, counts)
        assert not small_disk(EXPORT, base, tmp_path, whole, 4096, counts)
    except PermissionError as error:
        pytest.skip(str(error))
    assert counts["read_only"] == counts["writes_failed"] == 1


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", '{"a": '), ("b.jsonl", '{"a": 1}\n{"b"'), ("data/raw.jsonl", "{}\n")]
)
def test_what_is_half_written_is_noticed(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("whole")
    (tmp_path / "metrics.jsonl").write_text('{"a"')  # may be cut off
    whole_files(tmp_path, EXPORT)
    if name.startswith("data"):
        (tmp_path / "data" / "README.md").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(Broken, match="partial_files"):
        whole_files(tmp_path, EXPORT)
