"""The knowledge graph: what a session promises, how often it lies, and that its oracle finds the way."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from treewright.envs import Action, Environment, InvalidAction, Restore, RestoreUnsupported, Snapshot, Turn, suite
from treewright.envs.retrieval.kg import ENTITIES, RELATIONS, SUITE, KnowledgeGraph, fact, make_suite, oracle
from treewright.envs.types import Suite, Task

TASK = SUITE.tasks("train", 1)[0]


async def opened(task: Task = TASK) -> KnowledgeGraph:
    env = KnowledgeGraph()
    await env.reset(task, 0)
    return env


async def play(
    chosen: Suite, task: Task, salt: int = 0, first: list[Action] | tuple[Any, ...] = ()
) -> tuple[float, list[Turn]]:
    """One episode of the oracle after some given actions; reward and history."""
    env = await chosen.open()
    history = [Turn(None, await env.reset(task, 0))]
    for step in range(task.horizon):
        action = first[step] if step < len(first) else oracle(task, history, await env.actions())
        result = await env.step(action, salt + step)
        history.append(Turn(action, result.observation))
        if result.terminated:
            return result.reward, history
    return 0.0, history


def test_the_registered_suite_is_the_default_variant() -> None:
    assert suite("kg") is SUITE
    assert isinstance(KnowledgeGraph(), Environment)


def test_entities_and_relations_are_distinct_short_lower_case_words() -> None:
    assert len(set(ENTITIES)) == 64 and len(set(RELATIONS)) == 8
    assert all(word.isalpha() and word.islower() and len(word) <= 6 for word in (*ENTITIES, *RELATIONS))
    assert not set(ENTITIES) & set(RELATIONS)


def test_train_and_test_never_share_a_world_or_an_id() -> None:
    train, test = SUITE.tasks("train", 5000), SUITE.tasks("test", 2000)
    assert len({t.seed for t in train}) == 5000 and len({t.seed for t in test}) == 2000
    assert not {t.seed for t in train} & {t.seed for t in test}
    assert not {t.id for t in train} & {t.id for t in test}
    assert SUITE.tasks("train", 50) == train[:50]


def test_a_question_visits_no_entity_twice_and_its_answer_follows_from_the_world() -> None:
    for task in SUITE.tasks("train", 300):
        path = [task.data["start"]]
        for relation in task.data["relations"]:
            path.append(fact(task.seed, path[-1], relation))
        assert len(set(path)) == len(path) and path[-1] == task.truth["answer"]
        assert task.horizon == len(task.data["relations"]) + 3
        assert path[0] in task.goal and path[-1] not in task.goal.split()


def test_question_lengths_cover_the_asked_range() -> None:
    assert {len(t.data["relations"]) for t in SUITE.tasks("train", 200)} == {2, 3, 4}
    assert {len(t.data["relations"]) for t in make_suite(hops=(1, 1)).tasks("test", 20)} == {1}


def test_a_relation_is_a_total_function_spread_over_all_entities() -> None:
    for relation in RELATIONS:
        image = [fact(7, entity, relation) for entity in ENTITIES]
        assert all(a != b for a, b in zip(image, ENTITIES, strict=True))
        assert 30 <= len(set(image)) <= 52  # a random function of 64 hits about 64 (1 - 1/e) ≈ 40


async def test_the_same_key_shows_the_same_and_another_key_may_not() -> None:
    env, action = await opened(), Action.of("search", entity="ada", relation="boss")
    shown = [(await env.step(action, key)).observation.text for key in range(300)]
    assert len(set(shown)) > 1
    again = await opened()
    assert [(await again.step(action, key)).observation.text for key in range(300)] == shown


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
async def test_the_share_of_wrong_look_ups_is_the_noise(noise: float) -> None:
    task = make_suite(noise=noise).tasks("train", 1)[0]
    env, wrong, draws = await opened(task), 0, 0
    for entity, relation, key in itertools.product(ENTITIES, RELATIONS, range(8)):
        text = (await env.step(Action.of("search", entity=entity, relation=relation), key)).observation.text
        assert text.split()[:2] == [entity, relation] and text.split()[2] in ENTITIES
        wrong += text.split()[2] != fact(task.seed, entity, relation)
        draws += 1
        env._evidence.clear()
    assert abs(wrong / draws - noise) <= 4 * (noise * (1 - noise) / draws) ** 0.5


async def test_the_oracle_always_succeeds_without_noise() -> None:
    clean = make_suite(noise=0.0)
    assert sum([(await play(clean, t))[0] for t in clean.tasks("test", 200)]) == 200


async def test_the_oracle_recovers_after_searches_off_the_chain() -> None:
    clean = make_suite(noise=0.0)
    for task in clean.tasks("test", 40):
        off = [Action.of("search", entity=e, relation="boss") for e in ("zoe", "max")]
        assert (await play(clean, task, first=off))[0] == 1.0


async def test_with_noise_the_oracle_is_right_about_as_often_as_no_hop_lied() -> None:
    rewards = [(await play(SUITE, t, salt=1000 * i))[0] for i, t in enumerate(SUITE.tasks("test", 600))]
    expected = (0.9**2 + 0.9**3 + 0.9**4) / 3
    assert abs(sum(rewards) / 600 - expected) < 0.08


async def test_reward_flips_happen_at_their_rate_and_repeat_with_the_key() -> None:
    flipping = make_suite(noise=0.0, reward_flip=0.15)
    tasks = flipping.tasks("train", 600)
    rewards = [(await play(flipping, t, salt=31 * i))[0] for i, t in enumerate(tasks)]
    assert abs(sum(rewards) / 600 - 0.85) < 0.06
    assert rewards == [(await play(flipping, t, salt=31 * i))[0] for i, t in enumerate(tasks)]


async def test_an_answer_ends_the_episode_and_only_the_exact_one_is_rewarded() -> None:
    for text, reward in ((TASK.truth["answer"], 1.0), (TASK.data["start"], 0.0)):
        env = await opened()
        result = await env.step(Action.of("answer", text=text), 3)
        assert (result.terminated, result.reward) == (True, reward)
        with pytest.raises(InvalidAction, match="over"):
            await env.step(Action.of("search", entity="ada", relation="boss"), 4)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Action.of("search", entity="adda", relation="boss"), "no entity 'adda', did you mean 'ada'"),
        (Action.of("search", entity="ada", relation="mothr"), "did you mean 'mother'"),
        (Action.of("serch", entity="ada", relation="boss"), "did you mean 'search'"),
        (Action.of("search", entity="ada"), "search needs relation"),
        (Action.of("search", entity="ada", relation="boss", relatoin="x"), "did you mean 'relation'"),
        (Action.of("search", entity=1, relation="boss"), "entity must be a string"),
        (Action.of("answer"), "answer needs text"),
        (Action((*Action.of("answer", text="ada").calls * 2,)), "only call"),
        (Action(()), "no action"),
    ],
)
async def test_an_invalid_action_says_what_is_wrong_and_changes_nothing(action: Action, message: str) -> None:
    env = await opened()
    await env.step(Action.of("search", entity="ada", relation="boss"), 1)
    before = await env.snapshot()
    with pytest.raises(InvalidAction, match=message):
        await env.step(action, 2)
    assert await env.snapshot() == before


async def test_a_snapshot_restores_into_another_session_and_both_go_on_apart() -> None:
    env, other = await opened(), KnowledgeGraph()
    seen = (await env.step(Action.of("search", entity="ada", relation="boss"), 1)).observation
    snapshot = await env.snapshot()
    assert snapshot.kind in env.restore_ways and snapshot.fingerprint == seen.fingerprint
    assert await other.restore(snapshot) == seen
    further = Action.of("search", entity="zoe", relation="boss")
    assert await other.step(further, 5) == await env.step(further, 5)
    await other.step(further, 6)
    assert (await env.snapshot()).fingerprint != (await other.snapshot()).fingerprint
    assert await env.restore(snapshot) == seen


async def test_a_foreign_snapshot_is_refused_by_name() -> None:
    with pytest.raises(RestoreUnsupported, match="int"):
        await KnowledgeGraph().restore(Snapshot(Restore.FORK, 5, "x"))


async def test_fingerprints_tell_evidence_its_order_and_the_task_apart() -> None:
    a, b = (Action.of("search", entity=e, relation="boss") for e in ("ada", "zoe"))
    prints = []
    for task, order in ((TASK, (a, b)), (TASK, (b, a)), (SUITE.tasks("train", 2)[1], (a, b)), (TASK, (a,))):
        env = await opened(task)
        prints.append([(await env.step(action, 1)).observation.fingerprint for action in order][-1])
    assert len(set(prints)) == 4


async def test_a_composite_look_up_gathers_the_same_facts_as_single_ones() -> None:
    clean = make_suite(noise=0.0).tasks("train", 1)[0]
    a, b = (Action.of("search", entity=e, relation="boss") for e in ("ada", "zoe"))
    one, two = await opened(clean), await opened(clean)
    together = await one.step(Action(a.calls + b.calls), 1)
    await two.step(a, 1)
    apart = await two.step(b, 2)
    assert together.observation.fingerprint == apart.observation.fingerprint
    assert together.observation.text.splitlines()[1] == apart.observation.text


def test_impossible_variants_are_refused() -> None:
    with pytest.raises(ValueError, match="noise"):
        make_suite(noise=1.5)
    with pytest.raises(ValueError, match="hops"):
        make_suite(hops=(0, 2))
    with pytest.raises(ValueError, match="split"):
        SUITE.tasks("dev", 1)


def test_a_session_without_a_task_says_to_reset_it() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        asyncio.run(KnowledgeGraph().snapshot())
