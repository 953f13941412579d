"""Evidence is checked like any argument, and equal actions share one step of the world."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from not_none import not_none
from walker import Likelihood, Walker

from treewright.envs import Action, Observation, Task
from treewright.envs.maze import SUITE, Maze
from treewright.envs.types import StepResult, ToolSpec
from treewright.search.engine import Settings, search
from treewright.search.evidence import Evidence
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.types import Budget, Context, Exchange

TASK = SUITE.tasks("train", 3)[2]
TURNS = (
    Exchange("look {}", Action.of("look"), Observation("Bob is the coach\nof Ada")),
    Exchange("fly {}", None, Observation("error: you cannot fly", "", provenance="error")),
)


def complaint(text: str, evidence: Evidence = Evidence()) -> str | None:
    spans, rest = evidence.split(text)
    assert "evidence" not in rest
    return evidence.complaint(spans, Action.of("go"), Task("own", "1", "find the boss"), Observation("a hall"), TURNS)


@pytest.mark.parametrize("span", ["bob is the  COACH of ada", "the boss", "a hall"])
def test_words_of_goal_and_observations_are_evidence_up_to_case_and_spaces(span: str) -> None:
    assert complaint(f"<evidence>{span}</evidence>\ngo {{}}") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<evidence>carl</evidence> go {}", "not in what you were shown"),
        ("<evidence>you cannot fly</evidence> go {}", "not in what you were shown"),
        ("<evidence>a</evidence> go {}", "too short"),
        ("<evidence>a hall</evidence><evidence>carl</evidence> go {}", "'carl'"),
        ("go {}", "name what you act on"),
    ],
)
def test_what_was_not_seen_is_no_evidence(text: str, says: str) -> None:
    assert says in not_none(complaint(text))


def test_tools_that_need_none_may_do_without_but_not_with_a_wrong_one() -> None:
    assert complaint("go {}", Evidence(tools=["buy"])) is None
    assert "not in what" in not_none(complaint("<evidence>carl</evidence> go {}", Evidence(tools=["buy"])))


async def test_missing_evidence_is_an_error_observation_that_counts_and_the_tree_stays_exact() -> None:
    table = [
        ('<evidence>reach 2,2</evidence>\nmove {"to": "east"}', 0.4),
        ('move {"to": "east"}', 0.3),
        ("stop {}", 0.3),
    ]
    tree = await search(
        TASK, SUITE, Walker(table), rule=best_first(draws=3), evaluator=Likelihood(), budget=Budget(expansions=8),
        settings=Settings(close=True, max_tokens=80), evidence=Evidence(tools=["move"]),
    )  # fmt: skip
    assert tree.exact
    bare = [i for i in range(1, len(tree)) if tree.text[i].startswith("move")]
    named = [i for i in range(1, len(tree)) if tree.text[i].startswith("<evidence>")]
    assert bare and named
    assert all("name what you act on" in not_none(tree.observation[i]).text for i in bare)
    assert any(tree.action[i] == Action.of("move", to="east") and not tree.error[i] for i in named)


class Counted(Maze):
    taken = 0

    async def step(self, action: Action, key: int) -> StepResult:
        Counted.taken += 1
        return await super().step(action, key)


@pytest.mark.parametrize("share", [False, True])
async def test_equal_actions_in_other_words_are_separate_nodes_with_one_step_of_the_world(share: bool) -> None:
    table = [
        ('move {"to": "east"}', 0.3),
        ('move {"to":"east"}', 0.3),
        ('move  {"to": "south"}', 0.2),
        ("stop {}", 0.2),
    ]
    Counted.taken = 0

    async def opened() -> Counted:
        return Counted()

    settings = Settings(share_results=share, close=True)
    tree = await search(
        TASK, Pool(opened), Walker(table), rule=best_first(draws=4, eager=True), budget=Budget(expansions=6),
        settings=settings,
    )  # fmt: skip
    plain = await search(
        TASK, SUITE, Walker(table), rule=best_first(draws=4, eager=True), budget=Budget(expansions=6),
        settings=Settings(close=True),
    )  # fmt: skip
    assert tree.digest() == plain.digest(), "the maze is deterministic: sharing changes no node"
    twins = [
        (a, b)
        for node in range(len(tree))
        for a in tree.children[node]
        for b in tree.children[node]
        if a < b and tree.action[a] is not None and tree.action[a] == tree.action[b]
    ]
    assert twins
    spent = tree.spent.env_steps + tree.spent.closing_steps
    assert (spent < plain.spent.env_steps + plain.spent.closing_steps) is share


class Reads(Walker):
    """Keeps the goals of its prompts, and answers to the form that they ask for."""

    def __init__(self) -> None:
        super().__init__([('<evidence>reach 2,2</evidence>\nmove {"to": "east"}', 0.5), ('move {"to": "east"}', 0.5)])
        self.goals: list[str] = []

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        self.goals.append(task.goal)
        return super().context(task, tools, first, turns, base)


FORMS = {
    "all": (Evidence(), r"^Before each action, name what you act on: <evidence>words .* as they stand there</evid"),
    "some": (Evidence(tools=["buy", "ask"]), r"^Before the actions ask, buy, name .*Without it nothing is done\.$"),
    "none": (Evidence(tools=()), r"^Where you name what you act on, .*</evidence>$"),
    "judged": (Evidence(judge=object()), r"<evidence>what .* says, which must be a reason for the action</evidence>"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", FORMS)
async def test_the_policy_is_told_the_form_behind_the_goal_at_every_node(case: str) -> None:
    evidence, form = FORMS[case]
    assert re.search(form, evidence.form)
    if case == "judged":
        return
    policy = Reads()
    tree = await search(TASK, SUITE, policy, rule=best_first(draws=2), budget=Budget(expansions=3), evidence=evidence)
    assert len(policy.goals) > 2 and set(policy.goals) == {f"{TASK.goal}\n\n{evidence.form}"}
    assert tree.task == TASK and not any("Before" in tree.text[i] for i in range(len(tree)))
    plain = Reads()
    await search(TASK, SUITE, plain, rule=best_first(draws=2), budget=Budget(expansions=1))
    assert set(plain.goals) == {TASK.goal}


async def test_the_words_of_the_form_are_no_evidence() -> None:
    said = [('<evidence>name what you act on</evidence>\nmove {"to": "east"}', 1.0)]
    budget = Budget(expansions=1)
    tree = await search(TASK, SUITE, Walker(said), rule=best_first(draws=1), budget=budget, evidence=Evidence())
    assert "is not in what you were shown" in not_none(tree.error[1])
