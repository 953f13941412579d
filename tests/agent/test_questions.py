"""ProbTree with a model for each part: comparison questions, confidences by hand, the command line."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.runs.probtree import Calibration
from treewright.agent.runs.questions import REASON, Asker, sub_questions
from treewright.envs import TreewrightError
from treewright.search.planning.all_nodes import solve
from treewright.search.store import TreeStore
from treewright.search.types import NodeKind

WHO = "who was born earlier, Ada or Bob?"
BORN = {"when was Ada born?": "1960", "when was Bob born?": "1971"}


class Told:
    """Knows birthdays from passages alone, compares two years, and is unsure of what it makes up."""

    def __init__(self, sure: float = 0.8) -> None:
        self.prompts: list[Any]
        self.sure, self.prompts = sure, []

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.prompts.append(prompt)
        question = next((line[10:] for line in prompt.splitlines() if line.startswith("Question: ")), "")
        if "Which simpler questions" in prompt:
            return "\n".join(f"- {part}" for part in BORN) if question == WHO else "none"
        if "facts above" in prompt:
            return "Ada" if "Ada born? 1960" in prompt and "Bob born? 1971" in prompt else "nobody"
        return BORN.get(question, "1960") if "passages above" in prompt else "1960"

    async def first_tokens(self, prompts: Sequence[str]) -> list[Any]:
        (prompt,) = prompts
        unsure = f"Question: {WHO}" in prompt and "Answer: 1960" in prompt
        closed = not prompt.startswith(("Ada", "Question", "when"))
        yes = 0.2 if unsure or (closed and "born" not in prompt) else self.sure
        return [{"yes": math.log(yes), "no": math.log(1 - yes)}]


class Found:
    async def search(self, query: str, k: int) -> list[Any]:
        return []


def asker(**options: Any) -> Asker:
    return Asker(Told(), **options)


async def test_a_comparison_is_answered_by_the_name_that_the_parent_reasons_out() -> None:
    ask = asker(retriever=Found(), closed=False)
    found = await asyncio.wait_for(solve(WHO, ask), 120)
    assert not_none(found.answer).text == "Ada", "the last child's answer is a year"
    # decomposition, two children, reasoning: all .8, so their geometric mean is .8, over .2 for the year
    assert not_none(found.answer).confidence == pytest.approx(0.8)


async def test_confidences_by_hand_and_calibrated_by_kind() -> None:
    plain = asker(retriever=Found())
    assert (await plain.answer("opened", "when was Bob born?")).confidence == pytest.approx(0.8)
    ask = asker(retriever=Found(), calibrations={"opened": Calibration(0.5, 0.0)})
    half = 1 / (1 + math.exp(-0.5 * math.log(0.8 / 0.2)))
    assert (await ask.answer("opened", "when was Bob born?")).confidence == pytest.approx(half)
    parts = await plain.split(WHO)
    assert not_none(parts).combine == "mean" and not_none(parts).confidence == pytest.approx(0.8)
    assert not_none(parts).goals == (*BORN, f"{REASON}{WHO} | when was Ada born? #1 | when was Bob born? #2")


def prompts_of(asked: Any) -> list[str]:
    return list(asked.model.prompts)


async def test_a_sure_answer_needs_no_parts_and_depth_bounds_them() -> None:
    ask = asker()
    await solve("when was Ada born?", ask)
    assert not any("facts above" in p for p in prompts_of(ask))
    flat = asker(retriever=Found(), depth=0)
    assert not_none((await solve(WHO, flat)).answer).text == "1960"
    assert not any("Which simpler" in p for p in prompts_of(flat))


async def test_how_deep_a_filled_in_question_lies_is_known() -> None:
    ask = asker()
    ask._deep.append((__import__("re").compile("(?:who leads )(?:.*)(?: now)"), 1))
    assert ask._depth("who leads Paris now") == 1 and ask._depth("who leads Paris") == 0


def test_lines_that_name_later_answers_are_left_out() -> None:
    said = "Sure:\n- who leads #1?\n- where is Ada?\n- who leads #1?\n2. none\n- and #2?\n- more\n- most"
    assert sub_questions(said, 3) == ["where is Ada?", "who leads #1?", "and #2?"]
    assert sub_questions("none", 4) == [] and sub_questions("- none.", 4) == []


def test_wrong_options_are_refused() -> None:
    with pytest.raises(TreewrightError, match="way to answer"):
        asker(closed=False)
    with pytest.raises(TreewrightError, match="guessed"):
        asker(calibrations={"guessed": Calibration()})
    with pytest.raises(TreewrightError, match="hf:"):
        CliRunner().invoke(
            app, ["ask", "who?", "--policy", "scripted:treewright.agent.policies.uniform:uniform_calls"],
            catch_exceptions=False,
        )  # fmt: skip


def test_from_the_command_line_over_a_file_with_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import treewright.agent.policies.propose as opening

    class Policy(Told):
        async def close(self) -> None:
            pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "open_proposer", lambda section: Policy())
    (tmp_path / "q.jsonl").write_text("\n".join([
        json.dumps({"id": "1", "question": WHO, "answers": ["Ada"], "split": "test"}),
        *(json.dumps({"id": q, "question": q, "answers": [a], "split": "train"}) for q, a in BORN.items()),
    ]))  # fmt: skip
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "a", "text": "Ada was born in 1960, Bob in 1971."}))
    done = CliRunner().invoke(app, ["ask", "--questions", "q.jsonl", "--corpus", "c.jsonl", "--calibrate", "2"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "opened: 2 of 2 right" in done.output and "treewright view" in done.output
    assert set(json.loads((tmp_path / "runs/run/calibration.json").read_text())) == {"closed", "opened"}
    with TreeStore.open("runs/run/trees.sqlite", read_only=True) as store:
        (row,) = store.trees()
        assert NodeKind.ALL in store.load(row.tree_id).kind
