"""Trying a decoder out: on a tree of random tokens against its own plain forward on each path, before it is trained.

The trial runs a small twin of the model's class with the same options (see `tiny`), in float64 throughout, over a
forest longer than its window; it costs a second and is kept by configuration. What differs is refused, and the first
part of the model that differs is named. A decoder that cannot be built small is tried as it is, in its own precision.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from treewright.kernels import TreeChunkState, TreePlan
from treewright.training.decoders import attention, recurrent
from treewright.training.decoders.plans import counts_positions, inner_model, states_on
from treewright.training.decoders.structure import text_config
from treewright.training.decoders.tiny import tiny_model

__all__ = ["Fit", "doubled", "fit_of", "running", "trial", "whole_numbers"]

log = logging.getLogger("treewright.training")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
HALF = 0.1
"""Largest relative difference of a token's hidden state: float64, float32, and half precision."""

BY_TOKEN = {nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.Dropout, nn.Identity, nn.Linear, nn.Embedding}
CHUNK = 31
PARENT, LENGTHS = [-1, 0, 1, 1, 3, 0, 0, 6, -1, 8], [22, 17, 5, 13, 6, 1, 25, 9, 14, 7]


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model runs on trees.

    attention  the implementation it is switched to: "treewright", or "eager" with masks of a pack's size
    scale      its logits are the output layer's times this, then
    softcap    bent to c · tanh(· / c); None: not bent
    chunks     whether packs may go through in chunks
    gap        largest relative difference of a token's hidden state in the trial, `dtype` what it was computed in
    routers    the classes of its parts that say which experts a token goes to
    """

    attention: str
    scale: float
    softcap: float | None
    chunks: bool
    gap: float
    dtype: torch.dtype
    routers: tuple[type[nn.Module], ...] = ()


def whole_numbers(out: Any, count: int) -> Tensor | None:
    """The experts [count, K] that a router gave for `count` tokens; None where `out` is nothing of the kind.

    It gives their weights beside them; whole numbers alone may be keys that sparse attention chose.
    """
    parts = [part for part in out if isinstance(part, Tensor)] if isinstance(out, tuple | list) else []
    weights = {part.numel() for part in parts if part.is_floating_point()}
    for part in parts:
        whole = not part.is_floating_point() and part.dtype != torch.bool and part.numel() in weights
        if whole and part.dim() >= 2 and part.numel() == count * part.shape[-1]:
            found: Tensor = part.reshape(count, -1)
            return found
    return None


class doubled(TorchFunctionMode):
    """Within it, what code asks for in float32 is float64, so that a model's own float32 parts do not blur a trial."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **kwargs) if func is not torch.Tensor.float else args[0].to(torch.float64)


