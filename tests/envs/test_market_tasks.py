"""The market's worlds, tasks and oracle, without a browser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from treewright.envs.types import Action, Observation, Turn
from treewright.envs.web.market_tasks import KINDS, graded, make_tasks, oracle, wanted
from treewright.envs.web.market_world import Refused, World


def worlds(split: str, count: int = 80) -> list[Any]:
    return [World.build(task.seed, split) for task in make_tasks(split, count)]


def test_splits_share_no_task_no_world_and_no_name() -> None:
    train, test = make_tasks("train", 400), make_tasks("test", 200)
    assert not {t.id for t in train} & {t.id for t in test}
    assert not {t.seed for t in train} & {t.seed for t in test}
    assert len({(t.goal, t.seed) for t in [*train, *test]}) == 600
    names = [
        {
            name
            for w in worlds(split)
            for name in [p.name for p in w.products.values()] + [p.title for p in w.posts.values()]
        }
        for split in ("train", "test")
    ]
    assert len(names[1]) > 40 and not names[0] & names[1]


def test_tasks_are_the_same_every_time_and_every_kind_occurs() -> None:
    assert make_tasks("test", 5) == make_tasks("test", 24)[:5]
    assert {t.truth["kind"] for t in make_tasks("test", 8)} == set(KINDS)


def test_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        make_tasks("dev", 1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_world_can_pose_every_task(split: str) -> None:
    for world in worlds(split):
        assert {o.status for o in world.orders.values()} == {"open", "shipped"}
        assert sum(p.author == "you" for p in world.posts.values()) == 1
        assert all(p.stock >= 3 for p in world.products.values())
        for category in world.categories():
            prices = [p.price for p in world.products.values() if p.category == category]
            assert len(set(prices)) == len(prices) >= 3
        assert len({p.title for p in world.posts.values()}) == 4


def test_exported_world_comes_back_equal() -> None:
    world = World.build(5, "train")
    world.put_in_cart(next(iter(world.products)), 2)
    again = World.from_json(world.to_json())
    assert again == world and again.to_json() == world.to_json()
    assert list(again.products) == list(world.products)
    again.buy()
    assert again.to_json() != world.to_json()


def test_shop_refuses_what_cannot_be_done_and_stays_as_it_was() -> None:
    world = World.build(5, "train")
    before = world.to_json()
    shipped = next(n for n, o in world.orders.items() if o.status == "shipped")
    foreign = next(n for n, p in world.posts.items() if p.author != "you")
    item = next(iter(world.products))
    for call in (
        lambda: world.cancel(shipped),
        lambda: world.delete_post(foreign),
        lambda: world.buy(),
        lambda: world.put_in_cart(item, 1000),
        lambda: world.put_in_cart("no-such", 1),
        lambda: world.write_post("  "),
    ):
        with pytest.raises(Refused):
            call()
    assert world.to_json() == before


def test_buying_takes_stock_and_cancelling_gives_it_back() -> None:
    world = World.build(5, "train")
    item = next(iter(world.products))
    stock = world.products[item].stock
    world.put_in_cart(item, 2)
    number = world.buy()
    assert world.products[item].stock == stock - 2 and not world.cart
    world.cancel(number)
    assert world.products[item].stock == stock and world.orders[number].status == "cancelled"


def test_reward_needs_the_right_answer_and_the_exact_state() -> None:
    for task in make_tasks("test", 16):
        right, untouched = wanted(task), World.build(task.seed, task.split)
        answer = task.truth["answer"]
        assert graded(task, f" {answer.upper()}. ", right.to_json()) == 1.0
        assert graded(task, "nothing", right.to_json()) == 0.0
        right.write_post("spam")
        assert graded(task, answer, right.to_json()) == 0.0
        if answer == "done":
            assert graded(task, answer, untouched.to_json()) == 0.0


def test_goals_and_tasks_can_be_written_as_json() -> None:
    for task in make_tasks("train", 16):
        assert json.loads(json.dumps(dict(task.truth))) == task.truth
        assert task.horizon >= KINDS[task.truth["kind"]] + 3
        assert task.goal == task.goal.lower() and len(task.goal) < 70


def test_oracle_goes_home_when_it_sees_no_page() -> None:
    task = make_tasks("test", 1)[0]
    lost = Turn(None, Observation("error: no such tool", "", provenance="error"))
    assert oracle(task, [lost], ()) == Action.of("goto", path="/")
