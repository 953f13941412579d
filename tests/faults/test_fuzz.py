"""Outside data that nobody meant: some thousand inputs of `fuzz.py`, the same every time; and that it can fail."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mutations import changed_text
from outside_calls import PartialWrite
from outside_parsers import PARSERS, Parser

from treewright.envs.errors import TreewrightError

INPUTS = 4_000
GROUPS = 4
REFUSED_AS_THEY_ARE = {"actions": 2, "openai_answers": 1}  # real inputs that are wrong, and are told so


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_harness", Path(__file__).with_name("fuzz.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FUZZ = _loaded()
NAMES = [parser.name for parser in PARSERS]


@pytest.mark.parametrize("group", range(GROUPS))
def test_what_nobody_meant_is_an_error_of_ours_within_a_second_or_a_right_result(group: int) -> None:
    own = NAMES[group::GROUPS]
    inputs = round(INPUTS * sum(p.share for p in PARSERS if p.name in own) / sum(p.share for p in PARSERS))
    found = FUZZ.run_all(inputs, seed=0, only=own)
    failed = {name: one.shown for name, one in found.items() if one.failures}
    assert not failed, json.dumps(failed, indent=1)
    assert all(one.inputs >= 20 for one in found.values()) and any(one.refused for one in found.values())


def test_real_inputs_are_taken_as_they_are(tmp_path: Path) -> None:
    for parser in PARSERS:
        refused = 0
        for number, seed in enumerate(parser.seeds):
            folder = tmp_path / f"{parser.name}-{number}"
            folder.mkdir()
            try:
                parser.parse(seed, folder)
            except parser.errors:
                refused += 1
        assert refused == REFUSED_AS_THEY_ARE.get(parser.name, 0), parser.name


def _parser(parse: Any) -> Parser:
    return Parser("one", ["a"], changed_text, parse)


def _endless(text: str, _: Path) -> None:
    while True:
        pass


def _half_written(text: str, _: Path) -> None:
    raise PartialWrite("half a file")


def _wordless(text: str, _: Path) -> None:
    raise TreewrightError("no")


def _told(text: str, _: Path) -> None:
    raise TreewrightError("file line 3: no action; write look {}")


@pytest.mark.parametrize(
    ("parse", "counted"),
    [
        (lambda text, folder: text["x"], "tracebacks"),
        (_endless, "hangs"),
        (_half_written, "partial_writes"),
        (_wordless, "wordless"),
        (_told, "refused"),
    ],
)
def test_the_harness_counts_what_fails(parse: Any, counted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FUZZ, "HANG", 0.05)
    found = FUZZ.Found()
    FUZZ.tried(_parser(parse), "a", found)
    assert getattr(found, counted) == found.inputs == 1
    assert found.failures == (counted != "refused") and bool(found.shown) == (counted != "refused")


def test_the_same_seed_gives_the_same_inputs_and_another_one_others() -> None:
    def inputs(seed: int) -> list[str]:
        made: list[str] = []
        FUZZ.run(Parser("texts", ["a real one"], changed_text, lambda text, _: made.append(text)), 50, seed)
        return made

    assert inputs(1) == inputs(1) != inputs(2)


def test_the_command_writes_flat_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    code = FUZZ.main(["--inputs", "40", "--only", "retry_after,filters", "--json", str(tmp_path / "counts.json")])
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert code == 0 and counts["fuzz_inputs"] >= 40 and counts["fuzz_parsers"] == 2
    assert all(type(value) is int for value in counts.values()) and "retry_after" in capsys.readouterr().out
    assert time.process_time() - began < 20
