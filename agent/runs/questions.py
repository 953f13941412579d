"""Questions answered by a model from memory, from passages, or from the answers to sub-questions: the surest wins.

ProbTree (arXiv 2311.13982) with a model for every part of it: it takes a question apart, answers closed book and open
book, reasons over its children's answers, and judges each of these. What is compared are the judge's probabilities of
"yes", calibrated by kind; an answer from sub-questions has the geometric mean of the confidence in the decomposition,
in the children and in the reasoning.

    asker = Asker(model, retriever=retriever, passages=docs, calibrations={"closed": calibrate(p, right)})
    solution = await solve("who was born earlier, Ada or Bob?", asker, budget=20)

The parent is given the children's answers and asked its own question again, so that a comparison is answered by a name
and not by the last child's year.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from treewright.agent.judges.checklist import Model, answer_shares, read_items
from treewright.agent.runs.probtree import Calibration
from treewright.envs.errors import TreewrightError
from treewright.envs.retrieval.index import Retriever
from treewright.envs.types import seed_of
from treewright.envs.waiting import together
from treewright.search.planning.all_nodes import REFERENCE, Answer, Option, Parts

__all__ = ["REASON", "Asker", "Prompts", "sub_questions"]

REASON = "given the parts: "
JOIN = " | "
WAYS = ("closed", "opened", "reasoned", "split")


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the model is asked, with the places that are filled in; one's own for a model with a form of its own."""

    closed: str = "Answer in as few words as possible.\nQuestion: {question}\nAnswer:"
    opened: str = (
        "{passages}\n\nAnswer from the passages above in as few words as possible.\nQuestion: {question}\nAnswer:"
    )
    reasoned: str = "{facts}\n\nAnswer from the facts above in as few words as possible.\nQuestion: {question}\nAnswer:"
    split: str = (
        "Question: {question}\n\nWhich simpler questions have to be answered first? Write at most {most}, one a line, "
        "each beginning with '- '. A later one may name the answer of an earlier one as #1, #2, … If the question is "
        "simple already, write: none\n"
    )
    judge: str = "{shown}\nQuestion: {question}\nAnswer: {answer}\nIs this answer right? Answer yes or no.\nAnswer:"
    judge_split: str = (
        "Question: {question}\nSub-questions:\n{parts}\nDo these sub-questions together answer it? Answer yes "
        "or no.\nAnswer:"
    )


