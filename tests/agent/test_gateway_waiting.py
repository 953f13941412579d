"""Agents whose clients give up on a server that says nothing for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from not_none import not_none
from walking import PLACES, TASK, choices, go, say, walker_suite

from treewright.agent.gateway import held, world
from treewright.agent.gateway.post import Line, Post
from treewright.agent.gateway.process import begin
from treewright.agent.gateway.record import request_of
from treewright.agent.gateway.replies import spoken_action
from treewright.agent.gateway.server import make_app, running
from treewright.agent.policies.scripted import scripted_choice
from treewright.envs.errors import SessionDied
from treewright.envs.types import Environment
from treewright.search import Budget, NodeStatus, Pool, Settings, Tree, best_first, search

LATE = 0.8  # seconds after which the search comes back to a session
IMPATIENT = {"WALKER_PATIENCE": "0.3"}


@asynccontextmanager
async def opened(**env: str) -> AsyncIterator[Any]:
    made = walker_suite(learn=False, env=env)
    session = await made.open()
    try:
        yield session
    finally:
        await session.close()
        await not_none(made.close)()


async def walk(env: Environment, late: float) -> tuple[list[Any], float]:
    """The observations on the way to the inn, and the reward there."""
    seen = [await env.reset(TASK, 1)]
    for action in [*map(go, PLACES), say("here")]:
        await asyncio.sleep(late)
        result = await env.step(action, 1)
        seen.append(result.observation)
    assert result.terminated
    return seen, result.reward


async def test_a_client_that_waits_is_kept_by_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "QUIET", 0.05)
    async with opened(**IMPATIENT) as env:
        _, reward = await walk(env, LATE)
        assert reward == 1.0 and len(env._line().calls) == 4


async def test_a_request_that_is_sent_again_is_the_same_step() -> None:
    async with opened() as env:
        patient, _ = await walk(env, 0.0)
    async with opened(**IMPATIENT, WALKER_AGAIN="50") as env:
        seen, reward = await walk(env, LATE)
    assert [s.fingerprint for s in seen] == [s.fingerprint for s in patient] and reward == 1.0
    assert [not_none(request_of(s))["link"] for s in seen[:4]] == ["spawns", *["continues"] * 3]


async def test_an_agent_that_gave_up_is_a_fault_and_never_a_reward() -> None:
    async with opened(**IMPATIENT) as env:
        await env.reset(TASK, 1)
        await asyncio.sleep(LATE)
        with pytest.raises(SessionDied, match=r"gave up before it was answered.*longer time limit"):
            await env.step(go("mill"), 1)


async def test_an_agent_that_goes_on_without_its_answer_has_left_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "RETURNS", 0.3)
    async with opened(**IMPATIENT, WALKER="shrug") as env:
        await env.reset(TASK, 1)
        await asyncio.sleep(LATE)
        with pytest.raises(SessionDied, match="gave up"):
            await env.step(go("mill"), 1)


async def test_a_search_goes_back_to_where_an_agent_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    async def counted(*given: Any) -> Any:
        begun[-1] += 1
        return await begin(*given)

    monkeypatch.setattr(world, "begin", counted)

    async def searched(slow: int, **env: str) -> Tree:
        begun.append(0)

        class Slow:
            """Thinks longer than the agent's client waits, at first."""

            def __init__(self) -> None:
                self.inner, self.slow = scripted_choice(choices), slow

            def __getattr__(self, name: str) -> Any:
                return getattr(self.inner, name)

            async def draw(self, *given: Any) -> Any:
                if self.slow:
                    self.slow -= 1
                    await asyncio.sleep(LATE)
                return await self.inner.draw(*given)

        made = walker_suite(learn=False, env=env)
        pool, rule = Pool(made.open, 1, around=made.around), best_first(draws=3)
        try:
            return await search(TASK, pool, Slow(), rule=rule, budget=Budget(expansions=12), settings=Settings())
        finally:
            await pool.close()
            await not_none(made.close)()

    patient, other = await searched(0), await searched(2, **IMPATIENT)
    assert begun[1] > begun[0]
    assert other.status == patient.status and NodeStatus.FAULT not in other.status
    assert [seen and seen.text for seen in other.observation] == [seen and seen.text for seen in patient.observation]


