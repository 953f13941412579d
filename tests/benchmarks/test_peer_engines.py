"""Peers that sample: what they must answer, what is said of one that ends, and none where none is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from treewright.benchmarks.peer_engines import PEERS, Engine, peer_engines
from treewright.envs.errors import TreewrightError

ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({"seconds": 0.5, "drawn": [asked["ids"][: asked["tokens"]]] * asked["draws"]}), flush=True)
"""


@pytest.fixture
def engine(tmp_path: Path) -> Callable[[str], Engine]:
    def made(code: str) -> Engine:
        said = tmp_path / "said.txt"
        with said.open("w") as out:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
            )
        return Engine("peer", child, said)

    return made


def test_a_peer_gives_its_seconds_and_as_many_tokens_as_were_asked_for(engine: Callable[[str], Engine]) -> None:
    with (peer := engine(ECHO)).child:
        assert peer.draw([4, 5, 6], 2, 3) == (0.5, [[4, 5, 6], [4, 5, 6]])
        with pytest.raises(TreewrightError, match=r"peer drew \[3\] tokens where 4 were asked for"):
            peer.draw([4, 5, 6], 1, 4)


def test_a_peer_that_ends_is_told_of_with_its_last_words(engine: Callable[[str], Engine]) -> None:
    with suppress(BrokenPipeError), (peer := engine("raise SystemExit('no such model')")).child:
        peer.child.wait()
        with pytest.raises(TreewrightError, match=r"peer ended, .*\nno such model"):
            peer.draw([1], 1, 1)


def test_no_peer_is_opened_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in PEERS.values():
        monkeypatch.delenv(setting, raising=False)
    with peer_engines(None, 100, 1) as found:
        assert found == []
