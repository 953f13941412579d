"""A policy server that is down or broken, as the command line meets it: said early, with its cause, and no success."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, Response

from treewright.agent.cli import main as cli
from treewright.agent.policies import transport
from treewright.agent.policies.opening import OPTIONS, open_policy
from treewright.agent.policies.transport import TOLD_AFTER, TOLD_AGAIN, Outage
from treewright.envs.errors import TreewrightError

from .fake_server import Server, opened, root, said, threaded

SHORT = ("--set", "policy.options.deadline=0.7", "--set", "policy.options.backoff=0.05")
BROKEN = {
    "500": PlainTextResponse("worker died", 500),
    "garbage": PlainTextResponse("<html>Bad gateway</html>"),
    "half a JSON": PlainTextResponse('{"choices": [{"mess'),
    "half a body": Response(b'{"cho', headers={"content-length": "999"}),
}


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """Exit code and what was printed, as the console script ends."""
    monkeypatch.setattr(sys, "argv", ["treewright", *words])
    monkeypatch.setenv("COLUMNS", "200")
    code: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.mark.parametrize("kind", ["down", *BROKEN])
def test_a_broken_server_is_told_before_the_deadline_and_ends_eval_with_its_cause(
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transport, "TOLD_AFTER", 0.1)
    with threaded(Server(BROKEN.get(kind))) as url, caplog.at_level(logging.WARNING):
        spec = "openai:m@http://127.0.0.1:9/v1" if kind == "down" else f"openai:m@{url}"
        code, told = command(monkeypatch, capsys, "eval", "--suites", "maze", "--tasks", "2", "--policy", spec, *SHORT)
    notices = [r.getMessage() for r in caplog.records if "trying again in" in r.getMessage()]
    cause = {"down": "ConnectError", "500": "HTTP 500: worker died", "half a body": "RemoteProtocolError"}
    why = cause.get(kind, "malformed answer")
    assert code == 2 and "PolicyFault" in told and why in told and "nan %" not in told and "Traceback" not in told
    assert len(notices) == 1, "once for an outage, however many draws wait"
    assert why in notices[0] and "policy.options.deadline" in notices[0]


def test_eval_and_run_fail_where_the_server_breaks_in_the_middle_of_an_episode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def once(body: Any) -> dict[str, Any] | PlainTextResponse:
        return said('go {"to": "1,0"}') if len(body["messages"]) == 2 else PlainTextResponse("no memory", 500)

    with threaded(Server(once)) as url:
        policy = ("--policy", f"openai:m@{url}", *SHORT)
        code, told = command(monkeypatch, capsys, "eval", "--suites", "maze", "--tasks", "2", *policy)
        lost = re.findall(r"maze: (\d) of 2 tasks have no result, PolicyFault", told)
        assert code == 2 and "nan %" not in told and sum(map(int, lost)) == 2
        assert "HTTP 500: no memory" in told and "type the same line again" in told
        code, told = command(monkeypatch, capsys, "run", "maze/0", "--expansions", "0", *policy)
        assert code == 2 and "HTTP 500: no memory" in told


def test_eval_of_a_server_that_recovers_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    server = Server(said("stop {}"))
    server.queue.extend([PlainTextResponse("busy", 503)] * 2)
    with threaded(server) as url:
        policy = ("--policy", f"openai:m@{url}", "--set", "policy.options.backoff=0.01")
        code, told = command(monkeypatch, capsys, "eval", "--suites", "maze", "--tasks", "1", *policy)
    assert code == 0 and "0.0 %" in told and "no result" not in told


def test_an_outage_is_told_after_two_seconds_then_every_half_minute_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    outage, told = Outage(), []
    for _ in range(200):  # an attempt every half second for 100 seconds
        if outage.due(now[0], 0.5):
            told.append(now[0] - 100.0)
        now[0] += 0.5
    assert told[0] <= TOLD_AFTER and all(29 <= b - a <= TOLD_AGAIN for a, b in itertools.pairwise(told))
    assert len(told) == 4
    outage.over()
    assert not outage.due(now[0], 0.5) and outage.due(now[0], 2.0)


async def test_a_server_that_says_nothing_at_all_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    told, lines = asyncio.Event(), []

    def warning(line: Any, *values: Any) -> None:
        lines.append(line % values)
        told.set()

    async def slow(body: Any) -> dict[str, Any]:
        await told.wait()
        return said("look {}")

    monkeypatch.setattr(transport, "TOLD_AGAIN", 0.05)
    monkeypatch.setattr(transport.log, "warning", warning)
    async with opened(Server(slow)) as policy:
        assert (await policy.draw(root(policy), [1], 9))[0].text == "look {}"
    assert lines[0].startswith("openai:m: still waiting for http://127.0.0.1")


@pytest.mark.parametrize("options, says", [
    ({"deadlin": 3}, "takes no option 'deadlin'; did you mean 'deadline'"),
    ({"deadline": "soon"}, "deadline = 'soon'; give a number above 0"),
    ({"deadline": 0}, "deadline = 0; give a number above 0"),
    ({"temperature": -1}, "temperature = -1; give a number of at least 0"),
    ({"backoff": None}, "backoff = None; give a number"),
])  # fmt: skip
def test_an_option_that_cannot_be_is_told_when_the_policy_is_opened(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TreewrightError, match=says):
        open_policy("openai:m@http://127.0.0.1:9/v1", **options)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9999999/v1", "http:///v1", "http://host:port/v1"])
def test_an_address_that_cannot_be_is_told_when_the_policy_is_opened(url: str) -> None:
    with pytest.raises(TreewrightError, match=r"is no address of a server.*write http://HOST:PORT/v1"):
        open_policy(f"openai:m@{url}")


def test_every_option_of_every_policy_is_known_to_the_hints() -> None:
    import inspect

    from treewright.agent.policies.engine import EnginePolicy
    from treewright.agent.policies.hf import HFPolicy
    from treewright.agent.policies.langgraph import GraphPolicy
    from treewright.agent.policies.openai import OpenAIPolicy
    from treewright.agent.policies.scripted import ScriptedPolicy
    from treewright.agent.policies.vllm_client import VLLMPolicy

    for kind in (EnginePolicy, HFPolicy, GraphPolicy, OpenAIPolicy, ScriptedPolicy, VLLMPolicy):
        found = inspect.signature(kind.__init__).parameters.values()
        taken = {p.name for p in found if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        assert taken - {"template", "stop_ids", "logprob", "drafts"} <= set(OPTIONS), kind


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "DESK_KEY"])
@pytest.mark.parametrize("held", ["sk-secret", None])
def test_a_key_that_is_refused_is_told_by_the_name_of_its_variable_and_never_shown(
    variable: str,
    held: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(variable, raising=False)
    if held is not None:
        monkeypatch.setenv(variable, held)
    named = () if variable == "OPENAI_API_KEY" else ("--set", f"policy.options.api_key_env={variable}")
    server = Server(PlainTextResponse(f"bad key {held}", 401))
    with threaded(server) as url:
        words = ("run", "maze/0", "--expansions", "0", "--policy", f"openai:m@{url}", *SHORT, *named)
        code, told = command(monkeypatch, capsys, *words)
    sent = {headers.get("authorization") for headers in server.headers}
    assert code == 2 and "HTTP 401" in told and f"set {variable}" in told and "sk-secret" not in told
    assert sent == {f"Bearer {held}" if held else None}


@pytest.mark.parametrize("word", ["OPENAI_API_KEY", "api_key_env", "key_header", "deadline", "attempt_timeout"])
def test_the_page_of_policies_says_how_keys_are_given_and_how_long_a_draw_may_take(word: str) -> None:
    assert f"`{word}`" in (Path(__file__).parents[2] / "docs/policies.md").read_text()
