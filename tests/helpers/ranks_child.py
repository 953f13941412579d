"""What tests have two ranks do. `together(scenario, folder)` runs `scenario(ranks, folder)` in two processes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from not_none import not_none
from ranks_stream import passed_through
from search_trees import random_tree, tiny_model

from treewright.envs.errors import TreewrightError
from treewright.search.routes import encode_routes
from treewright.search.tree import Tree
from treewright.training import checkpoint
from treewright.training.packed import PackedBatch
from treewright.training.parallel import states
from treewright.training.parallel.ranks import join
from treewright.training.parallel.trainer import RankedTrainer
from treewright.training.settings import TrainSettings
from treewright.training.step import NonFinite, Trainer

CASES: dict[str, dict[str, Any]] = {
    "clipped": {"max_tokens": 120, "minibatches": 2},
    "gspo": {"loss": "gspo", "max_tokens": 120, "minibatches": 1},
    "chunked": {"max_tokens": 120, "chunk_tokens": 40, "kl_coef": 0.1, "minibatches": 2},
}
FEW = 7  # trees; 2 ranks of packs of 120 tokens have then unequal numbers of packs


def exact(self: Any, x: Any) -> Any:
    """A norm in the type of its input; transformers' computes in float32."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def patch() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    for norm in (GptOssRMSNorm, LlamaRMSNorm, Qwen3RMSNorm):
        norm.forward = exact


def models() -> Iterator[tuple[str, Any]]:
    from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.0}  # fmt: skip
    torch.manual_seed(0)
    yield "qwen3", tiny_model(0)
    yield "llama", LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=False)).double()
    gpt = GptOssConfig(**small, num_local_experts=4, num_experts_per_tok=2, sliding_window=16, pad_token_id=0)
    gpt._experts_implementation = "eager"
    yield "gpt_oss", GptOssForCausalLM(gpt).double()


def routed(tree: Tree) -> None:
    """Experts at random for what each draw added."""
    rng = np.random.default_rng(len(tree))
    for node in range(1, len(tree)):
        count = len(tree.delta[tree.parent[node]]) + len(tree.ids[node]) - 1
        found = rng.permuted(np.tile(np.arange(4), (count, 2, 1)), axis=-1)[..., :2]
        tree.routes[node] = encode_routes(found)


def watched(kind: type[RankedTrainer] | type[Trainer], seen: list[Any]) -> Any:
    """A trainer whose gradients before clipping are kept, by name, of every step."""

    class Watching(kind):  # type: ignore[valid-type,misc]
        __slots__ = ()

        def _clipped_norm(self) -> float:
            found = {}
            for name, p in self.model.named_parameters():
                g = torch.zeros_like(p) if p.grad is None else p.grad
                found[name] = (g.full_tensor() if hasattr(g, "full_tensor") else g).detach().clone()
            seen.append(found)
            return kind._clipped_norm(self)

    return Watching


def gathered(model: Any) -> bool:
    """A layer holds all of its weights, and not its part of them alone."""
    return model is not None and any(not hasattr(p, "full_tensor") for p in model.parameters())


def gap(found: Any, wanted: Any) -> float:
    scale = max(float(g.abs().max()) for g in wanted.values())
    return max(float((found[n] - g).abs().max()) for n, g in wanted.items()) / scale


def gradients(ranks: Any, folder: Any) -> None:
    """Every step's gradient by two processes and by one, for every model and loss."""
    patch()
    out = {}
    for name, model in models():
        trees = [random_tree(s) for s in range(FEW)]
        if name == "gpt_oss":
            for tree in trees[1:]:
                routed(tree)
        for case, options in CASES.items():
            many: list[Any]
            settings, many = TrainSettings(lr=0.01, **options), []
            whole = None if case == "clipped" or name == "llama" else False  # as a large model is trained
            trainer = watched(RankedTrainer, many)(
                copy.deepcopy(model), settings, ranks=ranks, versions=["v1"], whole=whole
            )
            if not ranks.leads:
                trainer.follow()
                continue
            held: list[bool] = []
            stats = trainer.update(trees, lambda done, of, t=trainer, held=held: held.append(gathered(t.model)))
            at_rest = not gathered(trainer.model) and not gathered(trainer.reference)
            trainer.stop()
            alone: list[Any] = []
            one = watched(Trainer, alone)(model if case == "chunked" else copy.deepcopy(model), settings)
            plain = one.update(trees)
            out[f"{name} {case}"] = {
                "steps": [len(many), len(alone)],
                "gap": max(gap(a, b) for a, b in zip(many, alone, strict=True)),
                "loss": [stats["loss"], plain["loss"]], "norm": [stats["grad_norm"], plain["grad_norm"]],
                "routing": [[one.get(n) for n in ("routes_replayed", "routing_flips")] for one in (stats, plain)],
                "version": [trainer.versions[-1], one.version()],
                "freed": [len(held) - sum(held), len(held)], "whole": whole is None, "at rest": at_rest,
            }  # fmt: skip
    if ranks.leads:
        (folder / "out.json").write_text(json.dumps(out))


