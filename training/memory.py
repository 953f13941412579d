"""What a training step takes in memory: by formula before a model exists, by measurement on the model, and chosen.

The peak of a step is a part that does not depend on trees (weights, their half-precision copies, gradients, optimizer,
output layer) and a part for each token that goes through at once. Without gradient checkpointing a token keeps the
activations of every layer; with it, one state for each layer, and the activations of one layer. In chunks, only the
tokens of one chunk do so, and those of the whole tree keep keys and values.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from treewright.envs.errors import TreewrightError
from treewright.kernels import TreeChunkState, TreePlan
from treewright.training.decoders.plans import inner_model
from treewright.training.decoders.structure import text_config
from treewright.training.lora import adapter_config
from treewright.training.model import prepare, tree_hidden
from treewright.training.optim import APART
from treewright.training.precision import checkpoint_layers, compute_dtype, computing, logit_rows, rounded
from treewright.training.settings import TrainSettings, bytes_of

__all__ = ["Costs", "PeakMemory", "fitted", "formula", "measured", "said", "sharded"]

LONG = 8
"""Chunks are chosen so that a tree of so many of them still fits."""
MOST_TOKENS = 65_536
PROBE = (64, 192)
"""Lengths at which a model is measured: it is linear in between and beyond."""
BACKWARD = 0.3
"""What a layer's backward pass takes beside what its forward pass left, as a share of that."""
OPTIMIZER = {"adamw": 8.0, "adamw_fused": 8.0, "adamw_8bit": 2.0, "muon": 4.0}
"""Bytes of state for each weight that is trained; Muon keeps AdamW's for what lies outside of its layers."""


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors that are alive at once in a `with` block: `peak`, those of `held` included.

    held  models whose weights count from the beginning

    On a GPU it is the allocator's own count. On a CPU every tensor that an operation makes is counted from then until
    it is freed; what operations use inside themselves is not.
    """

    def __init__(self, *held: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._live: set[int] = set()
        self._gpu = any(p.device.type == "cuda" for model in held for p in model.parameters())
        for model in held:
            for tensor in (*model.parameters(), *model.buffers()):
                self._add(tensor)
                if tensor.grad is not None:
                    self._add(tensor.grad)

    def count(self, optimizer: torch.optim.Optimizer) -> Self:
        """Takes the state of an optimizer into account."""
        for slots in optimizer.state.values():
            for value in slots.values():
                if isinstance(value, Tensor):
                    self._add(value)
        return self

    def alive(self) -> int:
        """Bytes alive now."""
        return torch.cuda.memory_allocated() if self._gpu else self.now

    def __enter__(self) -> Self:
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if self._gpu:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._gpu:
            tree_map_only(Tensor, self._add, out)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        self._live.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.now -= size


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Bytes of a training step.

    weights    of the model, and of a reference beside it
    copies     of the weights in the type that is computed in
    gradients, optimizer   of what is trained
    output     of the output layer's gradient while it is added
    row, logits_at_once  of the logits of one token, two or three times over, and of how many at once
    token      what each token that goes through at once leaves for the backward pass
    checkpointed, layer   the same with gradient checkpointing, and of one layer alone
    kept       for each token of a tree that goes through in chunks: keys and values
    owed       for each token of its longest path: float32 gradients of keys and values
    before     of what a step adds while train.max_kl holds it back: the largest weight, all of them where their steps
               depend on each other; no activations stand beside it
    """

    weights: float
    copies: float
    gradients: float
    optimizer: float
    output: float
    row: float
    logits_at_once: int
    token: float
    checkpointed: float
    layer: float
    kept: float
    owed: float
    before: float = 0.0

    @property
    def lasting(self) -> float:
        """Weights, gradients and optimizer."""
        return self.weights + self.copies + self.gradients + self.optimizer

    @property
    def logits(self) -> float:
        """What the output layer takes where there are tokens enough."""
        return self.output + self.logits_at_once * self.row

    @property
    def fixed(self) -> float:
        """All that no tree changes."""
        return self.lasting + self.logits

    def left(self, checkpointing: bool) -> tuple[float, float]:
        """What a token leaves behind, and what its layer takes more when it goes backward."""
        return (
            (self.checkpointed, (1 + BACKWARD) * self.layer) if checkpointing else (self.token, BACKWARD * self.layer)
        )

    def peak(
        self, tokens: int, chunk: int | None = None, checkpointing: bool = False, path: int | None = None
    ) -> float:
        """Of a step on packs of so many tokens; `path` of them are the longest path, all where that is not known."""
        each, more = self.left(checkpointing)
        at_once = tokens if chunk is None or chunk >= tokens else chunk
        output = self.output + min(at_once, self.logits_at_once) * self.row
        size = self.lasting + at_once * each + max(output, at_once * more)
        if at_once < tokens:
            size += tokens * self.kept + (tokens if path is None else path) * self.owed
        return max(size, self.lasting + self.before)


