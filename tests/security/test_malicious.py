"""Models, checkpoints, tokenizers and chat templates of strangers: no code of theirs runs, and they end."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from treewright.agent.policies import open_policy
from treewright.agent.policies.chat_template import ChatTemplate
from treewright.agent.policies.policy import SEEDLING
from treewright.envs import TreewrightError

SAY = "{{ messages | map(attribute='content') | join('<|act|>') }}<|act|>"
TEMPLATES = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a product": "{{ 'x' * 10000000000 }}",
    "a power": "{{ 9 ** 999999999 }}",
    "doubling": "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a file": "{% include '/etc/passwd' %}",
    "changes": "{% do messages.append(1) %}{{ messages.append(2) }}",
}


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(SEEDLING, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path / "model"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_reaches_nothing_and_ends(name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    tokenizer.chat_template = SAY + TEMPLATES[name]
    began = time.monotonic()
    with pytest.raises(TreewrightError, match="chat template"):
        ChatTemplate(tokenizer)
    assert time.monotonic() - began < 120, "an hour would have been too little for these"


def test_small_products_are_no_attack() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    tokenizer.chat_template = SAY + "{{ 2 * 3 }}"
    assert ChatTemplate(tokenizer).prompt.endswith("6")


def test_weights_that_are_a_pickle_are_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Evil(tmp_path / "run")))
        with pytest.raises(TreewrightError, match="cannot load a model"):
            open_policy(f"hf:{folder}")
        (folder / name).unlink()
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileExistsError):  # the pickle does what it says where somebody unpickles it
        pickle.loads(pickle.dumps(Evil(tmp_path)))


def test_code_beside_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'run')!r})\nclass A: pass\n")
    for file, key in (("tokenizer_config.json", "AutoTokenizer"), ("config.json", "AutoModelForCausalLM")):
        told = json.loads((folder / file).read_text())
        told["auto_map"] = {key: ["evil.A", None] if key == "AutoTokenizer" else "evil.A"}
        (folder / file).write_text(json.dumps(told))
    with contextlib.suppress(TreewrightError):  # refusing is as good as ignoring
        open_policy(f"hf:{folder}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"])
def test_broken_files_of_a_model_are_one_sentence(folder: Path, file: str) -> None:
    for text in ("", "[" * 100_000):
        (folder / file).write_text(text)
        with pytest.raises(TreewrightError):
            open_policy(f"hf:{folder}")
    for text in ('{"a": 1e999999}', '{"model": {"type": "BPE", "vocab": {"a": -5}, "merges": ["a b"]}}'):
        (folder / file).write_text(text)
        with contextlib.suppress(TreewrightError):  # some files may hold such things
            open_policy(f"hf:{folder}")


LINE = """
import sys
found = []

def watch(event, given):
    if event == "pickle.find_class":
        # What Python's own pools send to their children is theirs; nothing of ours may be unpickled from a file.
        frame, files = sys._getframe(1), []
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        if not any("multiprocessing" in file for file in files):
            found.append((given, files[:6]))

sys.addaudithook(watch)
from treewright.agent.cli.main import main

def typed(*words):
    sys.argv = ["treewright", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)

small = ["--set", "search.expansions=1", "--set", "search.max_tokens=16"]
typed("collect", "--name", "p", "--suites", "maze", "--tasks", "2", *small)
typed("train", "--name", "p")
typed("collect", "--name", "p", "--suites", "maze", "--tasks", "4", *small)
typed("train", "--name", "p")
typed("export", "out", "--name", "p", "--formats", "raw", "--file-type", "jsonl")
print("UNPICKLED", len(found), found[:3])
import pickle
pickle.loads(pickle.dumps(sys.exit))
print("HOOKED", len(found))
"""


def test_nothing_is_unpickled_from_collecting_to_exporting(tmp_path: Path) -> None:
    (tmp_path / "line.py").write_text(textwrap.dedent(LINE))
    done = subprocess.run(
        [sys.executable, "-P", "line.py"], cwd=tmp_path, capture_output=True, text=True, timeout=560, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "UNPICKLED 0" in done.stdout and "HOOKED 1" in done.stdout, done.stdout[-1500:] + done.stderr[-2500:]
