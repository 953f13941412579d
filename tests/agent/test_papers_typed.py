"""Every line of the page "paper → command" is typed as it stands there, in a folder with what it takes for granted.

What stands behind a row's command as a `--set` of its own is typed with that command. Small words are added: few tasks,
one epoch. What cannot run here says why, and which test stands for it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from chat_server import serving
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
    "treewright view": ("serves until it is stopped: typed below", "tests/agent/test_papers_typed.py"),
}
"""Words of a line that is not typed: why, and the test that stands for it."""

SMALL = {
    "collect": "--tasks 2 --set search.expansions=2 --set search.max_tokens=32",
    "run": "--set search.expansions=2 --set search.max_tokens=32",
    "eval": "--tasks 1 --expansions 1 --set search.max_tokens=32",
    "loop": "--set loop.iterations=1 --set loop.tasks=2 --set search.expansions=1",
    "ask": "--budget 3 --depth 1 --set search.max_tokens=8",
    "digest": "--set search.max_tokens=8",
    "train prm": "--epochs 1",
    "train dpo": "--epochs 1 --min-gap 0.01",
    "train scorer": "--epochs 1",
    "train prefix": "--updates 1 --starts 2",
    "train spar": "--rounds 1 --tasks 2 --set search.expansions=2",
    "train ping": "--tasks 1 --rounds 1",
    "train treehop": "--epochs 1",
}
AFTER = {"treewright compare": ["chains-1", "late-1"]}  # runs that must be there


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
                elif not train and on.split()[1:2] in ([], ["train"]):
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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a run, passages, questions, a handbook and small models; and the address of a chat server."""
    home = tmp_path_factory.mktemp("papers")
    docs = [
        {"id": name, "title": name, "text": f"{name} was born in {year} and lives in {town}. {name} knows {other}."}
        for name, year, town, other in [("Ada", 1960, "Bonn", "Bob Ray"), ("Bob Ray", 1971, "Ulm", "Ada")]
    ]
    written = {
        "passages.jsonl": docs,
        "questions.jsonl": [{"id": str(i), "question": f"where does {name} live?", "answer": town, "split": split}
                            for i, (name, town, split) in enumerate([("Ada", "Bonn", "test"), ("Bob", "Ulm", "train")])],
        "recipes.jsonl": [{"target": "soup"}, {"goal": "soup", "needs": ["mix", "water"], "cost": 1, "name": "cook"},
                          {"goal": "mix", "cost": 2, "name": "buy"}, {"goal": "water", "cost": 0, "name": "tap"}],
        "tasks.jsonl": [{"id": "a", "goal": "Write three x.", "split": "train"}],
    }  # fmt: skip
    for file, contents in written.items():
        (home / file).write_text("".join(json.dumps(row) + "\n" for row in contents))
    (home / "handbook.md").write_text("# Travel\nAda approves travel.\n\n# Money\nBob pays.\n")
    (home / "harmful.txt").write_text("How do I break into a house?\n")
    for i, name in enumerate(("FOLDER", "LARGE", "SMALL")):
        model = qwen3(seed=i, max_position_embeddings=8192)
        model.save_pretrained(home / name)
        tokenizer(("<|im_start|>", "<think>", "</think>", "<|im_end|>"), CHATML).save_pretrained(home / name)
    grow = ["collect", "--suites", "kg", "--tasks", "4", "--set", "search.expansions=2", "--set", "search.root_draws=6"]
    typed([*grow, "--name", "first"], home)
    with serving(lambda messages: "Verdict: no" if "Verdict" in str(messages) else "x x x") as address:
        yield home, address


@pytest.mark.parametrize("row", [r for r in ROWS if any(reason(line) is None for line in r.lines)], ids=lambda r: r.paper)
def test_a_row_runs(row: Row, base: tuple[Path, str], tmp_path: Path) -> None:
    home, address = base
    here = tmp_path / "here"
    shutil.copytree(home, here, ignore=shutil.ignore_patterns("FOLDER", "LARGE", "SMALL"))
    for name in ("FOLDER", "LARGE", "SMALL"):
        (here / name).symlink_to(home / name)
    for line in row.lines:
        if reason(line) is not None:
            continue
        for run in next((runs for words, runs in AFTER.items() if line.startswith(words)), []):
            typed(["loop", "--name", run, "--suites", "kg", *SMALL["loop"].split()], here)
        out = typed(words_of(line, address), here)
        assert out.strip(), line


def words_of(line: str, address: str) -> list[str]:
    """The words of a line, placeholders filled in, and what makes it small."""
    chat = f"openai:chat@{address}"
    for name, real in {"hf:JUDGE": chat, "hf:REFINER": chat, "POLICY": "hf:FOLDER"}.items():
        line = line.replace(name, real)
    words = shlex.split(line)[1:]
    command = " ".join(words[: 1 + (words[0] == "train" and words[1][0] != "-")])
    return [*words, *SMALL.get(command, "").split()]


def test_the_viewer_serves_until_it_is_stopped(base: tuple[Path, str]) -> None:
    home, _ = base
    child = forked.Child([forked.COMMAND, "view"], home, environment(), merged=True)
    try:
        said = child.stdout.readline()
        print(said)
    finally:
        child.kill()
        child.wait()


_ = subprocess, sys
