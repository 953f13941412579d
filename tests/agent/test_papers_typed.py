"""Every line of the page "paper → command" is typed as it stands there, in a folder with what it takes for granted.

What stands behind a row's command as a `--set` of its own is typed with that command. Small words are added: few tasks,
one epoch. What cannot run here says why, and which test stands for it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import httpx
import pytest
from chat_server import Answering, Chat
from typing_lines import environment, typed

from .small import CHATML, qwen3, tokenizer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text()
ELSEWHERE = {
    "policy.options.routes=true": ("needs vLLM on a GPU and a mixture of experts", "tests/training/test_replay.py"),
    "train.optimizer=adamw_8bit": ("needs bitsandbytes or torchao", "tests/training/test_optim.py"),
    "treewright bench train": ("measures for minutes", "tests/benchmarks/test_bench_train.py"),
    "treewright bench models": ("measures for minutes", "tests/benchmarks/test_bench_models.py"),
    "--suites webarena": ("needs the sites of WebArena", "tests/envs/test_web_webarena.py"),
    "--suites miniwob": ("opens a browser", "tests/envs/test_web_miniwob.py"),
    "docs/examples/decomposed_questions.py": ("trains a reader for a minute", "tests/agent/test_probtree.py"),
    "treewright view first": ("serves until it is stopped: typed below", "tests/agent/test_papers_typed.py"),
}
"""Words of a line that is not typed: why, and the test that stands for it."""

FEW = "--set search.expansions=1 --set search.max_tokens=12"
SMALL = {
    "collect": f"--tasks 1 {FEW}",
    "run": FEW,
    "eval": f"--tasks 1 --expansions 1 {FEW}",
    "loop": f"--set loop.iterations=1 --set loop.tasks=2 {FEW}",
    "ask": "--budget 3 --depth 1 --set search.max_tokens=8",
    "digest": "--set search.max_tokens=8",
    "train prm": "--epochs 1",
    "train dpo": "--epochs 1 --min-gap 0.01",
    "train scorer": "--epochs 1",
    "train prefix": f"--updates 1 --starts 2 {FEW}",
    "train spar": f"--rounds 1 --set loop.tasks=2 {FEW}",
    "train ping": f"--tasks 1 --rounds 1 {FEW}",
    "train treehop": "--epochs 1",
}
"""What makes a command small."""
VIEW = ("view", "first")
MODELS = ("FOLDER", "LARGE", "SMALL")
WORLD = {"collect": "kg", "loop": "kg"}  # where a line names none


@dataclass(frozen=True)
class Row:
    paper: str
    lines: tuple[str, ...]


def rows() -> Iterator[Row]:
    """What runs each paper, the lines in their order; a `--set` goes with the line before it, or with `collect`."""
    for row in re.findall(r"^\| (?!paper|-)(.+?) \|$", PAGE, re.MULTILINE):
        cells = row.split(" | ")
        lines: list[str] = []
        for span in re.findall(r"`([^`]+)`", cells[-1]):
            if re.match(r"(treewright|python) ", span):
                lines.append(span)
            elif span.startswith("--set "):
                on = next((line for line in reversed(lines) if line.split()[1] not in ("plans",)), "")
                train = "train." in span
                if train and on.split()[1:2] != ["train"]:
                    on = "treewright train --name first"
                elif not train and (not on or on.split()[1] in ("train", "digest")):
                    on = "treewright collect --name more"
                lines.append(f"{on} {span}")
        if lines:
            yield Row(re.sub(r"[^\w .-]", "", cells[0])[:40].strip(), tuple(lines))


def estimators() -> Iterator[Row]:
    table = PAGE[PAGE.index("## Credit") : PAGE.index("## Training")]
    (line,) = re.findall(r"`(treewright train [^`]*=NAME)`", table)
    for name in re.findall(r"^\|[^|]+\| `(\w+)` \|$", table, re.MULTILINE):
        yield Row(f"estimator {name}", (line.replace("NAME", name),))


ROWS = [*rows(), *estimators()]


def reason(line: str) -> tuple[str, str] | None:
    return next((why for words, why in ELSEWHERE.items() if words in line), None)


def test_what_is_not_typed_stands_on_the_page_and_a_test_stands_for_it() -> None:
    lines = [line for row in ROWS for line in row.lines] + re.findall(r"`(treewright \w+[^`]*)`", PAGE)
    assert len(lines) > 80
    for words, (_, test) in ELSEWHERE.items():
        assert any(words in line for line in lines), words
        assert (ROOT / test).is_file(), test


class Served(Chat):
    """A chat server that also serves passages by Search-R1's protocol."""

    asked = 0

    def do_POST(self) -> None:
        if self.path != "/retrieve":
            return super().do_POST()
        self.rfile.read(int(self.headers["Content-Length"]))
        Served.asked += 1
        self.reply({"result": [[{"document": {"id": "1", "contents": "Ada\nAda lives in Bonn."}, "score": 1.0}]]})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a run, passages, questions, a handbook and small models; and the address of a chat server."""
    home = tmp_path_factory.mktemp("papers")
    docs = [
        {"id": name, "title": name, "text": f"{name} was born in {year} and lives in {town}. {name} knows {other}."}
        for name, year, town, other in [("Ada", 1960, "Bonn", "Bob Ray"), ("Bob Ray", 1971, "Ulm", "Ada")]
    ]
    written: dict[str, list[dict[str, Any]]] = {
        "passages.jsonl": docs,
        "questions.jsonl": [{"id": str(i), "question": f"where does {name} live?", "answer": town, "split": split}
                            for i, (name, town, split) in enumerate(
                                [("Ada", "Bonn", "test"), ("Bob", "Ulm", "train")])],
        "recipes.jsonl": [{"target": "soup"}, {"goal": "soup", "needs": ["mix", "water"], "cost": 1, "name": "cook"},
                          {"goal": "mix", "cost": 2, "name": "buy"}, {"goal": "water", "cost": 0, "name": "tap"}],
        "tasks.jsonl": [{"id": "a", "goal": "Write three x.", "split": "train"}],
    }  # fmt: skip
    for file, contents in written.items():
        (home / file).write_text("".join(json.dumps(row) + "\n" for row in contents))
    (home / "handbook.md").write_text("# Travel\nAda approves travel.\n\n# Money\nBob pays.\n")
    (home / "harmful.txt").write_text("How do I break into a house?\n")
    for i, name in enumerate(MODELS):
        model = qwen3(seed=i, max_position_embeddings=8192)
        model.save_pretrained(home / name)
        tokenizer(("<|im_start|>", "<think>", "</think>", "<|im_end|>"), CHATML).save_pretrained(home / name)
    grow = "collect --name first --suites kg --tasks 4 --set search.expansions=2 --set search.root_draws=6"
    typed(grow.split(), home)
    server = Answering(("127.0.0.1", 0), Served)
    server.daemon_threads = True
    server.answer = lambda messages: "Verdict: no" if "Verdict" in str(messages) else 'search {"query": "Ada"}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield home, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


TYPED = [row for row in ROWS if any(reason(line) is None for line in row.lines)]


@pytest.mark.parametrize("row", TYPED, ids=lambda row: row.paper)
def test_a_row_runs(row: Row, base: tuple[Path, str], tmp_path: Path) -> None:
    home, address = base
    here = tmp_path / "here"
    shutil.copytree(home, here, ignore=shutil.ignore_patterns(*MODELS))
    for name in MODELS:
        (here / name).symlink_to(home / name)
    for line in row.lines:
        if reason(line) is not None:
            continue
        if line.startswith("treewright train --name first"):  # with trees that nothing was trained on
            shutil.rmtree(here / "runs")
            shutil.copytree(home / "runs", here / "runs")
        if line.startswith("treewright compare"):
            for run in ("chains-1", "late-1"):
                loop = f"loop --name {run} --suites kg --set loop.iterations=2 --set loop.tasks=2 {FEW}"
                typed(loop.split(), here)
        before = Served.asked
        assert typed(words_of(line, address), here).strip(), line
        assert ("/retrieve" in line) == (Served.asked > before)


def words_of(line: str, address: str) -> list[str]:
    """The words of a line, placeholders filled in, and what makes it small."""
    chat = f"openai:chat@http://{address}/v1"
    given = {"hf:JUDGE": chat, "hf:REFINER": chat, "openai:MODEL@URL": chat, "POLICY": "hf:FOLDER",
             "HOST:PORT": address}  # fmt: skip
    for name, real in given.items():
        line = line.replace(name, real)
    words = shlex.split(line)[1:]
    command = " ".join(words[: 1 + (words[0] == "train" and words[1][0] != "-")])
    world = ["--suites", WORLD[command]] if command in WORLD and "--suites" not in words else []
    actor = ["--policy", chat] if "/retrieve" in line else []  # it searches
    return [*words, *world, *actor, *SMALL.get(command, "").split()]


def test_the_viewer_serves_the_trees_until_it_is_stopped(base: tuple[Path, str]) -> None:
    home, _ = base
    child = forked.Child([forked.COMMAND, *VIEW], home, environment(), merged=True)
    try:
        said = next(line for line in iter(child.stdout.readline, "") if "http://" in line)
        (address,) = re.findall(r"http://\S+", said)
        page = httpx.get(address, follow_redirects=True)
        assert page.status_code == 200 and "map of tokens" in page.text
    finally:
        child.kill()
        child.wait()