def _fixed(model: Any, settings: TrainSettings, reference: bool, device: str | None = None) -> dict[str, Any]:
    """The costs that follow from the model's weights; `device` is the kind that it will train on, else where it is."""
    named = list(model.parameters())
    trained = [p for p in named if p.requires_grad]
    half = compute_dtype(settings.precision)
    frozen = sum(p.numel() for p in named) * (4.0 if half is None else 2.0)
    head = inner_model(model).get_output_embeddings().weight
    wide, fit = max(4, head.element_size()), getattr(inner_model(model), "treewright_fit", None)
    grads = float(sum(p.numel() * p.element_size() for p in trained))
    arrays = 2 + (settings.entropy_coef > 0) + (fit is not None and fit.softcap is not None)
    return {
        "weights": float(sum(p.numel() * p.element_size() for p in named)) + (frozen if reference else 0.0),
        "copies": float(sum(p.numel() * 2 for p in named if half is not None and p.dtype != half)),
        "gradients": grads,
        "optimizer": _state(model, settings),
        "output": (wide + (2.0 if half else 0.0)) * head.numel() * head.requires_grad,
        "row": float(arrays * wide * head.shape[0]),
        "logits_at_once": logit_rows(model, device),
        "before": _before(trained, settings, grads),
    }


def _before(trained: list[Tensor], settings: TrainSettings, grads: float) -> float:
    """What a step under the settings' bound adds to weights, gradients and moments; see `region.stepped`."""
    if settings.kl_bound(sum(p.numel() for p in trained)) is None:
        return 0.0
    largest = max((float(p.numel() * p.element_size()) for p in trained), default=0.0)
    return largest if settings.optimizer in APART else grads


def _state(model: Any, settings: TrainSettings) -> float:
    """What the optimizer of the settings keeps, by its name; another's as AdamW's."""
    trained = [p for p in model.parameters() if p.requires_grad]
    total = float(sum(p.numel() for p in trained))
    if settings.optimizer != "muon":
        return OPTIMIZER.get(settings.optimizer, 8.0) * total
    ends = [e for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None]
    outside = {id(p) for end in ends for p in end.parameters()}
    others = float(sum(p.numel() for p in trained if p.dim() != 2 or id(p) in outside))
    return 4.0 * (total - others) + 8.0 * others


