"""After a commit an episode goes on in a new tree, whose prompts and views hold all that was done before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from walking import TASK as WALK
from walking import go, walker_suite

from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.episode import Episode, run_episode
from treewright.envs.errors import InvalidAction
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    digest,
)
from treewright.search.commit import Next
from treewright.search.engine import Settings, search
from treewright.search.past import Past, with_past, without_past
from treewright.search.restore import Pool
from treewright.search.rooted import start_at
from treewright.search.rules import chains
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, Candidate, Completion, Context, Exchange, Score
from treewright.training.export.raw import decode_tree, encode_tree
from treewright.training.export.rows import prm_rows, sft_rows
from treewright.training.export.view import View

from .small import compact, qwen3

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOOLS = (
    ToolSpec("put", "write a draft", TEXT, Effect.REVERSIBLE),
    ToolSpec("send", "send a mail", TEXT, Effect.IRREVERSIBLE),
    ToolSpec("done", "end here", {"type": "object", "properties": {}}, Effect.READ, terminal=True),
)
PLAN = ['put {"text": "a"}', 'send {"text": "one"}', 'put {"text": "b"}', 'send {"text": "two"}', "done {}"]
TASK = Task("mail", "1", "write and send", horizon=12)
SEEN = ["ready", "draft a", "sent one", "draft b", "sent two"]
BUDGET = Budget(expansions=8)


class Mail(BaseEnvironment):
    """Mails that are gone once they are sent; `saves`: what a session shows can be saved."""

    name = "mail"

    def __init__(self, sent: list[str], saves: bool = True) -> None:
        self.sent, self.shown, self.sandboxed = sent, "", False
        self.restore_ways = frozenset({Restore.REPLAY, *([Restore.STATE] if saves else [])})

    def _seen(self) -> Observation:
        return Observation(self.shown, digest(self.shown))

    async def reset(self, task: Task, key: int) -> Observation:
        self.shown = "; ".join(["ready", *(f"{one} is out" for one in self.sent)])
        return self._seen()

    async def step(self, action: Action, key: int) -> StepResult:
        if action.name == "done":
            return StepResult(self._seen(), float(self.sent == ["one", "two"]), terminated=True)
        text = str(action.arguments["text"])
        if action.name == "send":
            self.sent.append(text)
        elif action.name != "put":
            raise InvalidAction(f"no action named {action.name!r}")
        self.shown = f"{'sent' if action.name == 'send' else 'draft'} {text}"
        return StepResult(self._seen())

    async def actions(self) -> Sequence[ToolSpec]:
        return TOOLS

    async def effect(self, action: Action) -> Effect:
        return next((t.effect for t in TOOLS if t.name == action.name), Effect.UNKNOWN)

    async def snapshot(self) -> Snapshot:
        return Snapshot(Restore.STATE, self.shown.encode(), digest(self.shown))

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.shown = bytes(snapshot.data).decode()
        return self._seen()


class Killed(BaseException):
    pass


class Clerk:
    """A script that goes through PLAN by what it remembers; `at`: the draw that kills its process."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.asked, self.seen = at, 0, list[tuple[str, ...]]()

    def __call__(self, task: Task, turns: Sequence[Exchange], tools: Any, rng: Any, first: Observation) -> str:
        self.asked += 1
        if self.asked == self.at:
            raise Killed
        self.seen.append((first.text, *(text for t in turns for text in (t.response, t.observation.text))))
        return PLAN[len(turns)]


def yes(task: Task, action: Any) -> bool:
    return True


async def played(folder: Path, sent: list[str], policy: Any, saves: bool = True, **options: Any) -> Episode:
    async def opened() -> Mail:
        return Mail(sent, saves)

    pool = Pool(opened)
    try:
        with TreeStore.open(folder / "live.sqlite") as store:
            return await run_episode(
                TASK, pool, policy, journal=options.pop("journal", lambda own: own)(store.journal), approve=yes,
                rule=chains(1), budget=BUDGET, settings=Settings(max_tokens=64), store=store, **options,
            )  # fmt: skip
    finally:
        await pool.close()


def told(upto: int) -> tuple[str, ...]:
    """What is seen after so many turns."""
    said = (text for pair in zip(PLAN[:upto], SEEN[1:], strict=False) for text in pair)
    return (SEEN[0], *said)


