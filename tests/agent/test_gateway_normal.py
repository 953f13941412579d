"""What is learnt not to count in requests, and what still does: a replay is worth what it is compared by."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import pytest
from not_none import not_none
from walking import TASK, choices, walker_suite

from treewright.agent.gateway.normal import Normal, difference, learned
from treewright.agent.policies.scripted import scripted_choice
from treewright.search import Budget, NodeStatus, Pool, Settings, Tree, best_first, search

SHORT = ["the", "of", "ada", "ben", "holds", "no", "and", "what", "at", "or", "to"]
WORDS = [*SHORT, "dollars,", "40", "-", "(later)", "Walk.", "x_1", "é"]


def request(*texts: str) -> dict[str, Any]:
    roles = ["system", *["user"] * len(texts)]
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"of": ["spawns", 0], "said": said, "tools": [["go", "walks", {}]], "stop": [], "n": 1}


def same_under(first: Any, second: Any, *others: Any) -> list[bool]:
    """Whether the first request counts as each of the others, by what was learnt of it and the second."""
    made = Normal()
    fresh = made.with_rules(not_none(learned(made.of(first), made.of(second))))
    return [fresh.key(first) == fresh.key(other) for other in (second, *others)]


def fresh_id(rng: Random, kind: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    if kind == 0:
        return str(rng.randrange(100000, 999999))
    if kind == 1:
        return "".join(rng.choice(letters + "0123456789") for _ in range(7)) + str(rng.randrange(10))
    if kind == 2:
        return f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}"
    return f"{rng.choice(letters)}{rng.randrange(10)}-{rng.choice(letters)}{rng.randrange(100, 999)}"


def sample(rng: Random) -> tuple[list[list[str]], tuple[int, int]]:
    """Messages as words, with a line's end here and there, and where in them the id shall stand."""
    texts = [[rng.choice(WORDS) + rng.choice(["", "", "", "\n"]) for _ in range(rng.randrange(9))] for _ in range(3)]
    at = rng.randrange(3)
    texts[at] = texts[at] if rng.random() < 0.8 else []
    spot = rng.choice([0, len(texts[at]), rng.randrange(len(texts[at]) + 1)])
    if rng.random() < 0.2:  # alone on its line
        texts[at][:spot] = [*texts[at][:spot], "\n"]
        texts[at].insert(spot + 1, "\n")
        spot += 1
    texts[at].insert(spot, "")
    return texts, (at, spot)


@pytest.mark.parametrize("kind", range(4))
def test_an_id_anywhere_is_learnt_and_every_other_word_still_counts(kind: int) -> None:
    rng, learnt = Random(kind), 0
    for _ in range(400):
        texts, (at, spot) = sample(rng)

        def made(own: str, texts: list[list[str]] = texts, at: int = at, spot: int = spot) -> Any:
            told = [[*text] for text in texts]
            told[at][spot] = own
            return request(*(" ".join(text) for text in told))

        one, other, third = (made(fresh_id(rng, kind)) for _ in range(3))
        if one == other or learned(one, other) is None:
            continue
        learnt += 1
        found = same_under(one, other, third)
        assert found[0] and (found[1] or kind == 3), (one, other, third)  # ids of parts may agree in one by chance
        for i, text in enumerate(texts):
            for j, word in enumerate(text):
                if (i, j) != (at, spot) and word.strip():
                    changed = [[*inner] for inner in texts]
                    changed[i][j] = rng.choice(["bob", "991", "k3f9a2", "12:00:01"])
                    again = made(fresh_id(rng, kind), changed)
                    assert same_under(one, other, again) == [True, False], (one, other, again)
    assert learnt > 340


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("12:03:44 INFO start", "12:03:47 INFO start"),
        ("session\nk3f9a2\nask ada", "session\nb77xq1\nask ada"),
        ("req_8Kz1\nYou are helpful", "req_77Qp\nYou are helpful"),
        ("run 12", "run 13"),
        ("42", "43"),
        ("k3 b77 go", "c9 d01 go"),
    ],
)
def test_what_is_learnt_at_the_start_of_a_text_takes_nothing_out_elsewhere(first: str, second: str) -> None:
    balances = ["ada holds 120 dollars", "bob holds 990 dollars", "44", "45", "run 14", "run 15", "12:03:55 INFO start"]
    made = Normal()
    fresh = made.with_rules(not_none(learned(request(first, "go"), request(second, "go"))))
    assert fresh.key(request(first, "go")) == fresh.key(request(second, "go"))
    assert len({fresh.key(request(first, text)) for text in balances}) == len(balances)
    later = [{"of": ["continues", 1], "said": [{"role": "system", "content": text}]} for text in (first, second)]
    assert len({fresh.key(one, begins=False) for one in later}) == 2


def test_a_clock_is_whole_even_if_only_its_seconds_went_on() -> None:
    assert same_under(request("12:03:44 go"), request("12:03:47 go"), request("13:10:02 go")) == [True, True]


def test_an_id_is_known_in_the_requests_of_other_tasks() -> None:
    first, second = request("run k3f9a2: find the inn."), request("run b77xq1: find the inn.")
    fresh = Normal().with_rules(not_none(learned(first, second, "find the inn")))
    other = {fresh.key(request(f"run {own}: sell a cow.")) for own in ("c01", "d02")}
    assert fresh.key(first) == fresh.key(second) and len(other) == 1


def test_a_place_that_nothing_tells_from_others_is_not_learnt() -> None:
    same = "k7 " * 200
    assert learned(request(f"{same}k3f9 {same}"), request(f"{same}b77x {same}")) is None
    assert learned(request("go left"), request("go right")) is None
    assert learned(request("with 3"), request("with ada")) is None


def test_a_difference_is_told_by_its_words() -> None:
    told = difference(request("go to ada at once"), request("go to bob at once"))
    assert told == "'ada' in one is 'bob' in the other, at said/0:system/content"
    assert "other messages" in difference(request("a"), request("a", "b"))
    assert difference(request("a"), request("a")) == ""


async def searched(how: str) -> tuple[Tree, tuple[str, ...]]:
    made = walker_suite(env={"WALKER": how})
    pool, settings = Pool(made.open, 1, around=made.around), Settings(max_tokens=64, repairs=0)
    try:
        policy, budget = scripted_choice(choices), Budget(expansions=8)
        tree = await search(TASK, pool, policy, rule=best_first(draws=3), budget=budget, settings=settings)
        return tree, tuple(not_none(made.told)())
    finally:
        await pool.close()
        await not_none(made.close)()


async def test_replays_are_compared_by_words_when_an_id_was_learnt_at_the_start_of_a_line() -> None:
    tree, told = await searched("named")
    assert NodeStatus.UNREACHABLE not in tree.status and any("learnt" in line for line in told)
    tree, told = await searched("named company")
    assert NodeStatus.UNREACHABLE in tree.status
    (line, *_) = [line for line in told if "a replay asked otherwise" in line]
    assert "worlds.agent.normalise" in line and re.search("'(.)\\1\\1' in one is '(.)\\2\\2' in the other", line)
    for node in range(1, len(tree)):  # children stand beside siblings of the same company
        above, seen = tree.observation[tree.parent[node]], tree.observation[node]
        if above is not None and seen is not None and "you are at" in above.text and "you are at" in seen.text:
            assert above.text[-3:] == seen.text[-3:]


async def test_words_that_differ_between_two_beginnings_are_told_with_the_setting() -> None:
    _, told = await searched("fickle")
    assert "worlds.agent.normalise" in told[0] and re.search("'(calm|wild)+", told[0])
