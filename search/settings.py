"""How a tree is grown, and what a search needs of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from treewright.envs.errors import TreewrightError
from treewright.search.header import TreeHeader
from treewright.search.segments import Segments
from treewright.search.temper import Temperatures
from treewright.search.tree import Tree
from treewright.search.types import Expansion

__all__ = ["MAX_TOKENS", "REPAIRS", "Keeper", "Settings"]

STOPS = ("budget", "first", "proved")
MAX_TOKENS = 512  # of a draw, where neither the user nor the suite says how many
REPAIRS = 2  # times a step is taken again, unless the settings say otherwise


class Keeper(Protocol):
    """The part of the tree store that a search needs; writes are queued in order and durable once flushed."""

    def status(self, tree_id: str) -> str | None: ...
    def header(self, tree_id: str) -> TreeHeader: ...
    def expansions(self, tree_id: str) -> Sequence[Expansion]: ...
    def load(self, tree_id: str) -> Tree: ...
    def create(self, header: TreeHeader) -> object: ...
    def append_nowait(self, tree_id: str, expansion: Expansion, first_id: int) -> object: ...
    def finish(self, tree: Tree) -> object: ...
    async def flush(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a tree is grown; stored with it, and a resume with other settings is refused.

    run, attempt, seed  name the tree and seed every draw and step
    in_flight   expansions at once; part of the result, unlike the number of sessions
    max_tokens  most tokens of one draw
    close       finish every open node by one rollout when the budget is spent: needed to train on the tree
    stop        when a tree ends before its budget: "budget" never; "first" once the world has ended an episode;
                "proved" once the rule's best end cannot be beaten by what is open, for rules with costs
    answers     stop once this many finished leaves were seen (closing still happens); None = never
    retries     how often a faulty action is tried again from a restored node
    repairs     how often a step is taken again where a replay found another state than recorded; 0 = never
    peers       most other branches that a prompt tells of, see treewright.search.peers; 0 = none
    share_results  drafts of one expansion with equal actions in other words share one step of the world. For worlds
                whose steps do not depend on the step's key; each draft goes on in its own context
    merge       token-identical draws of a node become one, with their multiplicity: it is executed and gone on from
                once. False keeps them apart, each with its own step and subtree, which tells more where rewards or
                steps are random. Both are exact
    segments    how responses are cut into parts that are branched at; None: a response is one draw
    temperature_by_depth  what draws are made at; None: all as the policy draws by itself
    origin      what the task's world and reward are called, as its suite knows it; None: nothing. A resume compares it
                where both sides have it
    """

    run: str = "run"
    attempt: int = 0
    seed: int = 0
    in_flight: int = 1
    max_tokens: int = MAX_TOKENS
    close: bool = False
    answers: int | None = None
    retries: int = 2
    repairs: int = REPAIRS
    peers: int = 0
    share_results: bool = False
    merge: bool = True
    segments: Segments | None = None
    stop: str = "budget"
    temperature_by_depth: Temperatures | None = None
    origin: Mapping[str, str] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name in ("in_flight", "max_tokens"):
            if getattr(self, name) < 1:
                raise TreewrightError(f"settings.{name} = {getattr(self, name)}; it must be at least 1")
        if self.stop not in STOPS:
            raise TreewrightError(f"settings.stop = {self.stop!r}; it is one of {', '.join(STOPS)}")
        for name in ("repairs", "peers"):
            if getattr(self, name) < 0:
                raise TreewrightError(f"settings.{name} = {getattr(self, name)}; it must be at least 0")
        if self.segments is not None and self.peers:
            raise TreewrightError("settings.peers tells of whole turns; it does not go with settings.segments")
