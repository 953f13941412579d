"""Tests of two builds in turns: which are the same, what counts as their cost, and that both are shown."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import forked
import pytest

from treewright.benchmarks.performance import named

RUN = Path(__file__).parents[1] / "pair" / "run.py"
BURNT = 0.4  # seconds of processor
WORK = """
import os, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""
FORKED = f"""{WORK}
def test_of_an_orphan():
    if os.fork() == 0:
        if os.fork() == 0:
            burn({BURNT})
        os._exit(0)
    os.wait()
def test_that_fails():
    assert False
"""


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pair_run", RUN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_tests_are_the_same_by_name_and_parameters_wherever_they_stand(run: ModuleType) -> None:
    old = [
        "tests/a/test_x.py::test_one[1]",
        "tests/a/test_x.py::test_one[2]",
        "tests/test_y.py::test_two",
        "t.py::test_gone",
    ]
    new = ["tests/b/test_z.py::test_one[1]", "tests/test_y.py::test_two", "tests/test_v.py::test_two", "t.py::test_new"]
    assert run.shared(old, new) == {old[0]: new[0], "tests/test_y.py::test_two": "tests/test_y.py::test_two"}


def test_only_shared_tests_run_and_what_an_orphan_took_counts(tmp_path: Path) -> None:
    old, new, made = tmp_path / "old", tmp_path / "new", tmp_path / "made.json"
    for build, text in ((old, FORKED), (new, f"{FORKED}\ndef test_new():\n    burn(9)\n")):
        (build / "pkg" / "treewright").mkdir(parents=True)
        (build / "tests").mkdir()
        (build / "tests" / "test_a.py").write_text(text)
    done = forked.run([RUN, old, new, "--workers", "1", "--json", made], tmp_path, dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(made.read_text())["tests"]
    assert (told["tests"], told["passed"]) == (2, 1), done.stdout
    own = told["passed_processor"]
    assert 0 < own["after"] < BURNT, "the orphan is nobody's child when the test ends"
    assert own["after"] + BURNT < told["processor"]["after"] < 9
    assert list(told["files"]) == ["tests/test_a.py"]
    assert named({"tests": told})["tests_vs_before"]["value"] == told["processor"]["ratio"]
