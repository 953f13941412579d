"""Outside data that nobody meant: some thousand inputs of `fuzz.py`, the same every time; and that it can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import forked
import pytest
from mutations import changed_text
from outside_calls import PartialWrite
from outside_parsers import PARSERS, Parser
from speed import patient

from treewright.envs.errors import TreewrightError

INPUTS = 4_000
GROUPS = 2
REFUSED_AS_THEY_ARE = {"actions": 2, "openai_answers": 1}  # real inputs that are wrong, and are told so


HERE = Path(__file__).with_name("fuzz.py")
LIMITS = resource.getrlimit(resource.RLIMIT_AS)  # of this process, which nothing here may change


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_harness", HERE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FUZZ = _loaded()
NAMES = [parser.name for parser in PARSERS]


def fuzzed(folder: Path, *words: str) -> tuple[int, str, dict[str, int]]:
    """The harness in a process of its own, which it bounds: exit code, what it said, counts."""
    out = folder / "counts.json"
    bound = ("--hang", str(patient(FUZZ.HANG)))  # a processor that others share is charged with their share, too
    done = forked.run([str(HERE), *bound, *words, "--json", str(out)], folder, os.environ, timeout=300)
    return done.returncode, done.stdout + done.stderr, json.loads(out.read_text()) if out.exists() else {}


@pytest.mark.parametrize("group", range(GROUPS))
def test_what_nobody_meant_is_an_error_of_ours_within_a_second_or_a_right_result(group: int, tmp_path: Path) -> None:
    own = NAMES[group::GROUPS]
    inputs = round(INPUTS * sum(p.share for p in PARSERS if p.name in own) / sum(p.share for p in PARSERS))
    code, said, counts = fuzzed(tmp_path, "--inputs", str(inputs), "--only", ",".join(own))
    assert code == 0 and counts["fuzz_refused"], said
    assert counts["fuzz_parsers"] == len(own) and counts["fuzz_inputs"] >= 20 * len(own)


IN_C = """
import sys
sys.path[:0] = [PATHS]
import fuzz, outside_parsers
fuzz.LEFT = 1
fuzz.PARSERS = [outside_parsers.Parser("one", ["a"], lambda text, rng: text, lambda text, _: WORK)]
fuzz.bound()
sys.exit(fuzz.main(["--inputs", "2"]))
"""


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        ("sum(range(10**15))", -signal.SIGXCPU, "in <lambda>"),
        ("bytearray(1 << 40)", 1, "MemoryError"),
    ],
)
def test_what_hangs_in_c_or_takes_all_memory_ends_the_harness_alone(
    work: str, code: int, said: str, tmp_path: Path
) -> None:
    paths = ", ".join(map(repr, (str(HERE.parent), str(HERE.parents[1] / "helpers"))))
    (tmp_path / "one.py").write_text(IN_C.replace("PATHS", paths).replace("WORK", work))
    done = forked.run([str(tmp_path / "one.py")], tmp_path, os.environ)
    assert done.returncode == code and said in done.stdout + done.stderr, done
    assert resource.getrlimit(resource.RLIMIT_AS) == LIMITS


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
