"""Routing replay: a model's routers take the experts that the sampler took ("R3", arXiv 2510.11370).

Sampler and trainer compute in other orders and precisions, and where two experts score nearly alike they choose
differently. With the sampler's choice replayed, the trainer computes the function that the tokens were drawn from:
which experts is given, their weights and all gradients come from the trainer's own scores.

    with replaying(model, pack.routes):
        logp, entropy = tree_logprobs(model, ids, plan, rows, targets)

A router is a part that gives whole numbers for each token, and chooses them by a top-k of its scores. It runs twice:
once by itself, which tells how it would choose, and once with the top-k answered by the given experts. Where a top-k
chooses among groups of experts first, the groups of the given experts are taken. What a router says then must be what
it was given, else the model is refused by the name of the part.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from treewright.envs.errors import TreewrightError
from treewright.kernels import TreeChunk, TreePlan
from treewright.training.decoders.attention import UnsupportedModel
from treewright.training.decoders.check import fit_of, whole_numbers
from treewright.training.decoders.plans import inner_model, replay_in, running_plan, running_replay, turn
from treewright.training.decoders.structure import text_config

__all__ = ["Replay", "refuse_routes", "replaying"]

OFF = "set train.replay_routes=false"
TOPK = (torch.topk, torch.Tensor.topk)


@contextmanager
def replaying(model: nn.Module, routes: NDArray[np.int16] | Tensor | None) -> Iterator[Replay | None]:
    """Forward passes of `model` in a `with` block take these experts, also those that checkpointing repeats.

    routes  [T, L, K] by token of the pack that runs, whole or in chunks; −1 where the model routes as it would. L are
            the layers with experts, or all layers. None: nothing is replayed

    Raises TreewrightError for routes that are not this model's, UnsupportedModel, when the block ends, naming a part
    that did not take its experts.
    """
    if routes is None:
        yield None
        return
    replay = Replay(model, torch.as_tensor(routes))
    with replay_in(replay):
        yield replay
    replay.finish()


def refuse_routes(model: nn.Module, routes: NDArray[np.int16] | None) -> None:
    """Raises what `replaying` would, as far as it can be seen before the model runs."""
    if routes is not None:
        Replay(model, torch.as_tensor(routes))


@dataclass(slots=True)
class _Router:
    """One router, its layer among those of the routes, and what it did.

    counts  by where a chunk begins, the last time that it ran: tokens whose experts were given, and those of them that
            the router by itself would have sent elsewhere
    astray, high, crowded  it took others; was given some that it has not; some in more groups than it takes
    """

    name: str
    layer: int
    counts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    astray: Tensor | bool = False
    high: Tensor | bool = False
    crowded: Tensor | bool = False


class Replay:
    """Which experts each router is to take, and what came of it: `given` counts (token, layer) whose experts were
    given, `apart` those of them that the model by itself would have sent to others."""

    def __init__(self, model: nn.Module, routes: Tensor) -> None:
        inner = inner_model(model)
        self.routers = _attached(inner, routes)
        self.rows = _whole(routes.to(inner.device))
        self.experts = 0

    @property
    def given(self) -> int:
        return sum(int(given) for router in self.routers for given, _ in router.counts.values())

    @property
    def apart(self) -> int:
        return sum(int(apart) for router in self.routers for _, apart in router.counts.values())

    def run(self, place: int, forward: Callable[[], Any]) -> Any:
        """What the router at `place` gives where it takes its experts."""
        router, plan = self.routers[place], running_plan()
        if plan is not None and not isinstance(plan, TreePlan | TreeChunk):
            raise UnsupportedModel("routes are replayed on packs, not while tokens are drawn")
        if turn(f"router {place}")[1]:
            raise UnsupportedModel(f"{router.name} runs more than once in a pass; {OFF}")
        part = slice(plan.start, plan.stop) if isinstance(plan, TreeChunk) else slice(None)
        rows = self.rows[part, router.layer].long()
        with _Watching() as watched:
            own = whole_numbers(forward(), len(rows))
        if own is None:
            raise UnsupportedModel(f"{router.name} does not say the experts of {len(rows)} tokens; {OFF}")
        if own.shape[1] != rows.shape[1]:
            raise TreewrightError(
                f"routes have {rows.shape[1]} experts a token, but {router.name} takes {own.shape[1]}: they are of "
                f"another model. Train the one that drew the trees, or {OFF}"
            )
        own, at = own.long(), watched.choice(own.long())
        if at is None:
            raise UnsupportedModel(f"{router.name} does not choose its experts by topk; {OFF}")
        count = watched.calls[at][0]
        known = rows[:, :1] >= 0
        wanted = torch.where(known, rows.clamp(max=count - 1), own)
        with _Choosing(wanted, at, count, router.name) as choosing:
            out = forward()
        taken = whole_numbers(out, len(rows))
        if taken is None or taken.shape != wanted.shape or choosing.number != len(watched.calls):
            raise UnsupportedModel(f"{router.name} routes in another way each time; {OFF}")
        self.experts = max(self.experts, count)
        apart = (own.sort(-1).values != wanted.sort(-1).values).any(-1).sum()  # where nothing was given they are equal
        router.counts[part.start or 0] = known.sum(), apart
        router.astray = router.astray | (taken.long() != wanted).any()
        router.high = router.high | (rows >= count).any()
        router.crowded = router.crowded | choosing.crowded
        return out

    def finish(self) -> None:
        """Raises where a router was given experts that it has not, or did not take them."""
        ran = any(router.counts for router in self.routers)
        for router in self.routers:
            if router.high:
                raise TreewrightError(
                    f"routes name experts that {router.name} has not ({self.experts} of them, from 0 on): they are of "
                    f"another model. Train the one that drew the trees, or {OFF}"
                )
            if router.crowded:
                raise TreewrightError(
                    f"routes name experts in more groups than {router.name} takes: they are of another model. Train "
                    f"the one that drew the trees, or {OFF}"
                )
            if router.astray:
                raise UnsupportedModel(f"{router.name} did not take the experts that it was given; {OFF}")
            if ran and not router.counts:
                raise UnsupportedModel(f"{router.name} did not run: its routes were not replayed; {OFF}")


def _attached(inner: Any, routes: Tensor) -> list[_Router]:
    """The model's routers, which follow replays from now on, each with its layer among those of `routes`."""
    kinds = (getattr(inner, "treewright_fit", None) or fit_of(inner)).routers
    found = [(name, m) for name, m in inner.named_modules() if isinstance(m, kinds)]
    if not found:
        raise UnsupportedModel(f"{_without_routers(inner)}: routes cannot be replayed; {OFF}")
    if routes.dim() != 3 or routes.is_floating_point():
        raise TreewrightError(f"routes are whole numbers [tokens, layers, experts], not {tuple(routes.shape)}")
    number = {name: re.search(r"\.(\d+)\.", f".{name}.") for name, _ in found}
    layers = [int(n[1]) if (n := number[name]) is not None else -1 for name, _ in found]
    count, every = routes.shape[1], getattr(text_config(inner), "num_hidden_layers", 0)
    if count == len(found):
        layers = list(range(count))
    elif count != every or not -1 < min(layers) <= max(layers) < count or len(set(layers)) < len(layers):
        raise TreewrightError(
            f"routes of {count} layers, but {type(inner).__name__} has {len(found)} with experts, of {every}: they are "
            f"of another model. Train the one that drew the trees, or {OFF}"
        )
    for place, (_, module) in enumerate(found):
        kind: Any = next(k for k in type(module).__mro__ if k in kinds)
        if not hasattr(kind.forward, "treewright_original"):
            kind.forward = _placed(kind.forward)
        module.treewright_router = place
    return [_Router(f"{type(m).__name__} ({name})", layer) for (name, m), layer in zip(found, layers, strict=True)]


