"""Naming a policy, and what every policy offers."""

from __future__ import annotations

import subprocess
import sys
from random import Random
from typing import Any

import pytest

from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import Policy
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task


def speak(task: Task, turns: Any, tools: Any, rng: Random) -> str:
    return f"{tools[0].name} {{}}" if tools else "look {}"


def test_a_function_is_opened_by_its_name() -> None:
    policy = open_policy("scripted:os.path:join", version="v1")
    assert isinstance(policy, Policy)
    assert (policy.name, policy.version) == ("scripted:os.path:join", "v1")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("scriptd:a:b", "did you mean 'scripted'"),
        ("gpt", "known: scripted, seedling, hf, openai, vllm"),
        ("scripted:json", "write scripted:module:function"),
        ("scripted:json:dump_", "did you mean 'dump'"),
        ("scripted:no_such_module_here:f", "cannot import"),
        ("scripted:json:__name__", "not a function"),
        ("scripted:json:dumps", "a script takes (task, turns, tools, rng)"),
        ("seedling:/nowhere", "no config.json"),
        ("hf:", "names no model"),
        ("openai:gpt", "write openai:MODEL@http"),
        ("vllm:@http://x", "write vllm:MODEL@http"),
    ],
)
def test_a_wrong_spec_says_what_to_type(spec: str, says: str) -> None:
    with pytest.raises(TreewrightError) as caught:
        open_policy(spec)
    assert says in str(caught.value)


def test_the_face_of_policies_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, treewright.agent.policies.policy, treewright.agent.policies.prompts,"
        "treewright.agent.policies.scripted,"
        "treewright.search.screen; bad = {'torch', 'transformers'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