async def test_after_commits_a_policy_sees_every_turn_since_the_episode_began(tmp_path: Path) -> None:
    clerk, sent = Clerk(), list[str]()
    episode = await played(tmp_path, sent, ScriptedPolicy(clerk))
    assert sent == ["one", "two"] and episode.commits[-1].next is Next.DONE and episode.reward == 1.0
    assert clerk.seen == [told(n) for n in range(5)]
    assert [tree.task.horizon for tree in episode.trees] == [12, 10, 8]
    assert [t.response for t in episode.trees[2].exchanges(0)] == PLAN[:4]


async def test_where_the_state_was_not_saved_the_last_answer_stands_before_the_world_as_it_is_now(
    tmp_path: Path,
) -> None:
    clerk, sent = Clerk(), list[str]()
    await played(tmp_path, sent, ScriptedPolicy(clerk), saves=False)
    assert sent == ["one", "two"]
    assert clerk.seen[2] == ("ready", PLAN[0], "draft a", PLAN[1], "sent one\n\nready; one is out")


@pytest.mark.parametrize("at", [2, 3, 4, 5])
async def test_an_episode_that_was_killed_shows_the_same_turns_when_it_is_taken_up(tmp_path: Path, at: int) -> None:
    sent, before, after = list[str](), Clerk(at), Clerk()
    with pytest.raises(Killed):
        await played(tmp_path, sent, ScriptedPolicy(before))
    episode = await played(tmp_path, sent, ScriptedPolicy(after))
    assert sent == ["one", "two"] and episode.commits[-1].next is Next.DONE
    said = [(seen[0], *seen[1::2]) for seen in [*before.seen, *after.seen]]
    assert list(dict.fromkeys(said)) == [("ready", *PLAN[:n]) for n in range(5)]


async def test_killed_right_after_a_commit_the_next_tree_begins_behind_what_it_did(tmp_path: Path) -> None:
    class Cut:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        async def outcome(self, *row: Any, **ends: Any) -> None:
            await self.inner.outcome(*row, **ends)
            raise Killed

    sent, clerk = list[str](), Clerk()
    with pytest.raises(Killed):
        await played(tmp_path, sent, ScriptedPolicy(Clerk()), journal=Cut)
    assert sent == ["one"]
    await played(tmp_path, sent, ScriptedPolicy(clerk))
    assert sent == ["one", "two"]
    assert clerk.seen[0][:4] == ("ready", PLAN[0], "draft a", PLAN[1]) and clerk.seen[0][4].startswith("sent one")


class Looking:
    def __init__(self) -> None:
        self.seen = list[list[str]]()

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Score]:
        self.seen += [[turn.response for turn in c.turns] for c in candidates]
        return [Score(0.5) for _ in candidates]


async def test_an_evaluator_sees_the_turns_before_the_commit(tmp_path: Path) -> None:
    judge = Looking()
    await played(tmp_path, [], ScriptedPolicy(Clerk()), evaluator=judge)
    assert [PLAN[:n] for n in range(5)] == judge.seen


class Typist(HFPolicy):
    """Reads as a model does, and types PLAN."""

    def __init__(self) -> None:
        super().__init__(qwen3(), compact())
        self.prompts = list[tuple[int, ...]]()

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        text = PLAN[min(len(self.prompts), len(PLAN) - 1)]
        self.prompts.append(context.ids)
        ids = tuple(self.template.response(text))
        return [Completion(text, ids, (-1.0,) * len(ids), policy_version=self.version) for _ in seeds]


async def test_a_models_prompt_keeps_the_tokens_of_what_was_done_and_the_tree_keeps_the_prompt(tmp_path: Path) -> None:
    typist, sent = Typist(), list[str]()
    episode = await played(tmp_path, sent, typist)
    assert sent == ["one", "two"]
    first, second, third = episode.trees
    at = not_none(first.chosen)
    assert second.context_ids(0)[: len(first.context_ids(1))] == first.context_ids(1)
    assert second.keep[0] == 0 and first.ids[at] == typist.template.response(PLAN[1])
    assert [second.context_ids(0), second.context_ids(1), third.context_ids(0)] == typist.prompts[2:]
    text = typist.template.encoder.text(third.context_ids(0))
    assert all(part in text for part in [TASK.goal, *PLAN[:4], *SEEN])
    with TreeStore.open(tmp_path / "live.sqlite") as store:
        stored = store.load(third.tree_id)
    assert stored.context_ids(0) == third.context_ids(0) and stored.header == third.header
    assert stored.exchanges(0) == third.exchanges(0) and not_none(stored.header.past).ids


