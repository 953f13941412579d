"""Worked examples stand before a task as turns of its own conversation, and are the same for all tasks of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.prompts import template_for
from treewright.agent.policies.worked import Worked, WorkedStep, chosen, load_worked, save_worked
from treewright.agent.runs.doctor import Finding, causes, proposals
from treewright.envs import TreewrightError
from treewright.envs.types import Action, Observation, Task, ToolSpec
from treewright.search.types import Exchange

from .small import CHATML, NO_SYSTEM, SYSTEM_LAST, chatml, qwen3

TOOLS = [ToolSpec("search", "looks up", {"type": "object", "properties": {"entity": {"type": "string"}}})]
TASK = Task("kg", "1", "who is ada's mother?")
ONE = Worked(
    "kg", "who is bo's father?", "ready",
    (WorkedStep('search {"entity": "bo"}', "bo father cy"), WorkedStep('answer {"text": "cy"}', "done")),
)  # fmt: skip
TWO = Worked("kg", "who is di's aunt?", "ready", (WorkedStep('answer {"text": "ed"}', "done"),))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_worked(tmp_path / "examples.json", [ONE, TWO, Worked("desk", "file it", "letters", ())])
    return tmp_path / "examples.json"


def rendered(tokenizer: Any, messages: list[Any]) -> Any:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def conversation(system: Any) -> list[Any]:
    user, said = ("user",), ("assistant",)
    turns = [
        (*user, "who is bo's father?\n\nready"), (*said, 'search {"entity": "bo"}'), (*user, "bo father cy"),
        (*said, 'answer {"text": "cy"}'), (*user, "who is di's aunt?\n\nready"), (*said, 'answer {"text": "ed"}'),
        (*user, "who is ada's mother?\n\nseen"),
    ]  # fmt: skip
    return [{"role": "system", "content": system}, *({"role": role, "content": text} for role, text in turns)]


def test_the_prompt_is_the_conversation_with_the_examples_as_its_first_turns(file: Path) -> None:
    tokenizer = chatml(CHATML)
    template = template_for(tokenizer, None, "chat", examples=str(file))
    plain: Any = template_for(tokenizer, None, "chat")
    found = template.context(TASK, TOOLS, Observation("seen"), [], ())
    text = rendered(tokenizer, conversation(plain._rules(TOOLS)))
    assert found.ids == tuple(tokenizer.encode(text, add_special_tokens=False))
    base = (*found.ids, *template.response('search {"entity": "ada"}'))
    turn = Exchange('search {"entity": "ada"}', Action.of("search", entity="ada"), Observation("ada mother eve"))
    later = template.context(TASK, TOOLS, Observation("seen"), [turn], base)
    assert later.keep == len(base) and later.ids[: len(base)] == base, "what was sampled stays"
    other = template.context(Task("maze", "1", "find it"), TOOLS, Observation("seen"), [], ())
    assert other.ids == plain.context(Task("maze", "1", "find it"), TOOLS, Observation("seen"), [], ()).ids


async def test_what_tasks_share_is_computed_once(file: Path) -> None:
    policy = HFPolicy(
        qwen3(max_position_embeddings=2048), chatml(CHATML), template="chat", template_options={"examples": str(file)}
    )
    for name in ("ada", "bea", "cat"):
        task = Task("kg", name, f"who is {name}'s mother?")
        await policy.draw(policy.context(task, TOOLS, Observation("seen"), [], ()), [1], 2)
    whole = len(policy.context(TASK, TOOLS, Observation("seen"), [], ()).ids)
    assert policy.stats.cached_tokens > 1.6 * whole and policy.stats.prompt_tokens < 1.4 * whole
    await policy.close()


def test_templates_that_change_earlier_turns_refuse_examples(file: Path) -> None:
    with pytest.raises(TreewrightError, match="changes earlier turns"):
        template_for(chatml(SYSTEM_LAST), None, "chat", examples=str(file))
    template_for(chatml(NO_SYSTEM), None, "chat", examples=str(file))
    with pytest.raises(TreewrightError, match="treewright model examples"):
        template_for(chatml(CHATML), None, "chat", examples="no_such_file.json")


def test_the_chosen_examples_are_near_to_many_goals() -> None:
    goals = ["start a, then coach", "start b, then coach", "start c, then coach", "where is the lamp"]
    every = [Worked("kg", goal, "", ()) for goal in ("where is the cat", "start z, then coach", "nothing of this kind")]
    assert [one.goal for one in chosen(every, goals, 2)] == ["start z, then coach", "where is the cat"]
    assert len(chosen(every, goals, 9)) == 3 and chosen([], goals, 2) == []
    same = [Worked("kg", goals[0], "", ()), Worked("kg", "start y, then", "", ())]
    assert chosen(same, goals[:1], 1) == [same[1]], "an example does not help the task that it gives away"


def test_the_commands_write_examples_and_say_why_draws_are_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "says.py").write_text(
        "def talk(task, turns, tools, rng):\n    return ['I think so', 'fly {}', 'search {'][len(turns) % 3]\n"
    )
    done = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["model", "examples", "--suites", "kg", "--count", "2", "--pool", "6", "--out", "e.json"]
    )
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert [one.suite for one in load_worked("e.json")["kg"]] == ["kg", "kg"]
    line = ["doctor", "--suites", "kg", "--tasks", "1", "--policy", "scripted:says:talk"]
    told = CliRunner(env={"COLUMNS": "160"}).invoke(app, line)
    assert told.exit_code == 0, f"{told.output}\n{told.exception!r}"
    for word in ("no action in the text", "a tool that there is not", "0 %", "I think so", "try: "):
        assert word in told.output, told.output


def test_proposals_follow_from_what_was_seen() -> None:
    from treewright.agent.runs.doctor import Finding

    def finding(**changes: Any) -> Finding:
        given = dict(
            suite="kg", draws=10, valid=1, refused=0, cut=0, limit=48, solved=0.0, causes=(("x", 9),),
            shown="<tool_call>", prompt="", tokens=9,
        )  # fmt: skip
        return Finding(**{**given, **changes})

    lines = "\n".join(proposals([finding(cut=5)], "hf:some", {}, ["kg"]))
    for word in ("grammar=true", "model examples --suites kg", "tools_as=schema", "max_tokens=96", "train sft"):
        assert word in lines
    assert proposals([finding(valid=10)], "hf:some", {}, ["kg"]) == []
    assert "another policy" in proposals([finding(shown="")], "openai:x@http://y", {}, [])[0]
    assert causes([]) == []


def test_an_action_that_the_world_refuses_is_an_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asks.py").write_text(
        "def talk(task, turns, tools, rng):\n"
        '    return [\'search {"entity": "nobody", "relation": "mother"}\', \'fly {}\'][len(turns) % 2]\n'
    )
    line = ["doctor", "--suites", "kg", "--tasks", "1", "--policy", "scripted:asks:talk"]
    told = CliRunner(env={"COLUMNS": "160"}).invoke(app, line)
    assert told.exit_code == 0, f"{told.output}\n{told.exception!r}"
    for word in ("57 %", "an action, which the world refused", "a tool that there is not", "written: 'fly {}'"):
        assert word in told.output, told.output
