"""The market and the bazaar without a browser show what Chromium shows."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest

from treewright.agent.seedling.demos import Bank, Noise, collect_demos, demonstrate
from treewright.envs.errors import InvalidAction, RestoreUnsupported, TreewrightError
from treewright.envs.registry import suite
from treewright.envs.types import Action
from treewright.envs.web.plain import plain_suite, read_html


@pytest.mark.parametrize(("name", "count"), [("market", 6), ("bazaar", 3)])
async def test_a_noisy_episode_is_the_same_with_and_without_a_browser(name: str, count: int) -> None:
    real = suite(name)
    plain = plain_suite(real)
    bank = Bank()
    async for _ in collect_demos(plain, plain.tasks("train", 30), Noise(rate=0.0), 0, bank):
        pass
    shown = await real.open()
    read = await plain.open()
    try:
        for task in real.tasks("train", 30 + count)[30:]:
            noise = Noise(rate=0.5, terminal=0.1)
            known = [deepcopy(bank) for _ in range(2)]
            here = await demonstrate(shown, real, task, noise, known[0], random.Random(task.id))
            there = await demonstrate(read, plain, task, noise, known[1], random.Random(task.id))
            assert there == here
    finally:
        await shown.close()
        await read.close()
        assert real.close is not None
        await real.close()


def test_html_is_read_line_by_line_with_references_for_what_can_be_used() -> None:
    html = (
        '<title>t</title><nav><a href="/">home</a></nav><h1>a  &quot;b&quot;</h1><p>price 3</p>'
        '<form action="/go"><input type="hidden" name="h" value="1"><input name="q" aria-label="search">'
        '<select name="n" aria-label="pieces"><option>1</option><option selected>2</option></select>'
        "<button>find</button></form><ul><li>left over</li></ul>"
    )
    view, used = read_html("/x", html)
    assert view.parts(1000)[0].splitlines() == [
        'page "t" /x',
        'link "home" e1',
        'heading "a \\"b\\""',
        'text "price 3"',
        'textbox "search" e2 = ""',
        'combobox "pieces" e3 = "2" from "1", "2"',
        'button "find" e4',
        'text "left over"',
    ]
    assert used["e4"].form is used["e2"].form
    assert used["e4"].form is not None
    assert used["e4"].form.fields == {"h": "1"}


async def test_what_a_page_has_not_is_refused_and_the_way_back_is_replay() -> None:
    plain = plain_suite(suite("market"))
    env = await plain.open()
    await env.reset(plain.tasks("train", 1)[0], 0)
    for wrong in (
        Action.of("click", ref="e99"),
        Action.of("goto", path="http://elsewhere.example/"),
        Action.of("back"),
        Action.of("part", number=2),
    ):
        with pytest.raises(InvalidAction):
            await env.step(wrong, 0)
    with pytest.raises(RestoreUnsupported):
        await env.snapshot()
    await env.close()


def test_other_suites_have_no_pages_without_a_browser() -> None:
    with pytest.raises(TreewrightError, match="market and bazaar"):
        plain_suite(suite("kg"))
