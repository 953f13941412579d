"""What passes between the engine, the policy and the judge. Implemented by the agent floor; no torch here.

Every field of `Completion`, `Draft` and `Outcome` is a field of a node, declared here and nowhere else: the columns of
a tree, of the store, of the raw export and of the estimators' arrays follow from them (see `treewright.search.schema`).
A new one is a line here and a migration of the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from treewright.envs.errors import TreewrightError
from treewright.envs.records import quick
from treewright.envs.types import Action, Effect, Observation, Task, ToolSpec
from treewright.search.fields import stored

__all__ = [
    "SEGMENT",
    "Around",
    "Budget",
    "Completion",
    "Context",
    "Costly",
    "Draft",
    "Evaluator",
    "Exchange",
    "Expansion",
    "Message",
    "NodeKind",
    "NodeStatus",
    "Origin",
    "Outcome",
    "PolicyFault",
    "Proposer",
    "Reader",
    "Sampler",
    "Score",
    "Spent",
    "layers",
]


SEGMENT = "segment"
"""The finish reason of a draw that is part of a response: its node is a NodeKind.SEGMENT."""


class PolicyFault(TreewrightError):
    """The model server failed for good (after the client's own retries). Infrastructure, not invalid output."""


class NodeKind(StrEnum):
    """CHOICE: one policy turn. ALL: every child is needed. SEGMENT: part of a turn, no action."""

    CHOICE = "choice"
    ALL = "all"
    SEGMENT = "segment"


class NodeStatus(StrEnum):
    """Where a node stands.

    DRAFT drawn, not executed; OPEN executed, not expanded; EXPANDED has drawn its children; TERMINAL the world ended
    the episode; TRUNCATED the task's horizon did; PRUNED killed with a recorded keep probability; UNREACHABLE a replay
    diverged on the way; FAULT the infrastructure failed for good; COMMITTED executed by commit; IN_DOUBT dispatched by
    commit with unknown outcome.
    """

    DRAFT = "draft"
    OPEN = "open"
    EXPANDED = "expanded"
    TERMINAL = "terminal"
    TRUNCATED = "truncated"
    PRUNED = "pruned"
    UNREACHABLE = "unreachable"
    FAULT = "fault"
    COMMITTED = "committed"
    IN_DOUBT = "in_doubt"


class Origin(StrEnum):
    """Who wrote a token. Only POLICY tokens have behaviour log-probs and are trained on by default."""

    POLICY = "policy"
    DEMO = "demo"
    STORED = "stored"
    INJECTED = "injected"
    ENV = "env"


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message in the OpenAI roles: system, user, assistant, tool; `images` are PNG or JPEG files in it."""

    role: str
    content: str
    images: tuple[bytes, ...] = ()


@quick
@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn as the policy sees it: what it said and what the world answered."""

    response: str
    action: Action | None
    observation: Observation


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Exactly what the policy receives at a node, as token ids and, for servers that take text, as messages.

    keep   how many tokens of (parent's context + parent's response) stay; the rest is replaced by `delta`
    delta  token ids that this node adds: observation and the template's marks
    ids    the whole prompt, (parent context + response)[:keep] + delta; empty for policies without token ids
    temperature  what draws from it are asked to be made at; None: as the policy draws by itself
    """

    keep: int
    delta: tuple[int, ...]
    ids: tuple[int, ...]
    messages: tuple[Message, ...] = ()
    temperature: float | None = None


@quick
@dataclass(frozen=True, slots=True)
class Completion:
    """One draw of the policy.

    token_ids  [T] as sampled, the end-of-turn token included; never re-tokenised afterwards
    logprobs   [T] natural log under the distribution they were sampled from; empty if the server returns none
    trainable  drawn at temperature 1, or at the one that its prompt asked for, untruncated, with exact log-probs: under
               a grammar those of the masked distribution
    share      share of the node's mass where draws are not i.i.d.; None: its multiplicity over K. Kept as Draft.share
    hidden     sampled tokens that are not shown: a server counted them, or a cut left them out
    money      what the draw cost
    routes     the experts that the sampler sent the tokens to which this draw added, see `treewright.search.routes`
    finish_reason  stop | length, as servers say it; SEGMENT for a part of a response that is gone on from
    """

    text: str
    token_ids: tuple[int, ...] = stored(default=(), column="ids")
    logprobs: tuple[float, ...] = ()
    _: KW_ONLY
    finish_reason: str = stored(default="stop", column="finish")
    policy_version: str = ""
    trainable: bool = True
    origin: Origin = Origin.POLICY
    temperature: float = 1.0
    share: float | None = stored(default=None, column="drawn_share", since=3)
    hidden: int = stored(default=0, since=3)
    money: float = stored(default=0.0, since=3)
    routes: str = stored(default="", since=4)

    @property
    def tokens(self) -> int:
        """Sampled tokens, for budgets."""
        return len(self.token_ids) + self.hidden

    @property
    def logprob(self) -> float:
        """Sum of the token log-probs in nats; NaN without them."""
        return math.fsum(self.logprobs) if self.logprobs else math.nan


@dataclass(frozen=True, slots=True)
class Score:
    """An estimate of success in [0, 1] and what it cost in judge tokens."""

    value: float
    tokens: int = 0


@quick
@dataclass(frozen=True, slots=True)
class Outcome:
    """What executing an action (or resetting, for the root) gave.

    status   OPEN, TERMINAL, TRUNCATED, FAULT or UNREACHABLE
    reward   truth of the transition; NaN where unknown (faults)
    context  (keep, delta) of the prompt its children are drawn from; delta is empty for finished nodes
    error    message shown to the policy for invalid output, else None
    fault    what the infrastructure did, else None
    steps    environment steps spent, replayed ones included
    """

    observation: Observation
    status: NodeStatus
    _: KW_ONLY
    reward: float = stored(default=0.0, tree="_truth")
    effect: Effect = stored(default=Effect.READ, column="outcome_effect", tree="effect")
    error: str | None = stored(default=None, column="outcome_error", tree="error")
    fault: str | None = stored(default=None, column="outcome_fault", tree="fault")
    keep: int = 0
    delta: tuple[int, ...] = ()
    steps: int = 0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A node to be: one draw (with its multiplicity), parsed, perhaps executed.

    after    which node it hangs on: 0 the popped node, i > 0 the i-th draft of the same expansion
    slot     index of the first draw that gave it
    mult     how many draws of its parent were token-identical
    share    share of its parent's mass, mult / K for independent draws
    seed     draw seed; the step key derives from it, so a replay repeats the step exactly
    action   None when the text could not be parsed; then `error` says why
    outcome  None until executed
    """

    after: int
    slot: int
    mult: int
    share: float
    seed: int = field(metadata={"wide": True})
    completion: Completion
    action: Action | None
    error: str | None = None
    effect: Effect = Effect.UNKNOWN
    score: float = math.nan
    outcome: Outcome | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was used. `env_steps` counts replays too; `closing_*` is the separate allowance of closing rollouts."""

    expansions: int = 0
    policy_tokens: int = 0
    judge_tokens: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    money: float = 0.0
    closing_tokens: int = 0
    closing_steps: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            expansions=self.expansions + other.expansions,
            policy_tokens=self.policy_tokens + other.policy_tokens,
            judge_tokens=self.judge_tokens + other.judge_tokens,
            env_steps=self.env_steps + other.env_steps,
            seconds=self.seconds + other.seconds,
            money=self.money + other.money,
            closing_tokens=self.closing_tokens + other.closing_tokens,
            closing_steps=self.closing_steps + other.closing_steps,
        )

    def __neg__(self) -> Spent:
        return Spent(**{f.name: -getattr(self, f.name) for f in fields(Spent)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Ceilings; None is unlimited. Tokens and money are reserved before dispatch, so they are never exceeded."""

    expansions: int | None = None
    policy_tokens: int | None = None
    judge_tokens: int | None = None
    env_steps: int | None = None
    seconds: float | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and value < 0:
                raise TreewrightError(f"budget {f.name} = {value} is negative; give a number >= 0 or leave it out")

    def exhausted(self, spent: Spent, reserve: Spent | None = None) -> str | None:
        """Name of the first ceiling that `spent` plus `reserve` would pass, or None.

        A ceiling of n expansions admits exactly n; without a reserve, reaching a ceiling counts as passing it.
        """
        for name in CEILINGS:
            limit = getattr(self, name)
            if limit is None:
                continue
            more = 0 if reserve is None else getattr(reserve, name)
            used = getattr(spent, name) + more
            if used > limit or (used >= limit and more == 0):
                return name
        return None


CEILINGS = tuple(f.name for f in fields(Budget))


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """The immutable result of one pop: what the store keeps and what a resumed search reads back.

    seq      index of the pop
    node     the popped node
    closing  True for a closing rollout (a chain of single draws)
    drawn    K, draws made at the popped node (closing: 1); 0 if it turned out finished
    outcome  what executing the popped draft gave (lazy rules), else None
    drafts   new nodes in order of creation
    spent    what this pop cost
    fault    why the policy could not be asked, else None
    """

    seq: int
    node: int
    closing: bool
    drawn: int
    outcome: Outcome | None
    drafts: tuple[Draft, ...]
    spent: Spent
    fault: str | None = None


class Proposer(Protocol):
    """Draws drafts. A policy is a proposer."""

    @property
    def version(self) -> str:
        """Names the weights; changes with every update."""

    def context(
        self,
        task: Task,
        tools: Sequence[ToolSpec],
        first: Observation,
        turns: Sequence[Exchange],
        base: Sequence[int],
    ) -> Context:
        """The prompt at a node.

        first  what the episode began with; turns  all since then, oldest first: the path from the root to this node,
               behind what was done before the commit that the tree goes on from, if it goes on from one;
        base   token ids of (parent context + parent response), empty where an episode begins. Tokens in `base` are
               never encoded again: the result either keeps a prefix of them or replaces their tail.
        """

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        """One independent completion for each seed; the same seed, weights and context give the same draw.

        Raises PolicyFault when the server stays unreachable.
        """


@runtime_checkable
class Costly(Protocol):
    """A proposer whose draws cost money: a search with a money budget reserves the most before it asks."""

    def dearest(self, max_tokens: int) -> float:
        """The most money that one draw can cost."""


@runtime_checkable
class Sampler(Protocol):
    """A proposer that says how it samples; kept in the header of every tree."""

    @property
    def sampling(self) -> Mapping[str, Any]:
        """What differs from plain sampling at temperature 1; empty for nothing."""


@runtime_checkable
class Reader(Protocol):
    """A proposer whose draws are not read as `parse_action` reads them: any draw of its is an action."""

    def read(self, done: Completion, tools: Sequence[ToolSpec]) -> Action:
        """What the draw does. Raises InvalidAction where it does nothing."""


@runtime_checkable
class Around(Protocol):
    """A proposer around another one, whose capabilities count where it has none of its own."""

    @property
    def inner(self) -> Proposer: ...


def layers(policy: object) -> Iterator[object]:
    """The policy and those it is put around, outermost first: the first that has a capability is the one to ask.

    costly = next((p for p in layers(policy) if isinstance(p, Costly)), None)
    """
    while True:
        yield policy
        if not isinstance(policy, Around):
            return
        policy = policy.inner


class Evaluator(Protocol):
    """Estimates success. Never sees the environment's reward."""

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        """One score for each candidate, all siblings of one expansion at once."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What an evaluator sees of a node: the path so far and the draft, executed (eager) or not (lazy).

    turns     exchanges since the episode began, those before a commit too, up to and including the parent
    path_logprob, path_actions  sum of behaviour log-probs and number of actions up to and including the draft
    context   the prompt that the draft was drawn from, as the policy received it
    after     the prompt that its own children would be drawn from; None until it was executed, or where it ended
    """

    turns: tuple[Exchange, ...]
    completion: Completion
    action: Action | None
    error: str | None
    observation: Observation | None
    status: NodeStatus
    path_logprob: float
    path_actions: int
    context: Context | None = None
    after: Context | None = None
