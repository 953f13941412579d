"""Disks that are full or cannot be written: one sentence, nothing acknowledged lost, and reading goes on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest

FEW = ["--suites", "kg", "--tasks", "24", "--set", "search.expansions=6"]


def treewright(*words: str, cwd: str | None, code: int = 0) -> str:
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = forked.treewright(words, cwd, environment, timeout=240)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """Mounts a file system of so many bytes in memory; gives its folder and a function that changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("file systems cannot be mounted here: it takes root")

    def change(options: Any) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    yield folder, change
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_a_collection_with_one_sentence_and_making_room_lets_it_go_on(
    small_disk: tuple[Any, Callable[[Any], Any]],
) -> None:
    folder, change = small_disk
    out = treewright("collect", "--name", "full", *FEW, cwd=folder, code=2)
    assert "Traceback" not in out and "ExceptionGroup" not in out
    (said,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "disk is full; everything acknowledged is kept: make room" in said
    assert len([line for line in out.splitlines() if line.strip()]) <= 4, out
    listed = treewright("show", "--name", "full", "--most", "99", cwd=folder)
    assert "running" not in listed and "interrupted" in listed
    change("size=64m")
    out = treewright("collect", "--name", "full", *FEW, cwd=folder)
    assert re.search(r"kg +│ 24", out)
    assert "24 trees, everything is whole" in treewright("store", "check", "full", cwd=folder)


def test_a_store_that_cannot_be_written_is_read_in_its_place(small_disk: tuple[Any, Callable[[Any], Any]]) -> None:
    folder, change = small_disk
    change("size=64m")
    treewright("collect", "--name", "kept", "--suites", "kg", "--tasks", "2", cwd=folder)
    change("ro")
    try:
        assert treewright("show", "--name", "kept", cwd=folder).count("kg-train") == 2
        assert "everything is whole" in treewright("store", "check", "kept", cwd=folder)
        out = treewright("collect", "--name", "kept", "--suites", "kg", "--tasks", "3", cwd=folder, code=2)
        assert "Read-only file system" in out and "Traceback" not in out
    finally:
        change("rw")


def filled(folder: Any, room: int) -> Path:
    """A file that leaves so many bytes of the disk free."""
    filler = Path(folder, "filler")
    disk = os.statvfs(folder)
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - room))
    return filler


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (0, ("export", "data", "--name", "kept", "--formats", "raw")),
        (0, ("train", "--name", "kept")),
        (400_000, ("train", "--name", "kept")),
    ],
    ids=["export", "train", "checkpoint"],
)
def test_exports_and_updates_onto_a_full_disk_end_with_one_sentence_and_keep_the_trees(
    room: int, words: tuple[str, ...], small_disk: tuple[Any, Callable[[Any], Any]]
) -> None:
    folder, change = small_disk
    change("size=16m")
    treewright(
        "collect", "--name", "kept", "--suites", "kg", "--tasks", "2", "--set", "search.expansions=2", cwd=folder
    )
    filler = filled(folder, room)
    out = treewright(*words, cwd=folder, code=2)
    assert "Traceback" not in out and len([line for line in out.splitlines() if "error: " in line]) == 1, out
    assert re.search("disk is full|No space left", out) and "make room" in out and "restore the file" not in out, out
    filler.unlink()
    change("size=64m")
    assert "2 trees, everything is whole" in treewright("store", "check", "kept", cwd=folder)
    treewright(*words, cwd=folder)
