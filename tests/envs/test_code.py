"""The suite `code`: problems, sandbox, world, mistakes, and that search over it beats a single attempt."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from small_policies import script_policy
from speed import patient

from treewright.agent.judges.code_judge import TestsPassed
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.evaluate import evaluate
from treewright.envs import Action, InvalidAction, Observation, TreewrightError
from treewright.envs.code.bugs import Programmer, bugs
from treewright.envs.code.problem import Problem, equal, expected
from treewright.envs.code.sandbox import Limits, run_calls
from treewright.envs.code.world import PROBLEMS, SUITE, code_suite, share_passed
from treewright.envs.types import Task
from treewright.search.types import Candidate, Completion, Exchange, NodeStatus, Score

MEDIAN = PROBLEMS[0]
QUICK = Limits(each=0.3, cpu=2, wall=20.0)


# -- problems ---------------------------------------------------------------------------------------------------------


def test_there_are_at_least_40_problems_with_public_and_hidden_tests_of_different_calls() -> None:
    assert len(PROBLEMS) >= 40 and len({p.name for p in PROBLEMS}) == len(PROBLEMS)
    for problem in PROBLEMS:
        assert problem.public and len(problem.hidden) >= 4 and not set(problem.public) & set(problem.hidden)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_reference_gives_the_values_that_the_public_tests_state(problem: Problem) -> None:
    space: dict[str, Any] = {}
    exec(problem.source, space)
    for call, value in problem.public.items():
        assert equal(repr(eval(call, dict(space))), value)
    assert len(expected(problem)) == len(problem.hidden)


def test_hidden_tests_tell_most_mistakes_that_public_ones_let_pass() -> None:
    def passes(source: str, calls: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
        space: dict[str, Any] = {}
        try:
            exec(source, space)
            return all(equal(repr(eval(call, dict(space))), value) for call, value in zip(calls, wanted, strict=True))
        except Exception:
            return False

    slipped = caught = 0
    for problem in PROBLEMS:
        for source in bugs(problem.source):
            if "while" in source or "calc" in source:
                continue  # may run for ever, and this test runs mistakes in its own process
            if passes(source, tuple(problem.public), tuple(problem.public.values())):
                slipped += 1
                caught += not passes(source, problem.hidden, expected(problem))
    assert slipped > 50 and caught / slipped > 0.6, (slipped, caught)


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("1", "1", True), ("1.0", "1", False), ("True", "1", False), ("0.30000000000000004", "0.3", True),
        ("[1, (2,)]", "[1, (2,)]", True), ("[1, [2]]", "[1, (2,)]", False), 
        ("{'b': 1, 'a': 2}", "{'a': 2, 'b': 1}", True),
        ("{1, 2}", "{2, 1}", True), ("<object>", "3", False), ("'a'", "'b'", False), ("nan", "1.0", False),
    ],
)  # fmt: skip
def test_values_are_compared_by_value_and_type(found: str, wanted: str, same: bool) -> None:
    assert equal(found, wanted) is same


# -- sandbox ----------------------------------------------------------------------------------------------------------

HOSTILE = """
import os, socket, subprocess, ctypes
def read(path): return open(path).read()
def write(path): open(path, 'w').write('x'); return 'written'
def net(port): socket.create_connection(('127.0.0.1', port)); return 'connected'
def run(): return subprocess.run(['true'])
def fork(): return os.fork()
def kill(pid): os.kill(pid, 9); return 'killed'
def loop():
    while True: pass
