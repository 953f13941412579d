"""llama.cpp and vLLM's CPU build as peers of `hf:`, each in a process of its own: `peer_child.py`, over a pipe."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from treewright.envs.errors import TreewrightError

__all__ = ["PEERS", "Engine", "peer_engines"]

CHILD: Final = Path(__file__).with_name("peer_child.py")
PEERS: Final[Mapping[str, str]] = {"llama": "TREEWRIGHT_BENCH_LLAMA", "vllm": "TREEWRIGHT_BENCH_VLLM"}
"""Which setting names the Python that has the package; `make bench-peers` makes both and sets them."""
PATIENCE = 600.0  # seconds for an engine to open, or to answer


class Engine:
    """A peer that draws."""

    def __init__(self, name: str, child: subprocess.Popen[str], said: Path) -> None:
        self.name, self.child, self.said = name, child, said

    def draw(self, ids: Sequence[int], draws: int, tokens: int, greedy: bool = False) -> tuple[float, list[list[int]]]:
        """Seconds of wall clock, and the tokens of each draw."""
        asked = {"ids": list(ids), "draws": draws, "tokens": tokens, "greedy": greedy}
        assert self.child.stdin is not None
        try:
            print(json.dumps(asked), file=self.child.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None
        told = self.answer()
        drawn: list[list[int]] = told["drawn"]
        if [len(one) for one in drawn] != [tokens] * draws:
            raise TreewrightError(
                f"{self.name} drew {[len(one) for one in drawn]} tokens where {tokens} were asked for"
            )
        return float(told["seconds"]), drawn

    def answer(self) -> dict[str, Any]:
        """The next line of the child. Raises TreewrightError with its last words where it ended or stays silent."""
        assert self.child.stdout is not None
        ready, _, _ = select.select([self.child.stdout], [], [], PATIENCE)
        line = self.child.stdout.readline() if ready else ""
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        return found

    def _ended(self) -> TreewrightError:
        words = "\n".join(self.said.read_text(errors="replace").strip().splitlines()[-4:])
        return TreewrightError(f"{self.name} ended, or said nothing for {PATIENCE:.0f} s; its last words:\n{words}")


@contextmanager
def peer_engines(model: Any, longest: int, threads: int) -> Iterator[list[Engine]]:
    """The peers whose Python is named (see `PEERS`), each with this model of transformers, of Llama's shape."""
    named = {name: os.environ[setting] for name, setting in PEERS.items() if os.environ.get(setting)}
    if not named:
        yield []
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="treewright-peers-")))
        model.save_pretrained(folder / "model")
        found = []
        for name, python in named.items():
            said = folder / f"{name}.txt"
            own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
            child = subprocess.Popen(
                [python, "-P", str(CHILD), name, str(folder / "model"), str(threads), str(longest)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stack.enter_context(said.open("w")), text=True,
                cwd=folder, env=own,
            )  # fmt: skip
            stack.callback(_end, child)
            found.append(Engine(name, child, said))
        for one in found:
            one.answer()  # ready
        yield found


def _end(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):
        child.stdin.close()
    began = time.monotonic()
    while child.poll() is None and time.monotonic() - began < 10:
        time.sleep(0.05)
    child.kill()
    child.wait()
