"""What our server refuses is no failure of whoever acts through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from not_none import not_none
from walking import PLACES, TASK, choices, go, say, walker_suite

from treewright.agent.gateway.post import Line, Post
from treewright.agent.gateway.replies import spoken_action
from treewright.agent.gateway.server import make_app, running
from treewright.agent.policies.scripted import scripted_choice
from treewright.envs.errors import EnvFault, SessionDied
from treewright.search import Budget, NodeStatus, Pool, Settings, best_first, search


@asynccontextmanager
async def opened(how: str, **options: Any) -> AsyncIterator[Any]:
    made = walker_suite(learn=False, env={"WALKER": how}, **options)
    session = await made.open()
    try:
        yield session
    finally:
        await session.close()
        await not_none(made.close)()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("looks", r"POST /v1/chat/completions with 400, .*'image_url' are not taken here"),
        ("embeds", r"POST /v1/embeddings with 404, no such path; served are"),
    ],
)
async def test_an_agent_that_ends_for_what_the_server_refused_is_a_fault(how: str, words: str) -> None:
    async with opened(how) as env:
        await env.reset(TASK, 1)
        with pytest.raises(SessionDied, match=rf"exit code 1 after a refusal.*{words}"):
            await env.step(go("mill"), 1)
        assert len(env._shared.told) == 1 and "are faults, and have no reward" in env._shared.told[0]


async def test_an_agent_that_is_refused_before_it_asks_says_so() -> None:
    async with opened("early") as env:
        with pytest.raises(EnvFault, match=r"before it asked for anything.*/v1/embeddings with 404"):
            await env.reset(TASK, 1)


@pytest.mark.parametrize("how", ["careful looks", "careful embeds"])
@pytest.mark.parametrize(("word", "reward"), [("here", 1.0), ("nowhere", 0.0)])
async def test_an_agent_that_goes_on_after_a_refusal_has_its_reward(how: str, word: str, reward: float) -> None:
    async with opened(how) as env:
        await env.reset(TASK, 1)
        for action in map(go, PLACES):
            await env.step(action, 1)
        result = await env.step(say(word), 1)
        assert result.terminated and result.reward == reward and not env._shared.told


async def test_what_the_policy_said_may_be_refused_and_is_its_failure() -> None:
    async with opened("echo") as env:
        await env.reset(TASK, 1)
        result = await env.step(say(r'"half \ud83d"'), 1)
        assert result.terminated and result.reward == 0.0


async def test_no_leaf_of_a_search_has_a_reward_where_the_server_refused_its_agent() -> None:
    made = walker_suite(env={"WALKER": "embeds"})
    pool = Pool(made.open, 1, around=made.around)
    try:
        tree = await search(
            TASK, pool, scripted_choice(choices), rule=best_first(draws=3), budget=Budget(expansions=4),
            settings=Settings(max_tokens=64, retries=1),
        )  # fmt: skip
        told = [line for line in not_none(made.told)() if "embeddings" in line]
    finally:
        await pool.close()
        await not_none(made.close)()
    walked = [i for i in range(1, len(tree)) if not_none(tree.action[i]).name == "go"]
    walked = [i for i in walked if tree.status[i] is not NodeStatus.DRAFT]
    assert walked and all(tree.status[i] is NodeStatus.FAULT for i in walked)
    assert all("/v1/embeddings with 404" in not_none(tree.fault[i]) for i in walked) and len(told) == 1


async def test_refusals_are_noted_on_the_line_of_their_session_until_another_request_is_answered() -> None:
    post, body = Post(), {"model": "m", "messages": [{"role": "user", "content": "so?"}]}
    lines = post.lines["s"], post.lines["other"] = Line(), Line()
    bearer = {"authorization": f"Bearer {post.key}"}
    async with running(make_app(post, post.key)) as address, httpx.AsyncClient(timeout=20) as client:
        chat = f"{address}/s/s/v1/chat/completions"

        async def refusal(url: str, headers: dict[str, str] = bearer, **more: Any) -> tuple[int, str]:
            lines[0].refused_at = -1
            return (await client.post(url, headers=headers, **more)).status_code, lines[0].refused

        assert await refusal(chat, content=b"{") == (400, lines[0].refused) and "not valid JSON" in lines[0].refused
        assert "POST /v1/chat/completions with 400, n must be" in (await refusal(chat, json={**body, "n": 0}))[1]
        assert "with 401, the key is missing" in (await refusal(chat, {}, json=body))[1]
        named = {"authorization": f"Bearer {post.key}.s"}
        assert "/v1/images with 404" in (await refusal(f"{address}/v1/images", named, json={}))[1]
        assert lines[1].refused == ""
        again = {**body, "messages": [{"role": "robot", "content": "so?"}]}
        assert (await refusal(chat, json=again))[0] == 400 and lines[0].refused
        lines[0].arrived.clear()
        asks = asyncio.create_task(client.post(chat, headers=bearer, json=body))
        await lines[0].arrived.wait()
        assert lines[0].refused  # nothing was answered yet
        lines[0].waiting.popleft().future.set_result([spoken_action(say("well"), "0")])
        assert (await asks).status_code == 200 and lines[0].refused == ""


async def test_a_request_that_the_server_itself_could_not_answer_is_noted() -> None:
    post = Post()
    post.lines["s"] = line = Line()

    async def broken(*_: Any) -> int:
        raise RuntimeError("ours")

    post.count = broken  # type: ignore[method-assign, assignment]
    app = make_app(post, post.key)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "so?"}]}
        found = await client.post("/s/s/v1/messages/count_tokens", headers={"x-api-key": post.key}, json=body)
    assert found.status_code == 500 and "count_tokens with 500" in line.refused
