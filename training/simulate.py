"""What a training run on many GPUs will take, from constants that each say where they come from.

A round is sampled by engines, trained by a group of ranks, and its weights are handed over. The trainer's step is
simulated on a forest of random trees, or of a run's own, that is shared out as the real one is
(`treewright.training.balance`); with one step behind, sampling and training go on side by side and a round lasts as
long as the longer of the two.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree
from treewright.training.balance import Costs, Part, idle_share, share_out
from treewright.training.pack import TokenRow, pack_rows

__all__ = [
    "MACHINES",
    "MODELS",
    "Constant",
    "Forecast",
    "Machine",
    "Recorded",
    "Shape",
    "forecast",
    "recorded_forest",
    "seconds_of",
    "shape_of",
]

MEASURED, PUBLISHED, ASSUMED = "measured here", "published", "assumed"


@dataclass(frozen=True, slots=True)
class Constant:
    """A number with where it comes from: measured here, published, or assumed."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One accelerator and what joins it to the others."""

    name: str
    flops: Constant  # dense bfloat16, peak
    memory: Constant
    bandwidth: Constant  # of its memory
    link: Constant  # to the accelerators of its machine, one direction
    network: Constant  # to other machines, for each accelerator
    per_machine: int
    linear: Constant  # share of the peak that linear layers reach
    attention: Constant  # share of the peak that tree attention reaches
    decoding: Constant  # share of the memory's bandwidth that decoding reaches
    overhead: Constant  # seconds for launching a pack's kernels


def _gpu(name: str, flops: float, memory: float, bandwidth: float, link: float) -> Machine:
    sheet = f"{PUBLISHED}: NVIDIA's data sheet"
    return Machine(
        name=name,
        flops=Constant(flops, "FLOP/s", sheet),
        memory=Constant(memory, "bytes", sheet),
        bandwidth=Constant(bandwidth, "bytes/s", sheet),
        link=Constant(link, "bytes/s", sheet + ", half of both directions"),
        network=Constant(50e9, "bytes/s", f"{ASSUMED}: one 400 Gb/s port for each GPU"),
        per_machine=8,
        linear=Constant(0.45, "of peak", f"{ASSUMED}: published FSDP runs of dense models reach .35 to .55"),
        attention=Constant(0.25, "of peak", f"{ASSUMED}: half of what flash attention reaches on plain rows"),
        decoding=Constant(0.6, "of bandwidth", f"{ASSUMED}: weights and cache read once for each token of a batch"),
        overhead=Constant(0.05, "s", f"{ASSUMED}"),
    )