def _without_routers(inner: Any) -> str:
    recorded = (getattr(inner, "_can_record_outputs", None) or {}).get("router_logits")
    kinds = [getattr(one, "target_class", one) for one in (recorded if isinstance(recorded, list) else [recorded])]
    named = [f"{type(m).__name__} ({name})" for name, m in inner.named_modules()
             for kind in kinds if isinstance(kind, type) and kind is not nn.Linear and isinstance(m, kind)]  # fmt: skip
    if named:
        return f"{named[0]} of {type(inner).__name__} does not say which experts it takes"
    return f"no part of {type(inner).__name__} says which experts it takes"


def _whole(routes: Tensor) -> Tensor:
    """Raises TreewrightError where a token has some of its experts only, or one of them twice."""
    known = routes >= 0
    if bool((known != known[..., :1]).any()):
        raise TreewrightError("routes: a token has all its experts in a layer, or −1 for each")
    if routes.shape[-1] > 1:
        ordered = routes.sort(-1).values
        if bool(((ordered[..., 1:] == ordered[..., :-1]) & known[..., 1:]).any()):
            raise TreewrightError("routes: a token has the same expert twice in a layer")
    return routes


def _placed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A router's forward, which finds the replay that runs."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **more: Any) -> Any:
        replay, place = running_replay(), getattr(self, "treewright_router", None)
        if replay is None or place is None:
            return forward(self, *args, **more)
        return replay.run(place, functools.partial(forward, self, *args, **more))

    run.treewright_original = forward  # type: ignore[attr-defined]
    return run