class Asker:
    """A solver for `treewright.search.planning.all_nodes.solve`.

    model         writes and gives log-probs of first tokens: hf:, openai: and vllm: do
    retriever, passages   open book, over texts by position; None: closed book alone
    k             passages of a prompt;  most, depth  sub-questions of a question, and how often it is taken apart
    closed        False always retrieves
    calibrations  by 'closed', 'opened', 'reasoned' and 'split'; without one a probability is taken as it is
    `calls` counts what the model was asked.
    """

    def __init__(
        self,
        model: Model,
        *,
        retriever: Retriever | None = None,
        passages: Sequence[str] = (),
        k: int = 5,
        most: int = 4,
        depth: int = 2,
        closed: bool = True,
        max_tokens: int = 48,
        letters: int = 1200,
        seed: int = 0,
        calibrations: Mapping[str, Calibration] | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        if retriever is None and not closed:
            raise TreewrightError("an asker needs a way to answer: from memory, from passages, or both")
        if unknown := set(calibrations or ()) - set(WAYS):
            raise TreewrightError(f"no way to answer is called {sorted(unknown)[0]!r}; there are {', '.join(WAYS)}")
        self.model, self.retriever, self.passages = model, retriever, passages
        self.k, self.most, self.depth, self.closed = k, most, depth, closed
        self.max_tokens, self.letters, self.seed = max_tokens, letters, seed
        self.calibrations, self.prompts = dict(calibrations or {}), prompts or Prompts()
        self.calls = 0
        self._deep: list[tuple[re.Pattern[str], int]] = []  # sub-questions that were made, and how deep they lie

    async def __call__(self, goal: str) -> Sequence[Option]:
        """The options of a goal, the surest answer first. Raises PolicyFault where the model cannot be asked."""
        if goal.startswith(REASON):
            return [await self.reasoned(goal)]
        answers = await together(self.answer(name, goal) for name in self.ways)
        parts = await self.split(goal) if self._depth(goal) < self.depth else None
        return [*sorted(answers, key=lambda a: -a.confidence), *([parts] if parts is not None else [])]

    @property
    def ways(self) -> tuple[str, ...]:
        """The direct ways to answer that there are."""
        return (*(("closed",) if self.closed else ()), *(("opened",) if self.retriever is not None else ()))

    async def answer(self, way: str, question: str) -> Answer:
        """From memory ('closed') or from passages ('opened')."""
        if way == "closed":
            return await self._said(way, self.prompts.closed.format(question=question), question, "")
        hits = await self.retriever.search(question, self.k) if self.retriever is not None else []
        shown = "\n\n".join(self.passages[hit.position][: self.letters] for hit in hits)
        return await self._said(way, self.prompts.opened.format(passages=shown, question=question), question, shown)

    async def reasoned(self, goal: str) -> Answer:
        """The parent's question over its children's answers."""
        question, *facts = goal.removeprefix(REASON).split(JOIN)
        shown = "\n".join(facts)
        return await self._said(
            "reasoned", self.prompts.reasoned.format(facts=shown, question=question), question, shown
        )

    async def split(self, question: str) -> Parts | None:
        """Sub-questions and, as the last part, the question itself over their answers; None for a simple one."""
        asked = self.prompts.split.format(question=question, most=self.most)
        parts = sub_questions(await self._write(asked, 4 * self.max_tokens), self.most)
        if not parts or parts == [question]:
            return None
        below = self._depth(question) + 1
        self._deep += [(_pattern(part), below) for part in parts]
        listed = "\n".join(f"- {part}" for part in parts)
        sure = await self._sure("split", self.prompts.judge_split.format(question=question, parts=listed))
        plain = REFERENCE.sub(r"no. \1", question).replace(JOIN, " ")
        facts = [f"{part.replace(JOIN, ' ')} {f'#{i}'}" for i, part in enumerate(parts, 1)]
        return Parts((*parts, REASON + JOIN.join([plain, *facts])), "mean", confidence=sure)

    # -- the model ----------------------------------------------------------------------------------------------

    async def _said(self, way: str, prompt: str, question: str, shown: str) -> Answer:
        text = next(iter((await self._write(prompt, self.max_tokens)).strip().splitlines()), "").strip()
        asked = self.prompts.judge.format(shown=shown, question=question, answer=text).strip()
        return Answer(text, await self._sure(way, asked) if text else 0.0)

    async def _write(self, prompt: str, tokens: int) -> str:
        self.calls += 1
        return await self.model.write(prompt, seed_of(self.seed, prompt) & 0x7FFFFFFF, tokens)

    async def _sure(self, way: str, prompt: str) -> float:
        """The calibrated probability of 'yes' against 'no'; a half where the model says neither."""
        self.calls += 1
        (tokens,) = await self.model.first_tokens([prompt])
        yes, no, _ = answer_shares(tokens)
        p = yes / (yes + no) if yes + no else 0.5
        return self.calibrations.get(way, Calibration())(p)

    def _depth(self, question: str) -> int:
        return next((deep for pattern, deep in self._deep if pattern.fullmatch(question)), 0)


def sub_questions(text: str, most: int) -> list[str]:
    """The listed questions of an answer, those that name answers of later or missing ones left out."""
    out: list[str] = []
    for item in read_items(text):
        named = [int(n) for n in REFERENCE.findall(item)]
        if all(1 <= n <= len(out) for n in named) and item not in out and item.casefold().strip(".") != "none":
            out.append(item)
    return out[:most]


def _pattern(part: str) -> re.Pattern[str]:
    """Matches the part with any answers filled in."""
    return re.compile("(?:.*)".join(map(re.escape, re.split(r"#\d+", part))), re.DOTALL)
