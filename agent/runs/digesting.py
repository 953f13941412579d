"""`digest` as a tool: whatever a world shows in parts, or at length, is read by a model and answered from.

`worlds.digest = "POLICY"` gives every suite of a run the tool. The document is what the world shows now, whole where it
comes in parts (a web page), or a document that the world knows by name (one of a corpus). The world stays as it is, so
a digest may be repeated anywhere; equal questions about equal texts are asked of the model once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from treewright.agent.config import PolicySection
from treewright.agent.judges.checklist import Model
from treewright.agent.policies.once import Once
from treewright.agent.policies.propose import open_proposer
from treewright.agent.runs.digest import Digest, digest
from treewright.envs.errors import EnvFault, InvalidAction, TreewrightError
from treewright.envs.types import (
    Action,
    Call,
    Effect,
    Environment,
    Observation,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
    seed_of,
)
from treewright.search.types import PolicyFault, layers

__all__ = ["TOOL", "Digester", "Digesting", "with_digest"]

TOOL = ToolSpec(
    "digest",
    "have a long text read for a question, section by section; without a document, what is shown now, whole",
    {
        "type": "object",
        "properties": {
            "question": {"type": "string", "description": "what is asked of the text"},
            "document": {"type": "string", "description": "a document's id or name, where the world has documents"},
        },
        "required": ["question"],
        "additionalProperties": False,
    },
    Effect.READ,
)
NOTHING = "the text says nothing of it"


class Digester:
    """Answers questions about texts with one model, which is opened when it is first needed.

    spec     of the policy that reads: hf:, openai: or vllm:;  letters  most that it reads at once
    A question that a branch or a replay asks again of the same text is shown the same answer.
    """

    def __init__(self, spec: str, letters: int = 4000, *, opened: Callable[[], Any] | None = None) -> None:
        self.spec, self.letters = spec, letters
        self._opened = opened or (lambda: open_proposer(PolicySection(spec=spec)))
        self._actor: Any = None
        self._answers: Once[tuple[str, str], Digest] = Once()

    async def answer(self, text: str, question: str) -> str:
        """One line. Raises EnvFault where the model fails, which is no fault of the policy's."""
        try:
            found = (await self._answers.get((text, question), lambda: self._read(text, question))).answer
        except PolicyFault as error:
            raise EnvFault(f"digest: {error}") from error
        return NOTHING if found is None else f"{found.text} ({found.confidence:.0%} sure)"

    async def _read(self, text: str, question: str) -> Digest:
        if self._actor is None:
            self._actor = self._opened()
        model = next((layer for layer in layers(self._actor) if isinstance(layer, Model)), None)
        if model is None:
            raise TreewrightError(f"worlds.digest={self.spec}: it writes no answers; name an hf:, openai: or vllm: one")
        return await digest(text, question, model, letters=self.letters, seed=seed_of("digest", self.spec))

    def told(self) -> list[str]:
        """How often it was asked, for people; nothing where it never was."""
        done = self._answers.all_found()
        said = f"digest answered {len(done)} questions; {self.spec} was asked {sum(d.calls for d in done)} times"
        return [said] if done else []

    async def close(self) -> None:
        """Ends what it has opened; it opens again where it is asked again."""
        actor, self._actor = self._actor, None
        if actor is not None:
            await actor.close()


class Digesting:
    """A session with the tool; everything else is the session's own.

    inner  an environment; where it has a coroutine function `document(name)`, that gives the whole text of what is
           shown now ("") or of a document by name, None for one that it does not know
    """

    def __init__(self, inner: Environment, digester: Digester) -> None:
        self.inner, self.digester = inner, digester
        self._shown = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def reset(self, task: Task, key: int) -> Observation:
        return self._seen(await self.inner.reset(task, key))

    async def restore(self, snapshot: Snapshot) -> Observation:
        return self._seen(await self.inner.restore(snapshot))

    async def actions(self) -> Sequence[ToolSpec]:
        """Those of the session and the tool, unless the session has one of that name."""
        own = await self.inner.actions()
        return own if any(spec.name == TOOL.name for spec in own) else [*own, TOOL]

    async def effect(self, action: Action) -> Effect:
        return Effect.READ if await self._is_mine(action) else await self.inner.effect(action)

    async def step(self, action: Action, key: int) -> StepResult:
        if not await self._is_mine(action):
            done = await self.inner.step(action, key)
            self._seen(done.observation)
            return done
        said = [await self._answer(call) for call in action.calls]
        fingerprint = self._last.fingerprint
        return StepResult(Observation("\n".join(said), fingerprint, provenance="tool"))

    async def _is_mine(self, action: Action) -> bool:
        mine = [call.name == TOOL.name for call in action.calls]
        if not any(mine) or await self.actions() == await self.inner.actions():
            return False
        if not all(mine):
            raise InvalidAction("digest goes alone, or with other digests")
        return True

    async def _answer(self, call: Call) -> str:
        given = call.arguments
        odd = sorted(set(given) - set(TOOL.parameters["properties"]))
        if odd:
            raise InvalidAction(f"digest: no argument {odd[0]!r}, it takes question and document")
        question, name = given.get("question"), given.get("document") or ""
        if not isinstance(question, str) or not question.strip() or not isinstance(name, str):
            raise InvalidAction("digest needs a question, as a string")
        whole = getattr(self.inner, "document", None)
        text = await whole(name) if whole is not None else None
        if text is None and name:
            raise InvalidAction(f"no document {name!r}; without a document, digest reads what is shown now")
        text = self._shown if text is None else text
        return await self.digester.answer(text, question.strip()) if text.strip() else NOTHING

    def _seen(self, observation: Observation) -> Observation:
        self._last = observation
        self._shown = observation.text
        return observation


def with_digest(suite: Suite, digester: Digester) -> Suite:
    """The suite with the tool in each of its sessions."""

    async def opened() -> Environment:
        return Digesting(await suite.open(), digester)

    async def close() -> None:
        await digester.close()
        if suite.close is not None:
            await suite.close()

    def told() -> Sequence[str]:
        return [*(suite.told() if suite.told is not None else ()), *digester.told()]

    return replace(suite, open=opened, close=close, told=told)