class _Watching(TorchFunctionMode):
    """Keeps, of every top-k, how many it chose from, and the indices."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in TOPK:
            self.calls.append((args[0].shape[-1], out[1]))
        return out

    def choice(self, experts: Tensor) -> int | None:
        """Which top-k chose the `experts` [T, K]; None if none did."""
        for at in reversed(range(len(self.calls))):
            found = self.calls[at][1]
            if found.numel() == experts.numel() and found.shape[-1] == experts.shape[-1]:
                found = found.reshape(experts.shape)
                if found.data_ptr() == experts.data_ptr() or torch.equal(found, experts):
                    return at
        return None


class _Choosing(TorchFunctionMode):
    """Answers the top-k number `at`, of `count` experts, with `wanted` [T, K], and those of groups with its groups."""

    def __init__(self, wanted: Tensor, at: int, count: int, name: str) -> None:
        super().__init__()
        self.wanted, self.at, self.count, self.name = wanted, at, count, name
        self.number = 0
        self.crowded: Tensor | bool = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in TOPK:
            return func(*args, **(kwargs or {}))
        at, self.number = self.number, self.number + 1
        return self._topk(at, func, *args, **(kwargs or {}))

    def _topk(self, at: int, func: Any, scores: Tensor, k: int, dim: int = -1, *args: Any, **more: Any) -> Any:
        tokens, last = len(self.wanted), scores.shape[-1]
        if dim % scores.dim() == scores.dim() - 1:
            if at == self.at:
                index = self.wanted.reshape(*scores.shape[:-1], k)
                return torch.return_types.topk((scores.gather(-1, index), index))
            if scores.dim() > 2 and scores.shape[-2:].numel() == self.count:
                return func(scores, k, dim, *args, **more)  # the best of each group, by which groups are compared
            if last < self.count and self.count % last == 0 and scores.numel() == tokens * last:
                needed = torch.zeros(tokens, last, dtype=torch.bool, device=scores.device)
                needed.scatter_(1, self.wanted // (self.count // last), True)
                self.crowded = self.crowded | (needed.sum(-1) > k).any()
                index = func(scores.masked_fill(needed.reshape(scores.shape), torch.inf), k, dim, *args, **more)[1]
                return torch.return_types.topk((scores.gather(-1, index), index))
        raise UnsupportedModel(f"{self.name} chooses by a topk that is not known; {OFF}")