@pytest.mark.parametrize(("word", "reward"), [("here", 1.0), ("nowhere", 0.0)])
async def test_an_agent_that_takes_the_first_of_two_answers_has_not_given_up(word: str, reward: float) -> None:
    async with opened(WALKER="race") as env:
        await env.reset(TASK, 1)
        await asyncio.sleep(0.3)  # the other asks, too
        first = await env.step(say(word), 1)
        await asyncio.sleep(0.3)  # it is gone meanwhile
        second = await env.step(say(word), 1)
        assert not first.terminated and second.terminated and second.reward == reward


async def test_a_session_that_closes_ends_requests_that_wait() -> None:
    async with opened() as env:
        await env.reset(TASK, 1)
        (call,) = env._line().calls
    assert call.future.cancelled()


# -- clients --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(late: float) -> AsyncIterator[tuple[Post, str]]:
    """A server on which every request is answered after so many seconds; its address with the session's path."""
    post = Post()
    post.lines["s"] = line = Line()

    async def work() -> None:
        while True:
            await line.arrived.wait()
            line.arrived.clear()
            while line.waiting:
                call = line.waiting.popleft()
                await asyncio.sleep(late)
                call.future.set_result([spoken_action(say("well"), "0")])

    task = asyncio.create_task(work())
    try:
        async with running(make_app(post, post.key)) as address:
            yield post, f"{address}/s/s"
    finally:
        task.cancel()


MESSAGES: list[Any] = [{"role": "user", "content": "so?"}]


async def by_chat(address: str, key: str) -> str:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key, timeout=0.4, max_retries=0) as client:
        done = await client.chat.completions.create(model="m", messages=MESSAGES)
        return str(done.choices[0].message.content)


async def by_chat_stream(address: str, key: str) -> str:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key, timeout=0.4, max_retries=0) as client:
        parts = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in parts if part.choices])


async def by_responses(address: str, key: str) -> str:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key, timeout=0.4, max_retries=0) as client:
        return str((await client.responses.create(model="m", input="so?")).output_text)


async def by_messages(address: str, key: str) -> str:
    anthropic = pytest.importorskip("anthropic")
    async with anthropic.AsyncAnthropic(base_url=address, api_key=key, timeout=0.4, max_retries=0) as client:
        return str((await client.messages.create(model="m", max_tokens=9, messages=MESSAGES)).content[0].text)


async def by_messages_stream(address: str, key: str) -> str:
    anthropic = pytest.importorskip("anthropic")
    async with (
        anthropic.AsyncAnthropic(base_url=address, api_key=key, timeout=0.4, max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream,
    ):
        return str(await stream.get_final_text())


@pytest.mark.parametrize("ask", [by_chat, by_chat_stream, by_responses, by_messages, by_messages_stream])
async def test_official_clients_wait_longer_than_their_limit(
    ask: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "QUIET", 0.05)
    async with answering(1.0) as (post, address):
        assert await ask(address, post.key) == "well"


async def test_what_fails_behind_blanks_is_told_in_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "QUIET", 0.05)
    async with answering(60) as (post, address), httpx.AsyncClient() as client:
        asks = asyncio.create_task(
            client.post(
                f"{address}/v1/chat/completions",
                json={"model": "m", "messages": MESSAGES},
                headers={"authorization": f"Bearer {post.key}"},
            )
        )
        await asyncio.sleep(0.5)
        post.close("s")
        found = await asks
        assert found.status_code == 200 and "episode is over" in found.json()["error"]["message"]
        late = await client.post(
            f"{address}/v1/chat/completions",
            json={"model": "m", "messages": MESSAGES},
            headers={"authorization": f"Bearer {post.key}"},
        )
        assert late.status_code == 404