def much(): return len(bytearray(2 * 10**9))
def deep(): return deep()
def big(): open('x', 'w').write('y' * 2**21); return 'written'
def raw(): return ctypes.CDLL(None, use_errno=True).syscall(41 if os.uname().machine == 'x86_64' else 198, 2, 1, 0)
def link(path): os.symlink(path, 'link'); return open('link').read()
def env(): return sorted(os.environ)
def leave(path): os.unlink(path); return 'gone'
"""


async def test_a_hostile_program_reaches_no_file_network_process_or_signal(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("s3cret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        calls = {
            f"read({str(secret)!r})": "PermissionError", f"write({str(tmp_path / 'new')!r})": "PermissionError",
            f"link({str(secret)!r})": "PermissionError", f"leave({str(secret)!r})": "PermissionError",
            "read('/etc/passwd')": "PermissionError", f"net({port})": "PermissionError",
            "run()": "PermissionError", "fork()": "PermissionError", f"kill({os.getpid()})": "PermissionError",
            "loop()": "took longer than 0.3 s", "much()": "MemoryError", "deep()": "RecursionError",
            "big()": "File too large",
        }  # fmt: skip
        run = await run_calls(HOSTILE, [*calls, "raw()", "write('mine')", "env()"], QUICK)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    for (call, words), (kind, text) in zip(calls.items(), run.calls[: len(calls)], strict=True):
        assert kind == "error" and words in text, (call, text)
    assert [text for _, text in run.calls[len(calls) :]][:2] == ["-1", "'written'"]
    assert set(run.calls[-1][1].strip("[]").replace("'", "").split(", ")) <= {
        "HOME",
        "TMPDIR",
        "PYTHONHASHSEED",
        "LC_CTYPE",
    }
    assert secret.read_text() == "s3cret" and list(tmp_path.iterdir()) == [secret]  # noqa: ASYNC240


async def test_a_program_that_swallows_its_alarms_is_killed_and_one_that_leaves_is_told() -> None:
    stubborn = """
def f():
    while True:
        try:
            while True:
                x = len('a')
        except BaseException:
            pass
