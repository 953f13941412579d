"""A model as the judge of evidence: does what was seen say it, and is it a reason for the action?

treewright run kg/3 --set search.evidence=all --set search.evidence_judge=openai:MODEL@URL
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from treewright.agent.judges.checklist import Model, answer_shares
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Task
from treewright.search.types import Score

__all__ = ["Entailment", "open_entailment"]


class Entailment:
    """The lower of P(what was seen says it) and P(it is a reason for the action), each from the first token said.

    letters  how much of each text that was seen a prompt shows, the newest `texts` of them and the goal
    """

    def __init__(self, model: Model, name: str, *, letters: int = 1500, texts: int = 8) -> None:
        self.model, self.name, self.letters, self.texts = model, name, letters, texts

    async def supports(self, task: Task, seen: Sequence[str], said: str, action: Action) -> Score:
        goal, *rest = seen
        shown = "\n\n".join(text[: self.letters] for text in [goal, *rest[-self.texts :]] if text)
        end = "Answer with one of: yes, no.\nAnswer:"
        prompts = [
            f"{shown}\n\nDo these texts say or imply the following?\n{said}\n{end}",
            f"Task: {task.goal}\nKnown: {said}\nNext step: {action}\nIs what is known a reason for this step? {end}",
        ]
        shares = [answer_shares(tokens) for tokens in await self.model.first_tokens(prompts)]
        return Score(min(yes / (yes + no) if yes + no else 0.5 for yes, no, _ in shares), len(prompts))


@functools.lru_cache(maxsize=4)
def open_entailment(spec: str) -> Entailment:
    """The judge that asks the policy `spec`. Raises TreewrightError for one that gives no answer log-probs."""
    from treewright.agent.policies.opening import open_policy

    model: object = open_policy(spec)
    if not isinstance(model, Model):
        raise TreewrightError(f"policy {spec!r} gives no answer log-probs; judge evidence with hf:, openai: or vllm:")
    return Entailment(model, f"entailment:{spec}")
