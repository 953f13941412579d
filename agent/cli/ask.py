"""`treewright ask`: questions from memory, from passages, or from sub-questions, by confidence (ProbTree)."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treewright.agent.cli.options import (
    ConfigFile,
    CorpusFile,
    Name,
    PolicySpec,
    QuestionFile,
    Sets,
    console,
    go,
    read_config,
    say,
)
from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.whole import write_whole

if TYPE_CHECKING:
    from treewright.agent.runs.questions import Asker
    from treewright.envs.retrieval.corpus import Question

__all__ = ["ask_command"]

CALIBRATION = "calibration.json"


def ask_command(
    question: Annotated[str | None, typer.Argument(help="One question; or --questions FILE.")] = None,
    corpus: CorpusFile = None,
    questions: QuestionFile = None,
    tasks: Annotated[int, typer.Option(min=1, help="How many of the file's test questions.")] = 20,
    calibrate: Annotated[
        int, typer.Option(min=0, help="Fit the confidences on so many of the file's train questions first.")
    ] = 0,
    depth: Annotated[int, typer.Option(min=0, help="How often a question is taken apart; 0 never.")] = 2,
    budget: Annotated[int, typer.Option(min=1, help="Most distinct questions asked for one.")] = 30,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    name: Name = None,
) -> None:
    """Answer questions from memory, from passages, or from the answers to sub-questions: whichever is surest.

    The policy takes questions apart, answers, and judges its answers; hf:, openai: and vllm: can. Every search is kept
    in runs/NAME as a tree. What --calibrate fits is kept beside it and used from then on.

      treewright ask "who was born earlier, Ada or Bob?" --corpus passages.jsonl --policy hf:FOLDER
      treewright ask --questions questions.jsonl --corpus passages.jsonl --calibrate 50 --policy openai:MODEL@URL
    """
    from treewright.agent.judges.checklist import Model
    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.probtree import Calibration
    from treewright.agent.runs.questions import Asker
    from treewright.envs.retrieval.corpus import Question, load_corpus, load_questions
    from treewright.envs.retrieval.opening import make_retriever
    from treewright.search.types import layers

    if (question is None) == (questions is None):
        raise TreewrightError('name one question, treewright ask "who …?", or a file of them, --questions FILE.jsonl')
    cfg = read_config(name, config, set_, None, policy)
    asked = load_questions(questions) if questions is not None else [Question("1", question or "", (), "test")]
    docs = load_corpus(corpus) if corpus is not None else None
    w = cfg.worlds
    retriever = make_retriever(docs, w.retriever, w.encoder, w.stemming) if docs is not None else None
    kept = cfg.home / CALIBRATION
    try:
        pairs = json_value(kept.read_bytes()) if kept.is_file() else {}
        known = {way: Calibration(*pair) for way, pair in pairs.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TreewrightError(f"{kept} holds no calibration: {error}; delete it, and calibrate anew") from error

    async def work() -> None:
        actor = open_proposer(cfg.policy)
        try:
            model = next((p for p in layers(actor) if isinstance(p, Model)), None)
            if model is None:
                raise TreewrightError(
                    f"policy {cfg.policy.spec!r} gives no answer log-probs; ask with hf:, openai: or vllm:"
                )
            asker = Asker(
                model, retriever=retriever, passages=[d.text for d in docs.docs] if docs is not None else (),
                depth=depth, seed=cfg.seed, calibrations=known,
            )  # fmt: skip
            if calibrate:
                train = [q for q in asked if q.split == "train" and q.answers][:calibrate]
                asker.calibrations.update(await _calibrated(asker, train))
                found = {way: [c.slope, c.shift] for way, c in asker.calibrations.items()}
                write_whole(kept, json.dumps(found))
            await _ask_all(cfg, asker, [q for q in asked if q.split == "test"][:tasks], budget)
        finally:
            await actor.close()

    go(work)


async def _calibrated(asker: Asker, train: list[Question]) -> dict[str, Any]:
    """Fits each direct way to answer; prints the calibration errors. Raises TreewrightError without questions."""
    from treewright.agent.runs.probtree import calibrate, expected_calibration_error
    from treewright.envs.retrieval.answers import exact_match

    if not train:
        raise TreewrightError("the file has no train questions with answers to calibrate on; leave --calibrate out")
    found = {}
    for way in asker.ways:
        asker.calibrations.pop(way, None)
        said = [await asker.answer(way, q.text) for q in train]
        p, right = (
            [a.confidence for a in said],
            [bool(exact_match(a.text, q.answers)) for a, q in zip(said, train, strict=True)],
        )
        found[way] = calibrate(p, right)
        before, after = (expected_calibration_error(x, right) for x in (p, [found[way](x) for x in p]))
        console.print(f"{way}: {sum(right)} of {len(train)} right, calibration error {before:.2f} → {after:.2f}")
    return found


async def _ask_all(cfg: Any, asker: Asker, asked: list[Question], budget: int) -> None:
    from treewright.envs.retrieval.answers import exact_match
    from treewright.envs.types import Task
    from treewright.search.planning.all_nodes import as_tree, solve
    from treewright.search.planning.drawn import store_whole
    from treewright.search.store import TreeStore

    if not asked:
        raise TreewrightError("the file has no test questions; give some the split test")
    right, run = 0, f"{cfg.name} {time.time_ns()}"
    with TreeStore.open(cfg.store_at) as store:
        for q in asked:
            solution = await solve(q.text, asker, budget=budget)
            text = solution.answer.text if solution.answer is not None else "no answer"
            sure = solution.answer.confidence if solution.answer is not None else 0.0
            good = bool(q.answers) and exact_match(text, q.answers) == 1.0
            right += good
            told = f"  {'right' if good else 'wrong'}" if q.answers else ""
            console.print(f"{q.text}\n  {text}  ({sure:.0%} sure, {solution.asked} questions){told}")

            def reward(goal: str, answer: Any, q: Question = q) -> float:
                return exact_match(answer.text, q.answers) if q.answers and goal == q.text else float("nan")

            made: list[Any] = []
            tree = as_tree(solution, Task("questions", q.id, q.text, split="test"), run, reward, made=made)
            store_whole(store, tree, made)
        await store.flush()
    if len(asked) > 1:
        console.print(f"{right} of {len(asked)} right; the model was asked {asker.calls} times")
    say(f"stored in {cfg.store_at}; to look at it: treewright view {shlex.quote(cfg.store_at)}")