"""
    began = time.monotonic()
    run = await run_calls(stubborn, ["f()"], QUICK)
    assert run.killed is not None and "CPU" in run.killed and time.monotonic() - began < patient(20)
    asleep = await run_calls("import time\ntime.sleep(60)", ["1"], Limits(wall=0.7))
    assert asleep.killed == "killed after 0.7 s"
    left = await run_calls("import os\nos._exit(3)", ["1"], QUICK)
    assert left.killed == "ended by itself (exit code 3)"
    lied = await run_calls(
        "import os\nos.write(1, b'{}'); os.write(2, b'{}'); print('x')\ndef f(): return 1", ["f()"], QUICK
    )
    assert lied.calls == (("value", "1"),)


async def test_programs_that_do_not_load_say_where() -> None:
    assert (await run_calls("def f(:\n  pass", ["1"], QUICK)).load == "SyntaxError: invalid syntax (line 1)"
    assert (await run_calls("x = 1\ny = x / 0", ["1"], QUICK)).load == "ZeroDivisionError: division by zero (line 2)"
    assert (await run_calls("\ud800", ["1"], QUICK)).load is not None


async def test_a_machine_without_fences_runs_nothing_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    import treewright.envs.code.sandbox as sandbox

    async def no_landlock(job: Any, folder: Any, wall: float) -> tuple[bytes, int]:
        return b'{"fences": {"files": false, "calls": true}, "load": null, "calls": []}', 0

    monkeypatch.setattr(sandbox, "_child", no_landlock)
    with pytest.raises(TreewrightError, match=r"cannot fence in a program's files.*TREEWRIGHT_UNFENCED_CODE=1"):
        await run_calls("x = 1", [])
    monkeypatch.setenv("TREEWRIGHT_UNFENCED_CODE", "1")
    assert (await run_calls("x = 1", [])).load is None


# -- world ------------------------------------------------------------------------------------------------------------


async def test_failures_are_shown_test_by_test_and_hidden_tests_decide() -> None:
    env = await SUITE.open()
    task = next(t for t in SUITE.tasks("train", 99) if t.id == "median")
    await env.reset(task, 0)
    odd_only = "def median(numbers):\n    return float(sorted(numbers)[len(numbers) // 2])"
    seen = (await env.step(Action.of("write", code=odd_only), 0)).observation.text
    assert seen == "tests: 1 of 2 passed\nmedian([4, 1]) gave 4.0, expected 2.5"
    broken = (await env.step(Action.of("write", code="def median(:"), 0)).observation.text
    assert broken == "tests: 0 of 2 passed\nthe program does not load: SyntaxError: invalid syntax (line 1)"
    public_only = (
        "def median(numbers):\n    s = sorted(numbers)\n    n = len(s)\n    return (s[(n-1)//2] + s[n//2]) / 2"
    )
    assert (await env.step(Action.of("write", code=public_only), 0)).observation.text == "tests: 2 of 2 passed"
    assert (await env.step(Action.of("try", call="median([])"), 0)).observation.text.startswith("error: IndexError")
    result = await env.step(Action.of("submit"), 0)
    assert result.terminated and result.reward == 0.0 and result.info == {"passed": 6, "tests": 7}
    await env.reset(task, 0)
    await env.step(Action.of("write", code=MEDIAN.source), 0)
    assert (await env.step(Action.of("submit"), 0)).reward == 1.0
    with pytest.raises(InvalidAction):
        await env.step(Action.of("submit"), 0)


async def test_ones_own_problems_make_a_suite_and_mistakes_in_them_are_named() -> None:
    double = Problem(
        "double(x)", "twice x", "def double(x):\n    return 2 * x\n", {"double(1)": "2"}, ("double(0)",) * 4
    )
    found = code_suite([double], "mine")
    env = await found.open()
    await env.reset(found.tasks("train", 1)[0], 0)
    seen = await env.step(Action.of("write", code="double = lambda x: x + x"), 0)
    assert seen.observation.text == "tests: 1 of 1 passed" and (await env.step(Action.of("submit"), 0)).reward == 1.0
    with pytest.raises(TreewrightError, match="two problems are named 'double'"):
        code_suite([double, double], "mine")


# -- evaluator and search ---------------------------------------------------------------------------------------------


def candidate(text: str | None, turns: list[Any] | tuple[Any, ...] = ()) -> Candidate:
    shown = tuple(Exchange("", None, Observation(t)) for t in turns)
    seen = Observation(text) if text is not None else None
    return Candidate(shown, Completion("x"), None, None, seen, NodeStatus.OPEN, 0.0, 1)


async def test_the_evaluator_counts_public_tests_and_mixes_in_a_critic() -> None:
    task = SUITE.tasks("train", 1)[0]
    half = "tests: 1 of 2 passed\n…"
    scores = await TestsPassed().evaluate(
        task, [candidate(half), candidate("submitted", [half]), candidate(None, [half]), candidate(None)]
    )
    assert [s.value for s in scores] == [0.5, 0.5, 0.5, 0.0]
    asked = []

    async def critic(task: Task, candidate: Candidate) -> Score:
        asked.append(candidate)
        return Score(1.0, tokens=7)

    mixed = await TestsPassed(critic, weight=1.0).evaluate(task, [candidate(half), candidate("submitted", [half])])
    assert mixed == [Score(0.75, 7), Score(0.5)] and len(asked) == 1
    assert share_passed("nothing") is None
    with pytest.raises(TreewrightError, match="negative"):
        TestsPassed(weight=-1)


def test_planted_mistakes_are_small_and_still_compile() -> None:
    found = bugs(MEDIAN.source)
    assert len(found) > 5 and len(set(found)) == len(found)
    for source in found:
        compile(source, "bug", "exec")


async def test_search_by_public_tests_beats_a_single_attempt() -> None:
    tasks = SUITE.tasks("test", 10)
    async with open_worlds([SUITE]) as worlds:
        rates = []
        for expansions in (0, 5):
            policy = script_policy(Programmer(skill=0.2, repair=0.2))
            results, _ = await evaluate(
                tasks, worlds, policy, expansions=expansions, draws=2, root_draws=3, evaluator=TestsPassed(), seed=3
            )
            rates.append(results["code"].rate)
    assert rates[1] >= rates[0] + 0.2