@contextmanager
def running(model: nn.Module, implementation: str) -> Iterator[None]:
    """The model's attention switched for the time of a `with` block."""
    inner = inner_model(model)
    found = (inner.config, text_config(model), *(getattr(m, "config", None) for m in inner.modules()))
    configs = {id(config): config for config in found if hasattr(config, "_attn_implementation")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = implementation
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


_KNOWN: dict[str, Fit | str] = {}


def fit_of(model: nn.Module) -> Fit:
    """How the model runs on trees, by a trial, or from an earlier one of the same class and configuration.

    Raises UnsupportedModel with what differs where nothing fits.
    """
    inner = inner_model(model)
    key = _key(inner)
    if key not in _KNOWN:
        try:
            _KNOWN[key] = _tried(inner)
        except attention.UnsupportedModel as error:
            _KNOWN[key] = str(error)
    found = _KNOWN[key]
    if isinstance(found, str):
        raise attention.UnsupportedModel(found)
    return found


def _key(model: Any) -> str:
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return json.dumps([_kind(type(model)), sorted(_kinds(model)), config], sort_keys=True, default=str)


def _kind(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _kinds(model: nn.Module) -> set[str]:
    """The classes that the model is made of, but for those of adapters, which treat each token alone."""
    kinds = {type(module) for module in model.modules()}
    return {_kind(kind) for kind in kinds if kind not in BY_TOKEN and not kind.__module__.startswith("peft.")}


def _tried(model: Any) -> Fit:
    twin, mode = _twin(model)
    if twin is None or not _kinds(model) <= _kinds(twin):  # somebody has put other layers into it
        return trial(model, model.dtype)
    return trial(twin, torch.float64 if mode is not None else torch.float32, mode)


def _twin(model: Any) -> tuple[nn.Module | None, Callable[[], Any] | None]:
    """A small copy of the model's kind that runs, and the mode to run it in; (None, None) if there is none."""
    for dtype, mode in ((torch.float64, doubled), (torch.float32, None)):
        try:
            with _in(mode):
                twin = tiny_model(type(model), model.config, dtype=dtype)
                with torch.no_grad():
                    twin(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
            return twin, mode
        except Exception as error:  # whatever a foreign class objects to
            log.debug("no small %s in %s: %s", type(model).__name__, dtype, error)
    return None, None


@contextmanager
def _in(mode: Callable[[], Any] | None) -> Iterator[None]:
    with ExitStack() as stack:
        if mode is not None:
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, before)
            stack.enter_context(mode())
        yield


@torch.no_grad()
def trial(model: nn.Module, dtype: torch.dtype, mode: Callable[[], Any] | None = None) -> Fit:
    """Runs a forest and its paths, and says how they agree. Raises UnsupportedModel where they do not.

    dtype  what it computes in;  mode  a torch function mode to run in, such as `doubled`
    """
    attention.register()
    inner = inner_model(model)
    recurrent.attach(inner)
    vocabulary = inner.get_output_embeddings().weight.shape[0]
    plan = TreePlan.from_segments(PARENT, LENGTHS)
    ids = torch.randint(4, min(vocabulary, 1000), (plan.n_queries,), generator=torch.Generator().manual_seed(0))
    ids = ids.to(inner.device)
    limit = TOLERANCE.get(dtype, HALF)
    with _in(mode), _evaluating(inner):
        try:
            truth = _Rows(inner, ids, plan, limit)
        except attention.UnsupportedModel:
            raise
        except Exception as error:  # a foreign model's code may object to plain text in any way
            raise attention.UnsupportedModel(f"it does not run on plain rows of text: {_said(error)}") from error
        scale, softcap = _output(inner, truth)
        failed = list[str]()
        ways = [attention.NAME, attention.DENSE]
        if any(recurrent.is_recurrent(module) for module in inner.modules()):
            ways.remove(attention.DENSE)  # nothing would tell its recurrent layers apart from plain use
        for implementation in ways:
            try:
                gap, worst, routers = _compared(inner, ids, plan, implementation, truth, limit)
            except Exception as error:  # or to a plan; the next way is tried, or the model is refused
                failed.append(_said(error))
                continue
            if worst is None:
                chunks = implementation == attention.NAME and _in_chunks(inner, ids, plan, truth) <= limit
                return Fit(implementation, scale, softcap, chunks, gap, dtype, routers)
            if not any(said.startswith(f"{worst} ") for said in failed):
                failed.append(
                    f"{worst} gives another result on a tree than on its rows (by {gap:.0e} of a token's state)"
                )
    if not counts_positions(inner):
        failed.append("it takes no position ids, by which branches would count along their own paths")
    raise attention.UnsupportedModel("; ".join(dict.fromkeys(failed)))


def _said(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line if isinstance(error, attention.UnsupportedModel) else f"{type(error).__name__}: {line}"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [m for m in model.modules() if m.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


class _Rows:
    """The plain forward of each path, by token of the tree: what the output layer reads (`hidden`), logits, and what
    every module read and gave."""

    def __init__(self, model: Any, ids: Tensor, plan: TreePlan, limit: float) -> None:
        self.hidden: dict[int, Tensor] = {}
        self.logits: dict[int, Tensor] = {}
        self.seen: dict[str, tuple[dict[int, Tensor], dict[int, Tensor]]] = {}
        head = _name_of(model, model.get_output_embeddings())
        parent = plan.parent.tolist()
        for leaf in sorted(set(range(len(parent))) - set(parent)):
            path = [leaf]
            while parent[path[-1]] >= 0:
                path.append(parent[path[-1]])
            path.reverse()
            with running(model, "eager"), _recorded(model) as seen:
                out = model(input_ids=ids[path][None], use_cache=False)
            hidden = _by_token(seen[head][0], len(path)) if head in seen else None
            if hidden is None or out.logits.dim() != 3:
                raise attention.UnsupportedModel("its output layer does not run once on the states of all tokens")
            known = {i: self.hidden[token] for i, token in enumerate(path) if token in self.hidden}
            if known and _gap(hidden[: len(known)], known) > limit:
                raise attention.UnsupportedModel(
                    "a token's state depends on tokens after it: it is not a causal decoder"
                )
            self.hidden.update(zip(path, hidden, strict=True))
            self.logits.update(zip(path, out.logits[0], strict=True))
            for name, values in seen.items():
                for kept, value in zip(self.seen.setdefault(name, ({}, {})), values, strict=True):
                    rows = _by_token(value, len(path))
                    kept.update({} if rows is None else zip(path, rows, strict=True))


def _name_of(model: Any, module: nn.Module) -> str:
    return next(str(name) for name, other in model.named_modules() if other is module)


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, tuple[Any, Any]]]:
    """What every module read and gave, in the order in which they end."""
    seen: dict[str, tuple[Any, Any]] = {}

    def keep(name: str, module: nn.Module, args: Any, more: Any, out: Any) -> None:
        seen.pop(name, None)
        seen[name] = next((x for x in (*args, *more.values()) if _is_states(x)), None), out

    hooks = [
        m.register_forward_hook(functools.partial(keep, name), with_kwargs=True) for name, m in model.named_modules()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _naming(model: nn.Module) -> Iterator[None]:
    """Puts before an error which module it comes from."""
    inside: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        place = f"{type(module).__name__} ({name})" if name else type(module).__name__
        hooks += [
            module.register_forward_pre_hook(lambda m, args, place=place: inside.append(place)),
            module.register_forward_hook(lambda m, args, out: inside.pop() and None),
        ]
    try:
        yield
    except Exception as error:
        if not inside:
            raise
        raise attention.UnsupportedModel(f"{inside[-1]}: {_said(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _is_states(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dim() >= 2


def _by_token(out: Any, count: int) -> Tensor | None:
    """[count, …] of what a module read or gave, None where it is nothing by token."""
    out = getattr(out, "last_hidden_state", out)
    out = out[0] if isinstance(out, tuple | list) and out else out
    if not _is_states(out):
        return None
    if out.dim() >= 3 and out.shape[:2] == (1, count):
        return out[0].detach().flatten(1)  # type: ignore[no-any-return]
    return out.detach().flatten(1) if out.shape[0] == count else None


def _compared(
    model: Any, ids: Tensor, plan: TreePlan, implementation: str, truth: _Rows, limit: float
) -> tuple[float, str | None, tuple[type[nn.Module], ...]]:
    """Largest relative difference of a token's last state, the first part that differs, if it is too much, and the
    classes of the routers."""
    with running(model, implementation), _recorded(model) as seen, _naming(model):
        hidden = states_on(model, plan.to(ids.device), ids[None])[0]
    gap, parts = _gap(hidden, truth.hidden), dict(model.named_modules())
    routed = (type(parts[name]) for name, (_, out) in seen.items() if whole_numbers(out, len(ids)) is not None)
    routers = tuple(dict.fromkeys(kind for kind in routed if not kind.__module__.startswith("peft.")))
    return gap, None if gap <= limit else _first_wrong(model, seen, truth, len(ids), limit), routers


def _in_chunks(model: Any, ids: Tensor, plan: TreePlan, truth: _Rows) -> float:
    """`_compared`'s difference where the pack goes through in chunks; infinite where it does not run so."""
    try:
        with running(model, attention.NAME):
            parts = TreeChunkState(plan.to(ids.device), CHUNK).chunks
            return _gap(torch.cat([states_on(model, c, ids[None, c.start : c.stop])[0] for c in parts]), truth.hidden)
    except Exception as error:  # a foreign model's code may object in any way
        log.debug("%s does not run in chunks: %s", type(model).__name__, error)
        return float("inf")


def _first_wrong(model: Any, seen: dict[str, tuple[Any, Any]], truth: _Rows, count: int, limit: float) -> str:
    """The first module that gives something else for what it reads the same, with its class."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    for name, values in seen.items():
        rows = [_by_token(value, count) for value in values]
        wrong = [x is not None and len(y) == count and _gap(x, y) > limit
                 for x, y in zip(rows, truth.seen.get(name, ({}, {})), strict=True)]  # fmt: skip
        if wrong == [False, True]:
            return f"{kinds[name]} ({name})" if name else kinds[name]
    return kinds[""]


def _gap(found: Tensor, truth: dict[int, Tensor]) -> float:
    true = torch.stack([truth[token] for token in range(len(found))])
    if true.shape != found.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    size = true.double().norm(dim=-1)
    return float(
        ((found.double() - true.double()).norm(dim=-1) / size.clamp(min=1e-3 * float(size.max()) + 1e-30)).max()
    )


def _output(model: Any, truth: _Rows) -> tuple[float, float | None]:
    """(scale, softcap) by which its logits come from its output layer; raises UnsupportedModel where they do not."""
    head = model.get_output_embeddings()
    tokens = sorted(truth.hidden)[:40]
    true = torch.stack([truth.logits[t] for t in tokens]).double()
    hidden = torch.stack([truth.hidden[t] for t in tokens]).to(head.weight.dtype)
    if hidden.shape[-1] != head.weight.shape[1]:
        raise attention.UnsupportedModel("its output layer does not read the decoder's last hidden states")
    bias = getattr(head, "bias", None)
    raw = (hidden @ head.weight.T + (0 if bias is None else bias)).double()
    limit = TOLERANCE.get(head.weight.dtype, HALF)
    if raw.shape == true.shape:
        for scale, softcap in _candidates(text_config(model), raw, true):
            guess = raw * scale
            guess = guess if softcap is None else softcap * torch.tanh(guess / softcap)
            if float((guess - true).norm() / true.norm()) <= limit:
                return scale, softcap
    raise attention.UnsupportedModel("its logits are neither its output layer's, nor those scaled or softly capped")


def _candidates(text: Any, raw: Tensor, true: Tensor) -> Iterator[tuple[float, float | None]]:
    yield 1.0, None
    yield float((raw * true).sum() / (raw * raw).sum()), None
    for name, value in text.to_dict().items():
        if "cap" in name and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            yield 1.0, float(value)
            bent = torch.atanh((true / value).clamp(-1 + 1e-12, 1 - 1e-12)) * value
            yield float((raw * bent).sum() / (raw * raw).sum()), float(value)