MACHINES = {
    "h200": _gpu("h200", 989e12, 141e9, 4.8e12, 450e9),
    "h100": _gpu("h100", 989e12, 80e9, 3.35e12, 450e9),
    "a100": _gpu("a100", 312e12, 80e9, 2.0e12, 300e9),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder: H states, L layers, query and key heads of a size, width of the feed-forward part, vocabulary."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    wide: int
    vocabulary: int
    tied: bool = False
    source: str = f"{PUBLISHED}: the model's config.json"

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.wide + 2 * self.hidden

    @property
    def weights(self) -> int:
        return self.layers * self.layer + self.hidden * self.vocabulary * (1 if self.tied else 2)

    @property
    def costs(self) -> Costs:
        """FLOP of forward and backward, as `balance.costs_of` counts them."""
        linear = 6.0 * (self.layers * self.layer + self.hidden * self.vocabulary)
        return Costs(token=linear, pair=3.5 * 4 * self.heads * self.head * self.layers)


MODELS = {
    "0.6b": Shape(name="Qwen3-0.6B", hidden=1024, layers=28, heads=16, kv_heads=8, head=128, wide=3072,
                  vocabulary=151936, tied=True),
    "4b": Shape(name="Qwen3-4B", hidden=2560, layers=36, heads=32, kv_heads=8, head=128, wide=9728,
                vocabulary=151936, tied=True),
    "8b": Shape(name="Qwen3-8B", hidden=4096, layers=36, heads=32, kv_heads=8, head=128, wide=12288,
                vocabulary=151936),
    "9b": Shape(name="GLM-4-9B", hidden=4096, layers=40, heads=32, kv_heads=2, head=128, wide=13696,
                vocabulary=151552),
    "32b": Shape(name="Qwen3-32B", hidden=5120, layers=64, heads=64, kv_heads=8, head=128, wide=25600,
                 vocabulary=151936),
    "70b": Shape(name="Llama-3-70B", hidden=8192, layers=80, heads=64, kv_heads=8, head=128, wide=28672,
                 vocabulary=128256),
}  # fmt: skip


def shape_of(config: Mapping[str, object], name: str) -> Shape:
    """The shape that a transformers config.json tells. Raises TreewrightError where it tells no decoder's."""
    text = config.get("text_config")
    found = text if isinstance(text, Mapping) else config

    def number(key: str, *others: object) -> int:
        value = next((x for x in (found.get(key), *others) if isinstance(x, int) and x > 0), None)
        if value is None:
            raise TreewrightError(f"{name}: its config.json has no {key}; name one of {', '.join(MODELS)}")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    return Shape(
        name=name, hidden=hidden, layers=number("num_hidden_layers"), heads=heads,
        kv_heads=number("num_key_value_heads", heads), head=number("head_dim", hidden // heads),
        wide=number("intermediate_size"), vocabulary=number("vocab_size"),
        tied=bool(found.get("tie_word_embeddings", False)), source=f"{name}/config.json",
    )  # fmt: skip


def random_forest(trees: int, tokens: int, depth: int, seed: int = 0) -> list[Part]:
    """Trees of `tokens` unique tokens on average, whose paths are about `depth` tokens long, sizes spread by half."""
    rng = random.Random(seed)
    sizes = [max(1, round(tokens * rng.lognormvariate(-0.125, 0.5))) for _ in range(trees)]
    return [Part(size, round(size * min(size, depth) / 2)) for size in sizes]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A forest that was really grown.

    parts  unique tokens and visible pairs of each tree;  sampled  share of the unique tokens that a policy drew
    depth  tokens of a path on average
    """

    parts: tuple[Part, ...]
    sampled: float
    depth: int


def recorded_forest(trees: Iterable[Tree]) -> Recorded:
    """Trees as the trainer would pack them: every draw is a row of its prompt and response, rows share what is equal.

    Trees whose policy gave no tokens are left out. Raises TreewrightError where none is left.
    """
    parts, drawn, depths = list[Part](), 0, list[int]()
    for tree in trees:
        nodes = [node for node in range(1, len(tree)) if tree.ids[node]]
        if not nodes:
            continue
        rows = [
            TokenRow(context=tree.context_ids(tree.parent[node]), response=tree.ids[node], coef=1.0,
                     behaviour=tree.logprobs[node] or (0.0,) * len(tree.ids[node]))
            for node in nodes
        ]  # fmt: skip
        packs = pack_rows([rows], max_tokens=sum(len(row.context) + len(row.response) for row in rows))
        parts.append(Part(sum(map(len, packs)), sum(pack.plan.n_pairs for pack in packs)))
        drawn += sum(len(tree.ids[node]) for node in nodes)
        depths += [len(tree.context_ids(tree.parent[leaf])) + len(tree.ids[leaf]) for leaf in tree.leaves()]
    if not parts:
        raise TreewrightError("no tree holds tokens, so there is no forest; collect with a policy that has them")
    return Recorded(tuple(parts), drawn / sum(p.tokens for p in parts), round(sum(depths) / max(len(depths), 1)))


def seconds_of(
    parts: Sequence[Part], plan: Sequence[Sequence[Sequence[int]]], costs: Costs, gather: float = 0.0
) -> float:
    """Seconds of a step: each slot lasts as long as its dearest pack, or as gathering the weights for it takes.

    costs   in seconds
    gather  seconds for which a slot's collectives keep the ranks, side by side with computing
    """
    total = 0.0
    for row in plan:
        dearest = max(math.fsum(costs.of(parts[i].tokens, parts[i].pairs) for i in mine) for mine in row)
        total += max(dearest, gather) + costs.pack
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a round takes: seconds, shares in [0, 1], bytes on one GPU.

    step, sample, weights   seconds of the optimizer step's passes, of sampling, of handing over weights
    round_seconds           with sampling and training side by side where `behind`
    idle_ranks              share of the trainer's GPU time that ranks wait for each other's packs
    idle_trainer, idle_engines  share of a round that trainer and engines wait for each other
    memory                  bytes on each training GPU, by part
    """

    step: float
    sample: float
    weights: float
    round_seconds: float
    idle_ranks: float
    idle_trainer: float
    idle_engines: float
    slots: int
    memory: dict[str, float]
    constants: dict[str, Constant]

    @property
    def memory_total(self) -> float:
        return math.fsum(self.memory.values())


def forecast(
    shape: Shape,
    machine: Machine,
    gpus: int,
    *,
    engines: int,
    trees: int = 256,
    tokens: int = 8192,
    depth: int = 4096,
    pack: int = 16384,
    trainable: float = 0.5,
    checkpointed: bool = True,
    behind: bool = True,
    seed: int = 0,
    recorded: Recorded | None = None,
) -> Forecast:
    """A round of `trees` trees on `gpus` training GPUs and `engines` sampling ones.

    tokens     unique tokens of a tree;  depth  tokens of a path
    trainable  share of unique tokens that were sampled;  pack  tokens of a pack
    recorded   trees that were grown, over and over where `trees` is more; they say what tokens, depth, trainable are

    Raises TreewrightError where there is no GPU left to train or to sample on, or the weights do not fit.
    """
    if gpus < 1 or engines < 1:
        raise TreewrightError(f"{gpus} GPUs to train and {engines} to sample: each needs one at least")
    work = shape.costs
    costs = Costs(
        token=work.token * (4 / 3 if checkpointed else 1) / (machine.flops.value * machine.linear.value),
        pair=work.pair * (4.5 / 3.5 if checkpointed else 1) / (machine.flops.value * machine.attention.value),
        pack=machine.overhead.value,
    )
    if recorded is None:
        parts = random_forest(trees, tokens, depth, seed)
    else:
        parts = [recorded.parts[i % len(recorded.parts)] for i in range(trees)]
        tokens, depth = round(sum(p.tokens for p in parts) / trees), recorded.depth
        trainable = min(recorded.sampled, 1.0)
    plan = share_out(parts, gpus, pack, costs)
    wire = machine.link.value if gpus <= machine.per_machine else machine.network.value
    moved = 2.0 * shape.weights * (gpus - 1) / gpus
    passes = 3 if checkpointed else 2  # weights are gathered for forward, backward; gradients (float32) are scattered
    gather = (passes - 1) * moved / wire + 2 * moved / wire if gpus > 1 else 0.0
    step = seconds_of(parts, plan, costs, gather)
    sampled = trees * tokens * trainable
    sample = sampled / (engines * _decoded(shape, machine, depth))
    weights = 2.0 * shape.weights / machine.network.value + 2.0
    both = max(step, sample) if behind else step + sample
    memory = _memory(shape, gpus, pack, checkpointed)
    free = machine.memory.value - 2.0 * shape.weights
    if free < 0:
        raise TreewrightError(
            f"{shape.name} needs {2e-9 * shape.weights:.0f} GB to sample with and a {machine.name} has "
            f"{1e-9 * machine.memory.value:.0f}: one engine needs several GPUs, which this forecast does not know"
        )
    named = {f.name: getattr(machine, f.name) for f in fields(Machine) if f.name not in ("name", "per_machine")}
    return Forecast(
        step=step, sample=sample, weights=weights, round_seconds=both + weights, slots=len(plan),
        idle_ranks=idle_share(parts, plan, costs), idle_trainer=1 - step / (both + weights),
        idle_engines=1 - sample / (both + weights), memory=memory,
        constants=named | _assumptions(locals(), recorded is not None),
    )  # fmt: skip


def _decoded(shape: Shape, machine: Machine, depth: int) -> float:
    """Tokens that one engine decodes in a second: it reads the weights once for a batch, and each row's cache."""
    cache = 2.0 * 2 * shape.layers * shape.kv_heads * shape.head * depth / 2
    room = max(0.0, 0.9 * machine.memory.value - 2.0 * shape.weights)
    batch = max(1.0, min(256.0, room / (2 * cache)))
    step = (2.0 * shape.weights + batch * cache) / (machine.bandwidth.value * machine.decoding.value)
    compute = batch * 2.0 * shape.weights / (machine.flops.value * machine.linear.value)
    return batch / max(step, compute)


def _memory(shape: Shape, gpus: int, pack: int, checkpointed: bool) -> dict[str, float]:
    """Bytes on one training GPU with float32 weights and AdamW, bfloat16 layers."""
    token = 2.0 * shape.hidden * shape.layers
    whole = 2.0 * (12 * shape.hidden + 4 * shape.wide + 3 * shape.heads * shape.head + 2 * shape.kv_heads * shape.head)
    return {
        "weights, a share of each": 4.0 * shape.weights / gpus,
        "gradients, a share of each": 4.0 * shape.weights / gpus,
        "AdamW's moments, a share of each": 8.0 * shape.weights / gpus,
        "two gathered layers": (2 * 2.0 + 4.0) * shape.layer,
        "gathered embeddings and output layer": (2.0 + 4.0) * (shape.weights - shape.layers * shape.layer),
        "activations of a pack": pack * (token + whole if checkpointed else whole * shape.layers),
        "logits of some rows": 2 * 4.0 * (1 << 26),
    }


def _assumptions(given: Mapping[str, object], recorded: bool) -> dict[str, Constant]:
    units = {"trees": "", "tokens": "unique tokens of a tree", "depth": "tokens of a path", "pack": "tokens",
             "trainable": "of a tree's tokens"}  # fmt: skip
    read = {"tokens", "depth", "trainable"} if recorded else set[str]()
    return {name: Constant(float(str(given[name])), unit,
                           "the trees of the run" if name in read else "given, or the default of this command")
            for name, unit in units.items()}  # fmt: skip


def machine_named(name: str) -> Machine:
    """Raises TreewrightError for an unknown one."""
    if name not in MACHINES:
        raise TreewrightError(f"no machine is called {name!r}; {nearest(name, MACHINES)}")
    return MACHINES[name]


def with_constants(machine: Machine, changed: Mapping[str, float]) -> Machine:
    """The machine with constants of one's own. Raises TreewrightError for a name that it has not."""
    known = [f.name for f in fields(Machine) if f.name not in ("name", "per_machine")]
    for name, value in changed.items():
        if name not in known:
            raise TreewrightError(f"no constant is called {name!r}; {nearest(name, known)}")
        if not value > 0:
            raise TreewrightError(f"{name} = {value}; it must be above 0")
        given: dict[str, Any] = {name: Constant(value, getattr(machine, name).unit, "given with --set")}
        machine = replace(machine, **given)
    return machine
