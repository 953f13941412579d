"""A policy behind the server: prompts from requests, draws, answers, a recording of each."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from treewright.agent.gateway.asked import Answer, Answered, Asked
from treewright.agent.gateway.errors import ApiError
from treewright.agent.gateway.held import Client
from treewright.agent.gateway.prompts import Nothing, Prompts, Shown
from treewright.agent.gateway.record import Recording
from treewright.agent.gateway.replies import answer_of, decoder_of, fits
from treewright.agent.policies.policy import Policy
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task, seed_of
from treewright.search.store import TreeStore
from treewright.search.types import PolicyFault

__all__ = ["TRAINABLE", "Draws"]

TRAINABLE = "x-treewright-trainable"
IGNORED = "x-treewright-ignored"
SESSION = "x-treewright-session"
NO_IDS = "no; the policy gives no token ids"


class Draws:
    """Answers by a policy.

    max_tokens  of one answer where the request does not say
    tries       draws for one answer that must fit a schema or call a tool, before the request fails
    sessions    held in memory; the ones that were used longest ago are read back from the store when they go on
    """

    holds = False

    def __init__(
        self, policy: Policy, *, store: TreeStore | None = None, run: str = "served", seed: int = 0,
        max_tokens: int = 1024, tries: int = 8, sessions: int = 1024,
    ) -> None:  # fmt: skip
        self.policy, self.store, self.run, self.seed = policy, store, run, seed
        self.max_tokens, self.tries, self.sessions = max_tokens, tries, sessions
        self.prompts, self.decode = Prompts(policy), decoder_of(policy)
        self._held: OrderedDict[str, Recording] = OrderedDict()
        self._count = 0

    @property
    def models(self) -> list[str]:
        return [self.policy.name]

    async def answer(self, session: str | None, asked: Asked, client: Client | None = None) -> Answered:
        """Raises ApiError for what cannot be shown, drawn or kept."""
        label = f"{self._count:x}{secrets.token_hex(10)}"
        self._count += 1
        recording = self._session(session) if session is not None else None
        known = recording if recording is not None else Nothing()
        task = Task("gateway", "", "")
        try:
            shown = self.prompts.of(asked, task, known)
        except TreewrightError as error:
            raise ApiError(400, str(error), "messages") from error
        first = seed_of("asked", asked.seed) if asked.seed is not None else seed_of(self.seed, label)
        seeds = [seed_of(first, i) for i in range(asked.n)]
        answers = await self._drawn(asked, shown, seeds, label)
        headers = self._headers(asked, shown, answers, session)
        if recording is not None:
            await recording.add(asked, shown, seeds, answers)
        elif self.store is not None:
            alone = Recording(label, self.run, self.policy.version, self.store)
            await alone.add(asked, shown, seeds, answers)
            await alone.end(None)
        return Answered(
            answers=tuple(answers), label=label, created=int(time.time()), model=asked.model,
            prompt=shown.context.ids, headers=headers,
        )  # fmt: skip

    async def _drawn(self, asked: Asked, shown: Shown, seeds: list[int], label: str) -> list[Answer]:
        limit = asked.max_tokens or self.max_tokens
        insists = asked.form is not None or (asked.must_call != "" and not asked.no_calls)
        open_, answers = list(range(len(seeds))), dict[int, Answer]()
        for _ in range(self.tries if insists else 1):
            try:
                drawn = await self.policy.draw(shown.context, [seeds[i] for i in open_], limit)
            except PolicyFault as error:
                raise ApiError(503, f"the policy could not be asked: {error}") from error
            for i, done in zip(open_, drawn, strict=True):
                if insists:
                    done = replace(done, trainable=False)  # drawn until it fits: not what the policy alone says
                answers[i] = answer_of(done, asked, self.decode, f"{label}_{i}")
            open_ = [i for i in open_ if not fits(answers[i], asked)] if insists else []
            if not open_:
                return [answers[i] for i in range(len(seeds))]
            for i in open_:
                seeds[i] = seed_of(seeds[i], "again")
        what = "calls the tool that tool_choice asks for" if asked.must_call else "fits response_format"
        raise ApiError(502, f"the policy gave no answer that {what} in {self.tries} draws")

    def _headers(self, asked: Asked, shown: Shown, answers: list[Answer], session: str | None) -> Mapping[str, str]:
        if not shown.context.ids or not all(one.completion.token_ids for one in answers):
            trainable = NO_IDS
        elif all(one.completion.trainable and one.completion.logprobs for one in answers):
            trainable = "yes"
        else:
            trainable = "no; not a plain draw at temperature 1 with log-probs"
        headers = {TRAINABLE: trainable}
        if session is not None:
            headers[SESSION] = session
        if asked.ignored:
            headers[IGNORED] = ", ".join(asked.ignored)
        return headers

    # -- sessions -----------------------------------------------------------------------------------------------

    def _session(self, name: str) -> Recording:
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        made = (
            Recording(name, self.run, self.policy.version, None)
            if self.store is None
            else Recording.resumed(name, self.run, self.policy.version, self.store)
        )
        self._held[name] = made
        while len(self._held) > self.sessions:
            oldest = next((key for key, one in self._held.items() if not one.lock.locked()), None)
            if oldest is None or oldest == name:
                break
            del self._held[oldest]
        return made

    async def count(self, session: str | None, asked: Asked) -> int:
        """Tokens of the request's prompt."""
        known = self._held.get(session or "") or Nothing()
        try:
            return len(self.prompts.of(asked, Task("gateway", "", ""), known).context.ids)
        except TreewrightError as error:
            raise ApiError(400, str(error), "messages") from error

    async def end(self, session: str, reward: float | None) -> str:
        """Finishes a session's recording and returns the tree's id. Raises ApiError where there is none."""
        found = self._session(session)
        if found.tree is None:
            self._held.pop(session, None)
            raise ApiError(404, f"session {session!r} has no call yet")
        tree_id = await found.end(reward)
        del self._held[session]
        return tree_id

    def refused(self, session: str | None, what: str, error: ApiError) -> None:
        """Nothing: whoever ends the session names its reward."""