def poisoned(ranks: Any, folder: Any) -> None:
    """What is not finite on one rank alone, on each of them in turn; then a good update."""
    model = tiny_model(0)
    settings = TrainSettings(lr=0.01, max_tokens=120)
    bad = {"rank": -1, "what": ""}

    class Poisoned(RankedTrainer):
        __slots__ = ()

        def _surrogate(
            self, *given: Any
        ) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]:
            inner = RankedTrainer._surrogate(self, *given)

            def loss(logp: Any, entropy: Any) -> tuple[torch.Tensor, dict[str, float]]:
                value, seen = inner(logp, entropy)
                here = bad["what"] == "loss" and bad["rank"] == self.ranks_of.rank
                return value * (float("nan") if here else 1.0), seen

            return loss

        def _clipped_norm(self) -> float:
            if bad["what"] == "gradient" and bad["rank"] == self.ranks_of.rank:
                grad = next(self.model.parameters()).grad.to_local()
                if grad.numel():
                    grad.view(-1)[0] = float("inf")
            return RankedTrainer._clipped_norm(self)

    trainer = Poisoned(model, settings, ranks=ranks, versions=["v1"])
    told: dict[str, Any] = {}
    for rank, what in ((0, "loss"), (1, "loss"), (1, "gradient"), (-1, "")):
        bad.update(rank=rank, what=what)
        if ranks.leads:
            before, steps = trainer.version(), trainer.steps
            try:
                trainer.update([random_tree(s) for s in range(FEW)])
                said = "trained"
            except NonFinite as error:
                said = str(error)
            after = trainer.version()
            told[f"{rank} {what}"] = {"said": said, "same": before == after, "steps": trainer.steps - steps}
            trainer.stop()
        else:
            trainer.follow()
    fresh = RankedTrainer(tiny_model(0), settings, ranks=ranks, versions=["v1"])
    if not ranks.leads:
        fresh.follow()
        return
    fresh.update([random_tree(s) for s in range(FEW)])
    told["fresh"] = {"same": fresh.version() == trainer.versions[-1]}  # type: ignore[index]
    fresh.stop()
    (folder / "out.json").write_text(json.dumps(told))


