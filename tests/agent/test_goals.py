"""Goals in a model's words: kept where they say what is checked, the template's otherwise."""

from __future__ import annotations

import pytest

from treewright.agent.runs.goals import fits, worded
from treewright.search.types import PolicyFault

LAMP = {
    "id": "n1",
    "goal": 'open the link "lamps"; then open the link "lamp 2"',
    "reward": {"url": "/lamp/2", "text": ["Lamp 2"]},
}
HELP = {"id": "n2", "goal": 'open the link "help"', "reward": {"url": "/help", "text": ["Help"]}}


class Pen:
    """Writes what it is told, by a word of the prompt; remembers the prompts."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.asked = answers, list[str]()

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.asked.append(prompt)
        said = next(answer for word, answer in self.answers.items() if word in prompt)
        if said == "down":
            raise PolicyFault("the server is down")
        return said


async def test_a_goal_that_names_the_outcome_replaces_the_template() -> None:
    pen = Pen({"/lamp/2": '\nGoal: "Show the page of lamp 2."\nBecause …', "/help": "Find the help page of this shop."})
    tasks, count = await worded([LAMP, HELP], pen)
    assert [task["goal"] for task in tasks] == ["Show the page of lamp 2.", "Find the help page of this shop."]
    assert count == 2 and [task["reward"] for task in tasks] == [LAMP["reward"], HELP["reward"]]
    assert '- open the link "lamps"\n- open the link "lamp 2"' in pen.asked[0] and "- Lamp 2" in pen.asked[0]


@pytest.mark.parametrize(
    "said", ["", "ok", "Click e12 to see the lamp", "Buy some bread for dinner", "x " * 200, "down"]
)
async def test_what_says_nothing_of_the_outcome_leaves_the_template(said: str) -> None:
    tasks, count = await worded([LAMP], Pen({"/lamp/2": said}))
    assert tasks == [LAMP] and count == 0


async def test_a_goal_that_two_tasks_share_is_neither_s() -> None:
    both = "Open the page of help about lamp 2"
    tasks, count = await worded([LAMP, HELP], Pen({"web site": both}))
    assert tasks == [LAMP, HELP] and count == 0 and fits(both, LAMP) and fits(both, HELP)