def formula(config: Any, settings: TrainSettings, device: str = "cuda") -> Costs:
    """The costs of a dense decoder of the kind of Llama and Qwen3 by its transformers configuration alone.

    No weight is made. With `train.lora` the base is counted as it is kept then.
    device  the kind that trains it: on a CPU fewer logits exist at once

    With H the width of states, I of the feed-forward part, q and kv of all queries and of all keys, and b bytes for a
    number, a token leaves in each layer: two norms with their input, norm and output each, 24 H bytes, in half
    precision 16 H (only the input is float32); gate, up, activation and their product, 4 I b; queries, the attention's
    output and its copy for the next product, 3 q b; keys and values, 2 kv b. Qwen3 norms queries and keys too. What a
    backward pass makes of one layer meanwhile comes on top.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if settings.lora.rank:
            from peft import get_peft_model

            rounded(model, compute_dtype(settings.precision))
            model = get_peft_model(model, adapter_config(settings.lora))
    return Costs(**_fixed(model, settings, False, device), **_by_token(config, settings.precision))


def _by_token(config: Any, precision: str) -> dict[str, Any]:
    c, size = config.get_text_config(), 2 if precision == "bfloat16" else 4
    width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    q, kv = c.num_attention_heads * width, c.num_key_value_heads * width
    norms = (24.0 if size == 4 else 16.0) * c.hidden_size
    if c.model_type.startswith("qwen3"):  # it norms queries and keys too
        norms += (8.0 if size == 4 else 6.0) * (q + kv)
    layer = norms + size * (4.0 * c.intermediate_size + 3.0 * q + 2.0 * kv)
    states = c.num_hidden_layers * c.hidden_size * size
    return {
        "token": c.num_hidden_layers * layer + 12.0 * c.hidden_size,
        "checkpointed": states + 12.0 * c.hidden_size,
        "layer": layer,
        "kept": c.num_hidden_layers * 2.0 * kv * size,
        "owed": c.num_hidden_layers * 2.0 * kv * 4,
    }


def measured(model: Any, settings: TrainSettings, reference: bool = False, device: str | None = None) -> Costs:
    """The costs of this very model, from passes over a few hundred random tokens. The model is left as it was.

    device  the kind that it will train on, else the one where it is

    Raises UnsupportedModel for a model that does not run on trees.
    """
    prepare(model)
    fixed = _fixed(model, settings, reference, device)
    dtype = compute_dtype(settings.precision)
    training = {m: m.training for m in model.modules()}
    left: list[float] = []
    for on in (False, True):
        try:
            checkpoint_layers(model, on)
            lived = [_lived(model, dtype, length) for length in PROBE]
        except TreewrightError:  # it knows no gradient checkpointing
            left.append(left[0])
            continue
        finally:
            if on and hasattr(inner_model(model), "gradient_checkpointing_disable"):
                inner_model(model).gradient_checkpointing_disable()
            for module, was in training.items():
                module.training = was
        left.append((lived[1] - lived[0]) / (PROBE[1] - PROBE[0]))
    layer = (left[0] - left[1]) / text_config(model).num_hidden_layers
    kept, owed = _kept(model, dtype) if model_chunks(model) else (0.0, 0.0)
    return Costs(**fixed, token=left[0], checkpointed=left[1], layer=layer, kept=kept, owed=owed)


def model_chunks(model: Any) -> bool:
    """Whether the model's packs may go through in chunks."""
    return bool(inner_model(model).treewright_fit.chunks)


def _chain(model: Any, length: int) -> tuple[Tensor, TreePlan]:
    vocabulary = inner_model(model).get_output_embeddings().weight.shape[0]
    ids = torch.randint(4, min(int(vocabulary), 1000), (length,), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device), TreePlan.from_segments([-1], [length])


def _lived(model: Any, dtype: torch.dtype | None, length: int) -> int:
    """Bytes that are alive after the forward pass over one row, before it goes backward."""
    ids, plan = _chain(model, length)
    with PeakMemory(model) as seen, computing(model, dtype):
        hidden = tree_hidden(model, ids, plan)
        return seen.alive() if hidden.requires_grad else 0


@torch.no_grad()
def _kept(model: Any, dtype: torch.dtype | None) -> tuple[float, float]:
    """Bytes that chunks keep for each token, and those owed to each token of a path."""
    ids, plan = _chain(model, PROBE[1])
    state = TreeChunkState(plan.to(ids.device), PROBE[0])
    with computing(model, dtype):
        for part in state.chunks:
            tree_hidden(model, ids[part.start : part.stop], part)
    numbers = [(x.numel(), x.element_size()) for x in state.keys_and_values()]
    return sum(n * size for n, size in numbers) / len(ids), sum(4 * n for n, _ in numbers) / len(ids)


