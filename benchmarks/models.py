"""`treewright bench models`: every causal language model of the installed transformers on a tree and on its rows.

Each architecture is built small from its default configuration, with every kind of layer that it has, and run on a
tree of branching 4 and depth 6: exact, with the largest difference of log-probabilities and gradients from plain rows
(float64 throughout, float32 where a model takes no other); refused, with the reason; wrong; or crash. Then a training
step of a Qwen3.5-shaped hybrid on trees is timed beside the same on rows. `python -m treewright.benchmarks.models
docs/models.json docs/models-oldest.json docs/models.md` writes the page of the docs from committed figures.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from treewright.agent.runs.figures import write_result
from treewright.benchmarks.models_step import hybrid_step
from treewright.kernels import TreePlan
from treewright.training.decoders.check import doubled, running
from treewright.training.decoders.recurrent import is_recurrent
from treewright.training.decoders.tiny import tiny_model
from treewright.training.model import UnsupportedModel, chunked_backward, prepare, tree_logprobs

__all__ = ["COMPLETED", "FEW", "examined", "main", "page", "tree_4_6"]

FEW = ("gpt_oss", "qwen3_5_text", "kimi_linear", "nemotron_h", "minimax", "lfm2", "deepseek_v3", "gemma2",
       "llama4_text", "phimoe")  # fmt: skip
"""What a quick run looks at: one of each kind of layer."""

WHOLE = "table"
"""What `--only` calls all architectures without the step."""

COMPLETED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "reformer": {"is_decoder": True},
    "bert": {"is_decoder": True},
    "bamba": {"attn_layer_indices": [1]},
}
"""Options without which a default configuration cannot be built, or is no decoder."""

LIMIT = {torch.float64: 1e-9, torch.float32: 1e-5}
LEAST = 1e-6
"""Gradients smaller than this share of the largest are rounding of zero, and are compared with the largest."""


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Prints the table, writes JSON where a path is given, and returns {"figures", "models", "hybrid_step", "quick"}.

    quick  ten architectures, one of each kind of layer, and the step on two small trees
    only   these architectures, "table" for all of them; the step is left out
    """
    console, began, threads = Console(emoji=False), time.monotonic(), torch.get_num_threads()
    _quiet()
    torch.set_num_threads(1)  # small tensors gain nothing from more
    try:
        everything = architectures() if not quick and (not only or WHOLE in only) else FEW
        rows = [examined(name) for name in (everything if not only or WHOLE in only else only)]
        _show(console, rows)
        step, figures = ([], {}) if only else hybrid_step(quick)
    finally:
        torch.set_num_threads(threads)
    for line in step:
        console.print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()))
    result = {"figures": _figures(rows) | figures, "models": rows, "hybrid_step": step, "quick": quick,
              "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
    if json_path:
        write_result(Path(json_path), result)
    if plot_path:
        console.print("bench models draws no plot")
    return result


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def architectures() -> list[str]:
    """Names of all causal language models of the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _class_of(name: str) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]
    return getattr(transformers, found if isinstance(found, str) else found[0])


def examined(name: str) -> dict[str, Any]:
    """One line of the table: {"model", "class", "verdict", "reason", "difference", "precision", "attention", "layers"}.

    verdict  exact, refused, wrong or crash; "no decoder" for encoders and encoder-decoders, "not built" where the
             default configuration makes no small model that runs on plain text
    """
    line: dict[str, Any] = {"model": name, "class": "", "verdict": "not built", "reason": "", "difference": None,
                            "precision": "", "attention": "", "layers": ""}  # fmt: skip
    try:
        if getattr(_class_of(name).config_class(), "is_encoder_decoder", False):
            return line | {"verdict": "no decoder", "reason": "the decoder of an encoder-decoder"}
        model, dtype = _built(name, line)
    except Exception as error:  # a foreign class may object to anything
        return line | {"reason": _first_line(error)}
    with _precise(dtype):
        try:
            prepare(model)
            line["attention"] = "tree" if model.treewright_fit.attention == "treewright" else "whole mask"
            difference = _difference(model, tree_4_6())
            exact = difference <= LIMIT[dtype]
            return line | {"verdict": "exact" if exact else "wrong", "difference": difference}
        except UnsupportedModel as error:
            why = str(error).partition(" cannot run on packed trees: ")[2].partition(". See docs/")[0]
            other = "not a causal decoder" in why
            return line | {"verdict": "no decoder" if other else "refused", "reason": why or str(error)}
        except Exception as error:
            return line | {"verdict": "crash", "reason": _first_line(error)}


def _built(name: str, line: dict[str, Any]) -> tuple[Any, torch.dtype]:
    kind = _class_of(name)
    line["class"] = kind.__name__
    config = kind.config_class(**COMPLETED.get(name, {}))
    text = config.get_text_config()
    if getattr(text, "attention_dropout", 0.0):
        text.attention_dropout = 0.0
    failed: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        try:
            with _precise(dtype), torch.no_grad():
                model = tiny_model(kind, config, dtype=dtype)
                model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
        except Exception as error:
            failed = failed or error
            continue
        line["precision"] = str(dtype).removeprefix("torch.")
        line["layers"] = ", ".join(_kinds(model, text))
        return model, dtype
    assert failed is not None
    raise failed


def _precise(dtype: torch.dtype) -> ExitStack:
    stack = ExitStack()
    if dtype == torch.float64:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        stack.callback(torch.set_default_dtype, before)
        stack.enter_context(doubled())
    return stack


def _kinds(model: nn.Module, text: Any) -> Iterable[str]:
    """Kinds of layers, as the configuration calls them, else recurrent or attention."""
    named = getattr(model.config.get_text_config(), "layer_types", None)  # type: ignore[operator, union-attr]
    if isinstance(named, list):
        return sorted(set(map(str, named)))
    return ["recurrent" if any(is_recurrent(m) for m in model.modules()) else "full_attention"]


def tree_4_6() -> TreePlan:
    """Branching 4, depth 6: of each segment's four continuations one goes on; longer than the small windows."""
    up: list[int] = []
    lengths: list[int] = []

    def grow(parent: int, level: int) -> None:
        here = len(up)
        up.append(parent)
        lengths.append(4 + here % 3)
        for child in range(4 if level < 6 else 0):
            if child == 1:
                grow(here, level + 1)
            else:
                up.append(here)
                lengths.append(1 + child)

    grow(-1, 1)
    return TreePlan.from_segments(up, lengths)


def _difference(model: Any, plan: TreePlan) -> float:
    """Largest relative difference of log-probabilities, entropies and gradients, whole and in chunks, from rows."""
    ids = torch.randint(4, 90, (plan.n_queries,), generator=torch.Generator().manual_seed(0))
    trained = torch.nonzero(plan.parent >= 0).flatten()
    rows, targets = plan.parent[trained].long(), ids[trained]
    weight = torch.randn(2, len(trained), generator=torch.Generator().manual_seed(1))

    def loss(logp: Tensor, entropy: Tensor) -> Tensor:
        return (logp * weight[0] + entropy * weight[1]).sum()

    truth, expected = _on_rows(model, ids, plan, loss)
    model.zero_grad()
    found = tree_logprobs(model, ids, plan, rows, targets)
    loss(*found).backward()  # type: ignore[no-untyped-call]
    gaps = [float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)] + [_apart(model, expected)]
    if model.treewright_fit.chunks:
        model.zero_grad()
        chunked_backward(model, ids, plan, rows, targets, loss, 13)
        gaps.append(_apart(model, expected))
    return max(gaps)


