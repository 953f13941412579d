"""Suites and tasks as they are written on a command line, whatever slashes and commas stand in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from treewright.envs.spelling import split_suites, split_task


@pytest.mark.parametrize(
    ("text", "suite", "which"),
    [
        ("kg/3", "kg", "3"),
        ("kg", "kg", "0"),
        ("own/t3", "own", "t3"),
        ("own/chapter/two", "own", "chapter/two"),
        ("mcp:shop.toml/0", "mcp:shop.toml", "0"),
        ("mcp:./a/shop.toml/first", "mcp:./a/shop.toml", "first"),
        ("mcp:/a/b/shop.toml", "mcp:/a/b/shop.toml", "0"),
        ("mcp:--sandboxed /usr/bin/python3 server.py plain/1", "mcp:--sandboxed /usr/bin/python3 server.py plain", "1"),
        ("mcp:python server/main.py", "mcp:python server/main.py", "0"),
        ("mcp:uvx mcp-server-time/test-explore", "mcp:uvx mcp-server-time", "test-explore"),
        ("mcp:http://127.0.0.1:9/mcp/0", "mcp:http://127.0.0.1:9/mcp", "0"),
        ("mcp:http://127.0.0.1:9/mcp", "mcp:http://127.0.0.1:9/mcp", "0"),
        ("gym:phys2d/CartPole-v1/0", "gym:phys2d/CartPole-v1", "0"),
        ("gym:phys2d/CartPole-v1", "gym:phys2d/CartPole-v1", "0"),
        ("gym:CartPole-v1/test-3", "gym:CartPole-v1", "test-3"),
        ("agentdojo:banking/user_task_3", "agentdojo:banking", "user_task_3"),
        ("desk:Desk/t3", "desk:Desk", "t3"),
        ("desk:Desk/a/b", "desk:Desk", "a/b"),
        ("my.desk:Desk/a/b/3", "my.desk:Desk", "a/b/3"),
        ("desk:Desk/", "desk:Desk", "0"),
        ("desk:Desk", "desk:Desk", "0"),
        ("agent:bin/mine/0", "agent:bin/mine", "0"),
        ("harbor:data/tasks/hello", "harbor:data/tasks", "hello"),
        ("harbor:/data/tasks?engine=podman/hello", "harbor:/data/tasks?engine=podman", "hello"),
        ("harbor:data/tasks?network=none", "harbor:data/tasks?network=none", "0"),
        (f"harbor:{Path(__file__).parent}", f"harbor:{Path(__file__).parent}", "0"),
    ],
)
def test_a_task_is_told_from_its_suite(text: str, suite: str, which: str) -> None:
    assert split_task(text) == (suite, which)


@pytest.mark.parametrize(
    ("text", "suites"),
    [
        ("kg, stdlib", ["kg", "stdlib"]),
        (",kg,", ["kg"]),
        ("mcp:uvx x --ids=1,2,maze", ["mcp:uvx x --ids=1,2", "maze"]),
        ("mcp:cmd 'a,maze',kg", ["mcp:cmd 'a,maze'", "kg"]),
        ('kg,mcp:cmd "one, two"', ["kg", 'mcp:cmd "one, two"']),
        ("mcp:http://h/mcp?x=1,2,mcp:shop.toml,kg", ["mcp:http://h/mcp?x=1,2", "mcp:shop.toml", "kg"]),
        ("mcp:cmd --map a:b,nomodule:d", ["mcp:cmd --map a:b,nomodule:d"]),
        ("mcp:cmd -x,json:loads", ["mcp:cmd -x", "json:loads"]),
        ("kg,maz", ["kg", "maz"]),
        ("mcp:shop.toml,maz", ["mcp:shop.toml", "maz"]),
        ("gym:CartPole-v1,maz", ["gym:CartPole-v1", "maz"]),
    ],
)
def test_a_comma_in_a_command_belongs_to_it(text: str, suites: list[str]) -> None:
    assert split_suites(text) == suites


def test_known_ids_tell_where_a_command_ends() -> None:
    ids = ("b", "a/b", "2")
    assert split_task("agent:python run.py {goal}/a/b", ids) == ("agent:python run.py {goal}", "a/b")
    assert split_task("agent:python run.py {goal}/2", ids) == ("agent:python run.py {goal}", "2")
    assert split_task("agent:python run.py {goal}/1", ids) == ("agent:python run.py {goal}", "1")
    assert split_task("agent:bin/run.py {goal}", ids) == split_task("agent:bin/run.py {goal}")
