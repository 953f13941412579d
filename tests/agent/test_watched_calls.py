"""Beside every search, judge and reader another task gets its turn, though the models answer at once.

The models here never wait, which is the worst case: what does not give turns of itself would hold the loop throughout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from walker import Likelihood, Walker
from watchdog import HOLD, Watched, watched

from treewright.agent.judges.checklist import Checklist
from treewright.agent.judges.code_judge import ModelCritic, TestsPassed
from treewright.agent.judges.entailment import Entailment
from treewright.agent.judges.imagined import Imagined
from treewright.agent.judges.plans import PlanLikeness
from treewright.agent.judges.steps import StepJudge
from treewright.agent.policies.code_tree import CodeTree
from treewright.agent.policies.drafting import DraftingPolicy
from treewright.agent.policies.headed import HeadedPolicy
from treewright.agent.policies.policy import PolicyStats
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.policies.speculative import ModelDrafter
from treewright.agent.policies.uniform import uniform_calls
from treewright.agent.runs.digest import digest
from treewright.agent.runs.digesting import Digester, Digesting
from treewright.agent.runs.questions import Asker
from treewright.agent.runs.spar import Judge, Refined, Refining
from treewright.envs import Action, Task, suite
from treewright.envs.code.world import PROBLEMS
from treewright.envs.maze import SUITE
from treewright.envs.retrieval.corpus import Corpus, Doc
from treewright.envs.retrieval.dense import DenseIndex
from treewright.envs.retrieval.hybrid import HybridIndex
from treewright.envs.retrieval.hypergraph import HypergraphIndex
from treewright.envs.retrieval.index import LexicalIndex
from treewright.envs.retrieval.linked import LinkedWorld
from treewright.envs.retrieval.treehop import Gate, TreeHopIndex
from treewright.envs.tools.office import MODEL
from treewright.search.engine import Settings, search
from treewright.search.evidence import Evidence
from treewright.search.planning.all_nodes import solve
from treewright.search.rules import rule
from treewright.search.rules.plan_memory import Plan, PlanMemory
from treewright.search.temper import Temperatures
from treewright.search.types import Budget, Completion, Context, Evaluator
from treewright.training.step_model import StepModel, StepSettings

from .small import compact, qwen3

PLANS = PlanMemory(
    tuple(
        Plan("office", f"send mail {i} to person{i % 97} about topic{i % 31}", (f"a{i % 5}", f"b{i % 9}", f"c{i}"))
        for i in range(3000)
    )
)


def fine(seen: Watched) -> bool:
    print(f"turns {seen.turns}, longest {seen.longest:.3f} s of {HOLD}")
    return seen.longest < HOLD


class Says:
    """A model that always says the same, at once."""

    name, version = "says", "1"

    def __init__(self, text: str = "- one\n- two") -> None:
        self.text, self.asked, self.stats = text, 0, PolicyStats()

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.asked += 1
        return self.text

    async def first_tokens(self, prompts: Sequence[str]) -> list[Mapping[str, float]]:
        self.asked += len(prompts)
        return [{"yes": math.log(0.7), "no": math.log(0.3)} for _ in prompts]

    async def close(self) -> None:
        pass


# -- evaluators in the office, where a node has dozens of draws -------------------------------------------------------

EVALUATORS: dict[str, Callable[[], Evaluator]] = {
    "steps": lambda: StepJudge(StepModel(np.zeros(1 << 10), StepSettings(bits=10))),
    "plans": lambda: PlanLikeness(PLANS),
    "imagined": lambda: Imagined(Says()),
    "checklist": lambda: Checklist(Says()),
}


@pytest.mark.parametrize("name", EVALUATORS)
async def test_a_star_with_a_large_memory_and_every_evaluator(name: str) -> None:
    order = rule("astar", memory=PLANS, draws=32, root_draws=32)
    growing = search(
        MODEL.tasks("test", 1)[0], MODEL, uniform_calls, rule=order, evaluator=EVALUATORS[name](),
        budget=Budget(expansions=4), settings=Settings(max_tokens=200),
    )  # fmt: skip
    tree, seen = await watched(growing)
    assert len(tree.pops) == 4 and not math.isnan(tree.score[1]) and fine(seen)


async def test_evidence_that_a_model_judges() -> None:
    table = [('<evidence>the exit is to the east</evidence>\nmove {"to": "east"}', 0.5), ("stop {}", 0.5)]
    growing = search(
        SUITE.tasks("train", 3)[2], SUITE, Walker(table), rule=rule("best_first", root_draws=40),
        evaluator=Likelihood(), budget=Budget(expansions=20), settings=Settings(close=True, max_tokens=120),
        evidence=Evidence(["move"], Entailment(Says(), "says")),
    )  # fmt: skip
    tree, seen = await watched(growing)
    assert tree.spent.judge_tokens > 0 and fine(seen)


# -- roles --------------------------------------------------------------------------------------------------------


class Programs(Says):
    """Writes a wrong program, thinks of ways, and is a critic."""

    def context(self, task: Any, tools: Any, first: Any, turns: Sequence[Any], base: Any) -> Context:
        prompt = tuple(f"{task.goal}{len(turns)}".encode())
        return Context(keep=0, delta=prompt, ids=prompt)

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        return [Completion("write " + json.dumps({"code": self.text}), (1,), (-0.5,)) for _ in seeds]


async def test_codetree_with_thinker_debugger_and_critic() -> None:
    code = suite("code")
    task = code.tasks("train", 1)[0]
    head = next(problem.head for problem in PROBLEMS if problem.name == task.data["problem"])
    model = Programs(f"def {head}: return None")
    growing = search(
        task, code, CodeTree(model, most=2), rule=rule("depth_first_critic", draws=2, root_draws=2),
        evaluator=TestsPassed(ModelCritic(model)), budget=Budget(expansions=2),
    )  # fmt: skip
    tree, seen = await watched(growing)
    assert model.asked >= 4 and len(tree) > 2 and fine(seen)


async def test_spar_with_a_judge_and_a_refiner() -> None:
    judge = Judge(Says("It is short.\nVerdict: no"), votes=3)
    first = ScriptedPolicy(lambda task, turns, tools, rng: 'answer {"text": "x"}')
    growing = search(
        Task("spar", "t", "Write three x.", horizon=12), Refined(judge), Refining(first, Says("x" * 500)),
        rule=rule("best_first", draws=4, root_draws=1), evaluator=judge, budget=Budget(expansions=12),
        settings=Settings(stop="first"),
    )  # fmt: skip
    tree, seen = await watched(growing)
    assert judge.asked >= 6 and len(tree.pops) > 2 and fine(seen)


async def test_probtree_over_linked_passages() -> None:
    docs = passages(400)
    model = Says("- who is #1?\n- when was Ada born?\n- when was Bob born?")
    ask = Asker(model, retriever=HypergraphIndex(docs), passages=[doc.text for doc in docs], depth=3)
    found, seen = await watched(solve("who was born earlier, Ada or Bob?", ask, budget=60))
    assert found.asked > 3 and ask.calls > 12 and fine(seen)


# -- documents and passages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "\n\n".join(f"# Part {i}\n" + "words of it. " * 20 for i in range(1200)),
        "\n".join(f"a line of text {i}" for i in range(60_000)),
        "# x" + " " * 20_000 + "y\n" + "one word after the other " * 40_000,
    ],
    ids=["headings", "lines", "one line"],
)
async def test_a_long_document_is_digested(text: str) -> None:
    model = Says("it says so")
    found, seen = await watched(digest(text, "what does it say?", model))
    assert found.answer is not None and found.calls > 100 and fine(seen)


async def test_a_long_document_of_a_world_is_digested_by_its_tool() -> None:
    corpus = Corpus([Doc("long", "Long", "\n".join(f"a line of text {i}" for i in range(10_000)))])
    env = Digesting(LinkedWorld(corpus, HypergraphIndex(corpus.docs)), Digester("hf:says", opened=Says))
    await env.reset(Task("own", "t", "read"), 0)
    done, seen = await watched(env.step(Action.of("digest", question="what?", document="long"), 0))
    assert "sure" in done.observation.text and fine(seen)


def passages(count: int) -> list[Doc]:
    """Each names the next and a place that many share."""
    return [
        Doc(f"d{i}", f"Person {i}", f"Person {i} met Person {i + 1} in Harrow Bay {i % 7} near the River Aun.")
        for i in range(count)
    ]


class Counts:
    """An encoder without a model: a vector of letter counts."""

    name = "counts"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([[text.count(c) for c in "abcdefghijklmnopqrstuvwxyz0123456789"] for text in texts], np.float32)
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), np.float32)


def idle_gate(size: int, hidden: int = 64) -> Gate:
    w1, w2 = np.zeros((3 * size, hidden), np.float32), np.zeros((hidden, size), np.float32)
    return Gate(w1, np.zeros(hidden, np.float32), w2, np.zeros(size, np.float32), "counts")


def ranker(kind: str) -> Any:
    corpus = Corpus(passages(3000))
    if kind == "hypergraph":
        return HypergraphIndex(corpus.docs)
    dense = DenseIndex(corpus, Counts())
    if kind == "treehop":
        return TreeHopIndex(dense, idle_gate(dense.vectors.shape[1]))
    return HybridIndex([LexicalIndex(corpus.docs), dense])


@pytest.mark.parametrize("kind", ["hypergraph", "treehop", "hybrid"])
async def test_retrievers_that_follow_links(kind: str) -> None:
    index = ranker(kind)
    for _ in range(2):
        hits, seen = await watched(index.search("whom did Person 77 meet in Harrow Bay, and where is the Aun?" * 20, 5))
        assert len(hits) == 5 and fine(seen)


async def test_the_tools_that_follow_links() -> None:
    corpus = Corpus(passages(3000))
    env = LinkedWorld(corpus, HypergraphIndex(corpus.docs))
    await env.reset(Task("own", "t", "who?"), 0)
    for action in (Action.of("neighbours", passage="d9"), Action.of("bridge", a="d9", b="Person 11")):
        done, seen = await watched(env.step(action, 0))
        assert "Person" in done.observation.text and fine(seen)


# -- policies that draw in this process -------------------------------------------------------------------------------


async def test_draws_with_a_draft_model_with_a_head_and_at_temperatures_by_depth() -> None:
    fast = DraftingPolicy(qwen3(), compact(), draft_model=ModelDrafter(qwen3(seed=1), width=3, depth=2, name="other"))
    cases: list[tuple[Any, Temperatures | None]] = [(fast, Temperatures()), (HeadedPolicy(fast, "So: "), None)]
    try:
        for policy, temperatures in cases:
            growing = search(
                SUITE.tasks("train", 1)[0], SUITE, policy, rule=rule("best_first", draws=1, root_draws=2),
                evaluator=Likelihood(), budget=Budget(expansions=2),
                settings=Settings(max_tokens=8, temperature_by_depth=temperatures),
            )  # fmt: skip
            tree, seen = await watched(growing)
            assert len(tree) > 2 and fine(seen)
    finally:
        await fast.close()