def saving(ranks: Any, folder: Any) -> None:
    """Two updates, a checkpoint between them, and one after them for which the follower's disk has no room."""
    trainer = RankedTrainer(tiny_model(0, torch.float32), TrainSettings(lr=0.01), ranks=ranks, versions=["v1"])
    if not ranks.leads:
        full_disk_at(2)
        trainer.follow()
        return
    trainer.update([random_tree(s) for s in range(3)])
    checkpoint.save(trainer, folder / "two", extra={"iteration": 1})
    not_none(trainer.versions)[-1] = "v1"
    trainer.update([random_tree(s) for s in range(3, 6)])
    try:
        checkpoint.save(trainer, folder / "two", extra={"iteration": 2})
        said = "saved"
    except TreewrightError as error:
        said = str(error)
    again = checkpoint.save(trainer, folder / "again", extra={"iteration": 2})
    (folder / "after.json").write_text(
        json.dumps(
            {
                "version": trainer.version(),
                "said": said,
                "again": again.step,
                "left": left_in(folder / "two"),
                "streamed": passed_through(trainer, again.path),
            }
        )
    )
    trainer.stop()


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def full_disk_at(number: int) -> None:
    """This rank's part of the checkpoint `number` cannot be written."""
    real = states._write
    calls: list[Path] = []

    def write(trainer: Any, folder: Path) -> None:
        calls.append(folder)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(calls) == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            real(trainer, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    states._write = write


def resuming(ranks: Any, folder: Any) -> None:
    """From one process's checkpoint `one`, and from `two`, to the second update."""
    trainer = RankedTrainer(tiny_model(1, torch.float32), TrainSettings(lr=0.01), ranks=ranks, versions=["v1"])
    if not ranks.leads:
        trainer.follow()
        return
    out = {}
    for name in ("one", "two"):
        saved = checkpoint.latest(folder / name)
        extra = checkpoint.restore(trainer, not_none(saved))
        restored = trainer.version()
        not_none(trainer.versions)[-1] = "v1"
        trainer.update([random_tree(s) for s in range(3, 6)])
        weights = {n: t.tolist() for n, t in checkpoint.whole_weights(trainer).items()}
        out[name] = {"extra": extra, "restored": restored, "weights": weights, "steps": trainer.steps}
    (folder / "resumed.json").write_text(json.dumps(out))
    trainer.stop()


def adapted(ranks: Any, folder: Any) -> None:
    """Adapters: gradients of every model by two processes and by one, and a checkpoint from two to one and back."""
    from treewright.training.lora import attach
    from treewright.training.settings import LoraSettings

    patch()
    lora = LoraSettings(rank=2)
    out: dict[str, Any] = {}
    trees = [random_tree(s) for s in range(FEW)]
    cases: tuple[tuple[str, dict[str, Any], torch.dtype | None], ...] = (
        ("clipped", {"kl_coef": 0.3, "minibatches": 2}, None),
        ("gspo", {"loss": "gspo", "chunk_tokens": 40, "minibatches": 1}, None),
        ("half", {"precision": "bfloat16", "minibatches": 1}, torch.bfloat16),
    )
    for name, plain in models():
        for case, options, half in cases:
            if name == "gpt_oss" and half is not None:
                continue  # half precision sends some of its tokens to other experts
            base = copy.deepcopy(plain) if half is None else copy.deepcopy(plain).float()
            model = attach(base, lora, name, 5, half)
            with torch.no_grad():
                for at, weight in model.named_parameters():
                    if ".lora_" in at:
                        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
            model = model.double() if half is None else model
            settings = TrainSettings(lr=0.01, lora=lora, max_tokens=120, **options)
            many: list[Any] = []
            alone: list[Any] = []
            trainer = watched(RankedTrainer, many)(copy.deepcopy(model), settings, ranks=ranks, versions=["v1"])
            if not ranks.leads:
                trainer.follow()
                continue
            one = watched(Trainer, alone)(model, settings, versions=["v1"])
            before = trainer.version() == one.version()
            stats, told = trainer.update(trees), one.update(trees)
            out[f"{name} {case}"] = {
                "gap": max(gap(a, b) for a, b in zip(many, alone, strict=True)), "steps": len(many), "same": before,
                "loss": [stats["loss"], told["loss"]], "reference": [s.get("reference_kl") for s in (stats, told)],
            }  # fmt: skip
            trainer.stop()
    try:
        RankedTrainer(tiny_model(0), TrainSettings(max_tokens=120 - ranks.rank), ranks=ranks)
    except TreewrightError as error:
        unlike = str(error)
    few = LoraSettings(rank=2, targets=("q_proj", "v_proj"))
    settings = TrainSettings(lr=0.01, lora=few)
    model = attach(tiny_model(0, torch.float32), few, "base", 5)
    trainer = RankedTrainer(copy.deepcopy(model), settings, ranks=ranks, versions=["v1"])
    if not ranks.leads:
        trainer.follow()
        return
    trainer.update(trees[:3])
    two = checkpoint.save(trainer, folder / "two", extra={"iteration": 1})
    one = Trainer(copy.deepcopy(model), settings, versions=["v1"])
    checkpoint.restore(one, two)
    ends: dict[str, Any] = {"unlike": unlike}
    ends |= {"restored": [trainer.version(), one.version()]}
    back = checkpoint.save(one, folder / "one")
    not_none(trainer.versions)[-1] = "v1"
    trainer.update(trees[3:])
    checkpoint.restore(trainer, back)
    ends["back"] = [trainer.version(), one.version()]
    after = []
    for each in (one, trainer):
        not_none(each.versions)[-1] = "v1"
        after.append(each.update(trees[3:])["loss"])
    found = [checkpoint.whole_weights(each) for each in (one, trainer)]
    ends["gap"] = max(float((found[0][n] - w).abs().max()) for n, w in found[1].items())
    stranger = Trainer(attach(tiny_model(1, torch.float32), few, "other", 5), settings)
    foreign = checkpoint.save(stranger, folder / "foreign")
    try:
        checkpoint.restore(trainer, foreign)
    except TreewrightError as error:
        ends["said"] = str(error)
    (folder / "out.json").write_text(json.dumps({"ways": out, "ends": ends, "after": after}))
    trainer.stop()


def waiting(ranks: Any, folder: Any) -> None:
    """The leader trains again and again until it cannot."""
    trainer = RankedTrainer(tiny_model(0), TrainSettings(lr=0.01), ranks=ranks)
    (folder / f"pid{ranks.rank}").write_text(str(os.getpid()))
    if not ranks.leads:
        trainer.follow()
        return
    for seed in range(100000):
        trainer.update([random_tree(s) for s in range(3 * seed, 3 * seed + 3)])


def timed(ranks: Any, folder: Any) -> None:
    """Processor seconds of steps of one pack on each rank, and of steps that were shared out from several packs."""
    from treewright.benchmarks.train_ranks import SHAPE, packs_of
    from treewright.training.balance import share_out
    from treewright.training.parallel.forest import cut, part_of

    def busy(packs: list[PackedBatch]) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            trainer.descend_surrogate(packs) if ranks.leads else trainer.follow_one()
            best = min(best, float(ranks.largest(torch.tensor([time.process_time() - began]))[0]))
        return best

    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "num_hidden_layers": 2})).eval()
    most = 512
    trainer = RankedTrainer(model, TrainSettings(lr=1e-9, minibatches=1, max_tokens=most), ranks=ranks)
    trees = [part for pack in packs_of(30) for part in cut(pack)]
    busy(trees[:2])
    tokens, pairs, seconds = [], [], []
    for i in range(6):  # two trees, one for each rank
        dearest = max(
            (part_of(t) for t in trees[2 * i : 2 * i + 2]), key=lambda p: not_none(trainer.costs).of(p.tokens, p.pairs)
        )
        tokens.append(dearest.tokens)
        pairs.append(dearest.pairs)
        seconds.append(busy(trees[2 * i : 2 * i + 2]))
    held_out = []
    for some in (trees[12:18], trees[18:24], trees[24:30]):
        parts = [part_of(t) for t in some]
        held_out.append({"parts": [[p.tokens, p.pairs] for p in parts], "busy": busy(some),
                         "plan": share_out(parts, 2, most, not_none(trainer.costs))})  # fmt: skip
    if ranks.leads:
        out = {"tokens": tokens, "pairs": pairs, "seconds": seconds, "held_out": held_out}
        (folder / "out.json").write_text(json.dumps(out))


def child(scenario: Any, folder: Any, rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo",
                   "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip
    torch.set_num_threads(1)
    try:
        globals()[scenario](join(), Path(folder))
    except BaseException as error:
        Path(folder, f"error{rank}").write_text(f"{type(error).__name__}: {error}")
        raise


class Two:
    """Two ranks that run a scenario; `folder` is where they leave what they have found."""

    def __init__(self, scenario: str, folder: Path) -> None:
        import torch.distributed as dist

        self.store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["treewright.agent.cli.lean_start", "ranks_child", "transformers.models.gpt_oss.modeling_gpt_oss"]
        )
        self.folder = Path(folder)
        self.ranks = [
            context.Process(target=child, args=(scenario, str(folder), rank, self.store.port)) for rank in range(2)
        ]
        for rank in self.ranks:
            rank.start()

    def join(self, seconds: float = 240.0) -> list[int | None]:
        end = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(0.0, end - time.monotonic()))
        codes = [rank.exitcode for rank in self.ranks]
        for rank in self.ranks:
            if rank.is_alive():
                rank.kill()
                rank.join()
        return codes


def together(scenario: str, folder: Path) -> None:
    assert Two(scenario, folder).join() == [0, 0]