def _on_rows(
    model: Any, ids: Tensor, plan: TreePlan, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    parent = plan.parent.tolist()
    logp: dict[int, Tensor] = {}
    entropy: dict[int, Tensor] = {}
    model.zero_grad()
    with running(model, "eager"):
        for leaf in sorted(set(range(len(parent))) - set(parent)):
            path = [leaf]
            while parent[path[-1]] >= 0:
                path.append(parent[path[-1]])
            path.reverse()
            scores = torch.log_softmax(model(input_ids=ids[path][None], use_cache=False).logits[0], -1)
            for at, token in list(enumerate(path))[1:]:
                logp[token] = scores[at - 1, ids[token]]
                entropy[token] = -(scores[at - 1].exp() * scores[at - 1]).sum()
    found = [torch.stack([x[t] for t in sorted(x)]) for x in (logp, entropy)]
    loss(*found).backward()  # type: ignore[no-untyped-call]
    return [x.detach() for x in found], {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _apart(model: nn.Module, expected: dict[str, Tensor]) -> float:
    largest = max(float(b.norm()) for b in expected.values())
    gap = 0.0
    for name, weight in model.named_parameters():
        a = torch.zeros_like(weight) if weight.grad is None else weight.grad
        b = expected.get(name, torch.zeros_like(weight))
        size = max(float(b.norm()), LEAST * largest)
        gap = max(gap, float((a - b).norm()) / size)
    return gap


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"[:200]


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    count = Counter(row["verdict"] for row in rows)
    decoders = sum(count[v] for v in ("exact", "refused", "wrong", "crash"))
    hybrid = [r["difference"] for r in rows if r["difference"] is not None and _is_hybrid(r)]
    figures = {
        "models_exact_share": (count["exact"] / max(decoders, 1), "of decoders"),
        "models_exact": (count["exact"], "architectures"),
        "models_decoders": (decoders, "architectures"),
        "models_wrong": (count["wrong"], "architectures"),
        "models_crash": (count["crash"], "architectures"),
        "hybrid_max_error": (max(hybrid, default=float("nan")), "relative"),
    }
    return {name: {"value": value, "unit": unit} for name, (value, unit) in figures.items()}


def _is_hybrid(row: dict[str, Any]) -> bool:
    return any(word in row["layers"] for word in ("linear_attention", "recurrent", "conv", "hybrid", "mamba"))


def _show(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        model, verdict, difference, attention, layers, reason = _cells(row)
        line = f"{model:24} {verdict:10} {difference:6} {attention:10} {layers or reason} {reason if layers else ''}"
        console.print(line.rstrip(), soft_wrap=True, markup=False, highlight=False)


def _cells(row: dict[str, Any]) -> list[str]:
    difference = "" if row["difference"] is None else f"{row['difference']:.0e}"
    return [row["model"], row["verdict"], difference, row["attention"], row["layers"], row["reason"]]


def page(result: dict[str, Any], oldest: dict[str, Any]) -> str:
    """The page of the docs that committed figures make: those of the transformers in use, and of the oldest taken."""
    rows = result["models"]
    lines = [
        "# Which models run on trees",
        "",
        "`treewright bench models` builds every causal language model of the installed transformers small, from its",
        "default configuration and with every kind of layer that it has, and runs it on a tree of branching 4 and",
        "depth 6 and on the tree's rows. *Exact*: log-probabilities, entropies and all gradients agree, whole and in",
        "chunks; the difference is the largest relative one, in float64 unless the table says otherwise. *Refused*:",
        "`prepare` says why. [Kernels](kernels.md) tells how it works. The page is made from docs/models.json:",
        "`treewright bench models --json docs/models.json`; `make models-oldest` does the same with the oldest",
        "transformers that is supported, and writes the page.",
        "",
        _summary(result),
        "",
        _summary(oldest) + " " + _apart_from(result, oldest),
        "",
    ]
    for title, verdicts, columns in (
        ("Exact", ("exact",), ("model", "difference", "attention", "layers")),
        ("Wrong or crashing", ("wrong", "crash"), ("model", "verdict", "difference", "reason")),
        ("Refused", ("refused",), ("model", "reason")),
        ("Not decoders, or not built", ("no decoder", "not built"), ("model", "verdict", "reason")),
    ):
        chosen = [row for row in rows if row["verdict"] in verdicts]
        if not chosen:
            continue
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for row in chosen:
            cells = dict(
                zip(("model", "verdict", "difference", "attention", "layers", "reason"), _cells(row), strict=True)
            )
            if row["precision"] == "float32" and cells["difference"]:
                cells["difference"] += " (float32)"
            lines.append(f"| {' | '.join(cells[c].replace('|', '/') for c in columns)} |")
        lines.append("")
    return "\n".join([*lines, *_step_lines(result)])


def _summary(result: dict[str, Any]) -> str:
    value = {name: figure["value"] for name, figure in result["figures"].items()}
    return (
        f"transformers {result['versions']['transformers']}: of {value['models_decoders']} decoders that can be built, "
        f"{value['models_exact']} are exact ({value['models_exact_share']:.1%}), {value['models_wrong']} wrong, "
        f"{value['models_crash']} crash."
    )


def _apart_from(result: dict[str, Any], oldest: dict[str, Any]) -> str:
    """What the older transformers says otherwise of the models that both have."""
    now = {row["model"]: row for row in result["models"]}
    both = [(now[row["model"]], row) for row in oldest["models"] if row["model"] in now]
    other = [f"{old['model']} ({old['verdict']}: {old['reason'] or old['difference']})" for new, old in both
             if old["verdict"] != new["verdict"]]  # fmt: skip
    if not other:
        return "All models that both know have the same verdict in both."
    return f"Not the same there as in the table: {'; '.join(other)}."


def _step_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        "## A hybrid's training step",
        "",
        "Forward, loss, backward and optimizer of a small Qwen3.5-shaped decoder (8 layers, six of Gated DeltaNet), in",
        "CPU seconds of one thread, on a tree and on its rows through the model's own code; the ideal is the ratio of",
        "floating-point operations.",
        "",
        "| family | tokens | row tokens | speed-up | ideal | of ideal |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["hybrid_step"]:
        sizes = f"{row['tokens']} | {row['row tokens']}"
        lines.append(
            f"| {row['family']} | {sizes} | {row['speedup']:.2f} | {row['ideal']:.2f} | {row['of ideal']:.2f} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    *sources, target = sys.argv[1:]
    Path(target).write_text(page(*(json.loads(Path(source).read_text()) for source in sources)))
