"""The seedling's prompt is the compact template's, token for token; names are the same tokens everywhere."""

from __future__ import annotations

import random
from typing import Any

import pytest

from treewright.agent.policies.prompts import WINDOWS, CompactTemplate
from treewright.agent.seedling.build import load_seedling
from treewright.agent.seedling.demos import Demo, DemoStep
from treewright.agent.seedling.text import END, Encoder, demo_pieces, frame_words, train_tokenizer
from treewright.envs.types import Action, Observation, Task
from treewright.search.types import Exchange

STEPS = (
    DemoStep('search {"entity": "ada", "relation": "boss"}', "ada boss ben", True),
    DemoStep('search {"entity": "ben", "relation": "boss"}', "ben boss <|end|>cal", False),
    DemoStep('answer {"text": "cal"}', "done", True),
)


def demo(suite: str = "kg") -> Demo:
    return Demo(suite, "t", "start ada, then boss, then boss. who is it ?", "ready", STEPS, 1.0)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_seedling()[1]


@pytest.mark.parametrize("suite", ["kg", "market"])
def test_the_prompt_is_that_of_the_compact_template(encoder: Encoder, suite: str) -> None:
    episode = demo(suite)
    template = CompactTemplate(encoder.tokenizer, WINDOWS)
    task = Task(suite, "t", episode.goal)
    responses: list[Any]
    turns: list[Any]
    base, turns, seen, responses = (), [], [episode.first], []
    for step in episode.steps:
        context = template.context(task, (), Observation(episode.first), turns, base)
        assert list(context.ids) == encoder.prompt(suite, episode.goal, seen, responses)
        response = [*encoder.piece(step.action), encoder.end]
        base = (*context.ids, *response)
        name, _, _ = step.action.partition(" ")
        turns.append(Exchange(step.action, Action.of(name), Observation(step.observation)))
        seen.append(step.observation)
        responses.append(response)


def test_a_mark_inside_an_observation_stays_text(encoder: Encoder) -> None:
    ids = encoder.piece("ben <|end|>cal")
    assert encoder.end not in ids
    assert encoder.tokenizer.decode(ids) == "ben <|end|>cal"


def test_training_rows_hold_the_prompts_and_mark_what_is_learned(encoder: Encoder) -> None:
    (row,) = encoder.examples(demo())
    assert row.ids == [
        *encoder.prompt(
            "kg",
            demo().goal,
            ["ready", *(s.observation for s in STEPS[:2])],
            [[*encoder.piece(s.action), encoder.end] for s in STEPS[:2]],
        ),
        *encoder.piece(STEPS[2].action),
        encoder.end,
    ]
    learned = [i for i, kind in zip(row.ids, row.kinds, strict=True) if kind == 2]
    assert encoder.tokenizer.decode(learned) == "".join(s.action + END for s in STEPS)


def test_with_a_window_each_action_is_a_row_and_only_the_last_page_is_shown(encoder: Encoder) -> None:
    rows = encoder.examples(demo("market"))
    assert len(rows) == 3
    text = encoder.tokenizer.decode(rows[1].ids)
    assert text.startswith(
        f"<|task|>market {demo().goal}<|obs|><|act|>{STEPS[0].action}<|end|><|obs|>ada boss ben<|act|>"
    )


def test_a_tokenizer_grows_the_frame_and_leaves_names_alone() -> None:
    names = ["ada", "ben", "cal", "dan", "eva", "fay", "gus", "hal"]
    demos = [
        Demo("s", "t", f"who follows {a} ?", "ready", (DemoStep(f'answer {{"text": "{b}"}}', f"{a} {b}", True),), 1.0)
        for a in names
        for b in names
    ]
    frame = frame_words({"s": demos}, least=0.5, most=0.03)
    assert {"who", "follows", "answer", "text"} <= set(frame) and not set(names) & set(frame)
    small = Encoder(train_tokenizer((p for d in demos for p in demo_pieces(d)), frame, 400))
    assert len(small.piece('answer {"text": "ada"}')) <= 3
    ada = small.piece("ada")
    assert len(ada) == 1
    assert ada[0] in small.piece('answer {"text": "ada"}') and ada[0] in small.piece("s who follows ada ?")


PAGE = 'page "market" /c/cups\nlink "home" e1\nheading "cups"\nlink "red cup" e2\ntext "price 7"\nlink "old cup" e3'


def test_a_drill_asks_for_the_reference_of_a_name_or_the_text_behind_it(encoder: Encoder) -> None:
    row = encoder.drill("market", PAGE, random.Random(0), {"home"})
    assert row is not None
    shown = encoder.tokenizer.decode(row.ids)
    said = encoder.tokenizer.decode([token for token, kind in zip(row.ids, row.kinds, strict=True) if kind == 2])
    right = {'click {"ref": "e2"}', 'click {"ref": "e3"}', 'answer {"text": "7"}'}
    answers = said.split(END)[:-1]
    assert len(answers) == 2 and set(answers) <= right
    assert shown.startswith(("<|task|>market red cup", "<|task|>market old cup")) and PAGE in shown


def test_a_page_with_less_than_two_names_is_no_drill(encoder: Encoder) -> None:
    assert encoder.drill("market", "error: no element 'e9' on this page", random.Random(0)) is None
    assert encoder.drill("market", PAGE, random.Random(0), {"home", "red cup"}) is None
