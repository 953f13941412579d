"""The tool `digest` in worlds: what it reads, that it changes nothing, and that the model is asked once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from local_site import Visit, serve_pages
from typer.testing import CliRunner

import treewright.agent.runs.digesting as digesting
from treewright.agent.cli.main import app
from treewright.agent.runs.digesting import Digester, Digesting
from treewright.envs import Action, Effect, EnvFault, InvalidAction, Task, TreewrightError
from treewright.envs.retrieval.corpus import Corpus, Doc
from treewright.envs.retrieval.index import LexicalIndex
from treewright.envs.retrieval.world import RetrievalWorld
from treewright.search.types import PolicyFault

LONG = "Filler. " * 300 + "\n\n# Travel\nAda approves trains.\n\n# Food\nNobody cooks.\n"
TASK = Task("own", "t", "who approves trains?", truth={"answers": ["Ada"]})
ASK = Action.of("digest", question="who approves trains?", document="d1")


class Reads:
    """Finds Ada where she stands, and counts what it is asked."""

    def __init__(self, fails: int = 0) -> None:
        self.asked, self.fails, self.closed = 0, fails, 0

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.asked += 1
        if self.asked <= self.fails:
            raise PolicyFault("the reader is down")
        return "Ada" if "Ada approves" in prompt else "nothing"

    async def first_tokens(self, prompts: list[str]) -> list[dict[str, float]]:
        return [{"Yes": math.log(0.8), "No": math.log(0.2)} for _ in prompts]

    async def close(self) -> None:
        self.closed += 1


def session(model: Reads) -> Digesting:
    corpus = Corpus([Doc(id="d1", title="Handbook", text=LONG)])
    world = RetrievalWorld(corpus, LexicalIndex(corpus.docs), page_chars=200)
    return Digesting(world, Digester("hf:reader", opened=lambda: model))


async def test_a_document_of_a_corpus_is_read_whole_and_the_world_stays_as_it_was() -> None:
    model = Reads()
    env = session(model)
    before = await env.reset(TASK, 0)
    assert [spec.name for spec in await env.actions()] == ["search", "read", "answer", "digest"]
    assert await env.effect(ASK) is Effect.READ and env.sandboxed and env.restore_ways
    done = await env.step(ASK, 0)
    assert (done.observation.text, done.terminated) == ("Ada (80% sure)", False)
    assert done.observation.fingerprint == before.fingerprint
    assert "Filler" in (await env.step(Action.of("read", doc="d1"), 0)).observation.text
    taken = await env.snapshot()
    await env.step(Action.of("answer", text="Ada"), 0)
    await env.restore(taken)
    asked = model.asked
    assert (await env.step(ASK, 0)).observation.text == "Ada (80% sure)"
    assert model.asked == asked, "an equal question about an equal text is not asked again"
    assert env.digester.told() == [f"digest answered 1 questions; hf:reader was asked {asked + 1} times"]


async def test_without_a_document_what_is_shown_now_is_read() -> None:
    env = session(Reads())
    await env.reset(TASK, 0)
    nothing = await env.step(Action.of("digest", question="who approves trains?"), 0)
    assert nothing.observation.text == digesting.NOTHING, "the world shows nothing of it yet"
    await env.step(Action.of("read", doc="d1", page=13), 0)
    found = await env.step(Action.of("digest", question="who approves trains?"), 0)
    assert found.observation.text.startswith("Ada")


async def test_a_long_page_is_read_whole_though_it_comes_in_parts() -> None:
    lines = "".join(f"<p>Filler {i}</p>" for i in range(200))
    async with await serve_pages({"/": f"<title>Rules</title>{lines}<p>Ada approves trains.</p>"}) as server:
        visit = Visit(f"{server.url}/")
        visit.env.part = 400
        env = Digesting(visit.env, Digester("hf:reader", opened=Reads))
        try:
            shown = await env.reset(Task("web", "t", "look around"), 0)
            assert "Ada" not in shown.text and "part 1 of" in shown.text
            found = await env.step(Action.of("digest", question="who approves trains?"), 0)
            assert found.observation.text.startswith("Ada")
            with pytest.raises(InvalidAction, match="no document 'other'"):
                await env.step(Action.of("digest", question="who?", document="other"), 0)
        finally:
            await env.close()


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (Action.of("digest"), "needs a question"),
        (Action.of("digest", question="who?", page=2), "no argument 'page'"),
        (Action.of("digest", question="who?", document="d2"), "no document 'd2'"),
        (Action((*ASK.calls, *Action.of("read", doc="d1").calls)), "goes alone"),
    ],
)
async def test_a_call_that_cannot_be_made_is_told_to_the_policy(action: Action, says: str) -> None:
    env = session(Reads())
    await env.reset(TASK, 0)
    with pytest.raises(InvalidAction, match=says):
        await env.step(action, 0)


async def test_a_model_that_fails_is_a_fault_of_the_world_and_is_asked_anew() -> None:
    env = session(Reads(fails=1))
    await env.reset(TASK, 0)
    with pytest.raises(EnvFault, match="the reader is down"):
        await env.step(ASK, 0)
    assert (await env.step(ASK, 0)).observation.text.startswith("Ada")
    mute = Digesting(env.inner, Digester("uniform", opened=lambda: object()))
    await mute.reset(TASK, 0)
    with pytest.raises(TreewrightError, match="writes no answers"):
        await mute.step(ASK, 0)


def test_from_the_command_line_every_world_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Reads] = []

    def opened(section: Any) -> Reads:
        models.append(Reads())
        return models[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(digesting, "open_proposer", opened)
    (tmp_path / "docs.jsonl").write_text(json.dumps({"id": "d1", "title": "Handbook", "text": LONG}))
    asked = {"question": "Who approves trains?", "answers": ["Ada"], "split": "train"}
    (tmp_path / "asked.jsonl").write_text(json.dumps(asked))
    (tmp_path / "digest_clerk.py").write_text(
        "import json\n"
        "def says(task, turns, tools, rng):\n"
        "    if len(turns) < 2:\n"
        "        return 'digest ' + json.dumps({'question': 'who approves trains?', 'document': 'd1'})\n"
        "    return 'answer ' + json.dumps({'text': turns[-1].observation.text.split()[0]})\n"
    )
    line = ["run", "own/0", "--split", "train", "--corpus", "docs.jsonl", "--questions", "asked.jsonl", "--policy",
            "scripted:digest_clerk:says", "--set", "worlds.digest=hf:reader"]  # fmt: skip
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0 and "answer Ada" in done.output and "reward 1" in done.output, done.output
    assert models and models[0].closed == 1