async def test_exports_of_a_continued_tree_hold_the_prompt_that_was_read(tmp_path: Path) -> None:
    typist = Typist()
    last = (await played(tmp_path, [], typist)).trees[2]
    (row,) = sft_rows(View(last))
    assert [m["content"] for m in row["prompt"]] == ["write and send\n\nready", *told(4)[1:]]
    assert [m["role"] for m in row["prompt"]] == ["user", *["assistant", "user"] * 4]
    assert tuple(row["prompt_ids"]) == typist.prompts[4]
    (steps,) = prm_rows(View(last))
    assert all(part in steps["prompt"] for part in PLAN[:4]) and steps["completions"] == ["done {}"]
    with TreeStore.open(tmp_path / "live.sqlite") as store:
        raw = encode_tree(View(last), store.expansions(last.tree_id))
    back = decode_tree(raw).tree
    assert back.header == last.header and back.exchanges(0) == last.exchanges(0)


async def test_tokens_of_another_policy_are_left_out_and_the_past_is_encoded_from_its_words(tmp_path: Path) -> None:
    tree = (await played(tmp_path, [], ScriptedPolicy(Clerk()))).trees[2]
    past, typist = not_none(tree.header.past), Typist()
    assert past.ids

    async def opened() -> Mail:
        return Mail([])

    pool = Pool(opened)
    other = await search(TASK, pool, typist, rule=chains(1), budget=Budget(expansions=1), past=past)
    await pool.close()
    assert not_none(other.header.past).ids == ()
    text = typist.template.encoder.text(other.context_ids(0))
    assert all(part in text for part in [TASK.goal, *PLAN[:4], *SEEN])


async def test_a_tree_begun_without_a_past_goes_on_without_one(tmp_path: Path) -> None:
    """As older versions have stored it."""

    async def opened() -> Mail:
        return Mail(["one"])

    async def grown(clerk: Clerk, past: Past | None) -> Tree:
        pool = Pool(opened)
        try:
            with TreeStore.open(tmp_path / "old.sqlite") as store:
                return await search(
                    TASK, pool, ScriptedPolicy(clerk), rule=chains(1), budget=BUDGET, store=store, past=past,
                )  # fmt: skip
        finally:
            await pool.close()

    with pytest.raises(Killed):
        await grown(Clerk(2), None)
    known = Past(first=Observation("ready"), turns=(Exchange(PLAN[0], None, Observation("draft a")),))
    clerk = Clerk()
    tree = await grown(clerk, known)
    assert tree.header.past is None and clerk.seen[0][:2] == ("ready; one is out", PLAN[0])


async def test_a_tree_from_a_stored_node_behind_a_commit_starts_with_the_same_past(tmp_path: Path) -> None:
    tree = (await played(tmp_path, [], ScriptedPolicy(Clerk()))).trees[1]
    assert start_at(tree, 1).past == tree.header.past is not None


async def test_an_agent_is_not_told_its_past_again() -> None:
    """It begins anew, or remembers by itself: its requests hold what it knows."""
    made = walker_suite()
    pool = Pool(made.open, 1, around=made.around)
    past = Past(first=Observation("ready"), turns=(Exchange("no", None, Observation("never")),))
    texts = list[tuple[int, ...]]()

    def walks(task: Task, turns: Any, tools: Any, rng: Any) -> str:
        texts.append(tuple(len(t.response) for t in turns))
        return str(go("mill"))

    try:
        tree = await search(
            WALK, pool, ScriptedPolicy(walks), rule=chains(1), budget=Budget(expansions=1),
            settings=Settings(max_tokens=64), past=past,
        )  # fmt: skip
    finally:
        await pool.close()
        await not_none(made.close)()
    assert tree.header.past is None and texts[0] == ()


def test_a_past_survives_being_stored_with_pictures_and_without_actions() -> None:
    seen = Observation("a", "f", provenance="page", parts=({"type": "image", "png": b"x"},))
    turns = (Exchange("said", None, seen), Exchange("put", Action.of("put", text="a"), Observation("")))
    past = Past(first=seen, turns=turns, ids=(1, 70_000), version="v")
    settings, back = without_past(with_past({"width": 1}, past))
    assert settings == {"width": 1} and back == past and with_past(settings, None) is settings