def sharded(costs: Costs, model: Any, settings: TrainSettings, ranks: int) -> Costs:
    """The costs of each of `ranks` processes over which FSDP2 shards the model.

    Each holds its part of weights, gradients and optimizer. On top come, whole, in the type that is computed in and
    with gradients in float32, the model where it is small, else what lies outside of the layers and two layers: the one
    that runs and the one that is fetched meanwhile.
    """
    from treewright.training.parallel.shard import decoder_layers, gathered_bytes, small

    half = compute_dtype(settings.precision)
    layers = [list(layer.parameters()) for layer in decoder_layers(model)]
    inside = {id(p) for layer in layers for p in layer}
    around = gathered_bytes((p for p in model.parameters() if id(p) not in inside), half)
    most = around + 2 * max(gathered_bytes(layer, half) for layer in layers)
    whole = gathered_bytes(model.parameters(), half) if small(model, half) else most
    return replace(
        costs, weights=costs.weights / ranks, gradients=costs.gradients / ranks, optimizer=costs.optimizer / ranks,
        copies=float(whole), before=0.0,
    )  # fmt: skip


def fitted(
    model: Any, settings: TrainSettings, reference: bool = False, ranks: int = 1, device: str | None = None
) -> tuple[TrainSettings, str]:
    """The settings with max_tokens, chunk_tokens and checkpointing chosen for `train.memory`, and what was chosen.

    They are as given, with an empty sentence, where train.memory is not set. Whole packs without gradient checkpointing
    are preferred as long as a pack of `max_tokens` fits, then checkpointing; longer trees go through in chunks.

    ranks   processes that train together, with that memory each;  device  the kind that they train on

    Raises TreewrightError where not even a small pack fits, with what would.
    """
    if settings.memory is None:
        return settings, ""
    costs = measured(model, settings, reference, device)
    if ranks > 1:
        costs = sharded(costs, model, settings, ranks)
    room = float(bytes_of(settings.memory)) - costs.lasting

    def tokens(checkpointing: bool) -> int:
        each, more = costs.left(checkpointing)
        each += LONG * (costs.kept + costs.owed)
        few = (room - costs.output) / (each + costs.row)
        least = few if few < costs.logits_at_once else (room - costs.logits) / each
        return int(min(least, room / (each + more), MOST_TOKENS))

    checkpointing = tokens(False) < settings.max_tokens and tokens(True) > tokens(False)
    size = tokens(checkpointing)
    if size < PROBE[0] or room < costs.before:
        raise TreewrightError(_too_little(settings.memory, costs))
    size = size if size < 512 else size // 256 * 256
    chunk = size if model_chunks(model) else None
    chosen = replace(settings, max_tokens=size, chunk_tokens=chunk, checkpointing=checkpointing)
    longest = f"trees of up to {LONG * size} tokens in chunks of {size}" if chunk else "no chunks: this model has none"
    peak = costs.peak(LONG * size if chunk else size, chunk, checkpointing)
    for_each = f" for each of {ranks} processes" if ranks > 1 else ""
    return chosen, (
        f"train.memory = {settings.memory}{for_each}: packs of {size} tokens {'with' if checkpointing else 'without'} "
        f"gradient checkpointing, {longest}; expected peak {said(peak)}"
    )


def _too_little(memory: str, costs: Costs) -> str:
    step = costs.peak(PROBE[0], None, True) + PROBE[0] * LONG * (costs.kept + costs.owed)
    least = max(step, costs.lasting + costs.before)
    unbound = " set train.max_kl=0, which keeps nothing of the weights before," if least > step else ""
    return (
        f"train.memory = {memory}: training this model takes at least {said(least)} ({said(costs.weights)} weights, "
        f"{said(costs.gradients + costs.optimizer)} gradients and optimizer, "
        f"{said(costs.output + PROBE[0] * costs.row)} output layer for {PROBE[0]} tokens); give more,{unbound} "
        "train an adapter (train.lora.rank=16), or take train.precision=bfloat16"
    )


def said(size: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} GiB" if size < 999.5 else f"{size:.0f} GiB"
