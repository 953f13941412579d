"""A slim forward for small Llama-shaped models (Llama, Qwen2, Qwen3).

It reads the model's weights and does the same arithmetic with far fewer calls: fused projections, rotation as one
complex product, fixed key and value buffers, no mask building. For small models the calls and not the arithmetic take
the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from treewright.kernels.decode import BranchCache, Path, Stretch, path_length

__all__ = ["SlimRunner", "is_slim"]

SLIM_TYPES = ("llama", "qwen2", "qwen3")
PACKS = 300_000
"""Numbers of a weight from which packing it pays; below, the call costs what it saves. Measured with 8 rows on one
core: a product with a packed weight of 576 · 576 takes .70 of the plain one, of 576 · 3072 .46."""
FIXED_ROPE = ("default", "linear", "llama3", "yarn")


def is_slim(model: Any) -> bool:
    """Whether the slim forward is exact for this model: float32, full attention, a fixed rotary table, plain layers
    (an adapter's are not)."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    layers = getattr(getattr(model, "model", None), "layers", None)
    return (
        config.model_type in SLIM_TYPES
        and model.dtype == torch.float32
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and rope.get("rope_type", "default") in FIXED_ROPE
        and not getattr(config, "quantization_config", None)
        and layers is not None
        and type(layers[0].self_attn.q_proj) in (nn.Linear, nn.Module)
    )


class SlimRunner:
    """Runs the weights of a Llama-shaped model; equal to its own forward within 1e-5.

    Projections are copies (fused, rotary pairs interleaved): call `refresh` after the model's weights changed.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps, self.scale = config.rms_norm_eps, self.dim**-0.5
        self.refresh()

    shares = True

    @property
    def device(self) -> torch.device:
        device: torch.device = self.embed.device
        return device

    @torch.no_grad()
    def refresh(self) -> None:
        """Reads the model's weights again."""
        self.release()  # never two copies
        core = self.model.model
        self.embed = core.embed_tokens.weight.detach()
        self.head: Tensor | None = _packed(self.model.lm_head.weight.detach().t())
        self.head_bias, self.norm = self.model.lm_head.bias, core.norm.weight.detach()
        self.layers = [_Layer(layer, self.heads, self.kv_heads, self.dim) for layer in core.layers]
        self.table = torch.empty(0, self.dim // 2, dtype=torch.complex64, device=self.embed.device)

    def release(self) -> None:
        """Frees the copies; nothing can be drawn until `refresh`."""
        self.layers, self.head = [], None

    def _rotation(self, positions: Tensor, longest: int) -> Tensor:
        """[…, 1, dim/2] complex factors of the rotary embedding at `positions`, all below `longest`."""
        if longest > len(self.table):
            size = 1 << max(8, longest - 1).bit_length()
            cos, sin = self.model.model.rotary_emb(self.embed[:1], torch.arange(size, device=self.device)[None])
            half = self.dim // 2
            self.table = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())
        return self.table[positions].unsqueeze(-2)

    def prefill(self, ids: Sequence[int], path: Path) -> tuple[Stretch, Tensor]:
        return self.prefill_many([(ids, path)])[0]

    def prefill_many(self, parts: Sequence[tuple[Sequence[int], Path]]) -> list[tuple[Stretch, Tensor]]:
        """`prefill` of each part: all their tokens [N] meet each weight together, and each sees its own path alone."""
        shape = (len(self.layers), self.kv_heads, self.dim)
        seen_by = [_Part(path, len(ids), shape, self.embed) for ids, path in parts]
        positions = torch.cat([part.positions for part in seen_by])
        rotation = self._rotation(positions, max(part.before + part.count for part in seen_by))
        x = self.embed[torch.tensor([token for ids, _ in parts for token in ids], device=self.device)]
        sizes = [part.count for part in seen_by]
        for i, layer in enumerate(self.layers):
            qkv = zip(*(torch.split(each, sizes) for each in layer.project(x, rotation, self.eps)), strict=True)
            seen = [part.attend(i, *mine) for part, mine in zip(seen_by, qkv, strict=True)]
            x = layer.mix(x, seen[0] if len(seen) == 1 else torch.cat(seen), self.eps)
        last = torch.tensor(sizes, device=self.device).cumsum(0) - 1
        return [(part.stretch(), logits) for part, logits in zip(seen_by, self._logits(x[last]), strict=True)]

    def _logits(self, x: Tensor) -> Tensor:
        x = F.rms_norm(x, x.shape[-1:], self.norm, self.eps)
        return _times(x, self.head, self.head_bias)

    def rows(self, paths: Sequence[Path], repeats: Sequence[int], room: int, most: Sequence[int]) -> _SlimRows:
        cache = BranchCache(paths, repeats, room, most=most)
        return _SlimRows(self, cache, max(map(path_length, paths)) + room)


class _Part:
    """The next `count` tokens behind a path; their keys and values are written where they will be kept."""

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int], like: Tensor) -> None:
        layers, heads, dim = shape
        self.path, self.count, self.before = path, count, path_length(path)
        self.positions = torch.arange(self.before, self.before + count, device=like.device)
        self.mask: Tensor | None = None
        if self.before:
            self.mask = torch.ones(count, self.before + count, dtype=torch.bool, device=like.device).tril(self.before)
        self.keys, self.values = (like.new_empty(layers, heads, count, dim) for _ in range(2))

    def attend(self, i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What q [count, heads, dim] sees in layer i of the path and of k, v [count, kv heads, dim]: [count, heads ·
        dim]."""
        grouped = q.shape[1] != k.shape[1]
        self.keys[i], self.values[i] = k.transpose(0, 1), v.transpose(0, 1)
        k, v = self.keys[i], self.values[i]
        if self.path:
            k = torch.cat([*(s.keys[i] for s in self.path), k], 1)
            v = torch.cat([*(s.values[i] for s in self.path), v], 1)
        seen = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k[None], v[None], self.mask, is_causal=self.mask is None, enable_gqa=grouped
        )
        return seen[0].transpose(0, 1).reshape(self.count, -1)

    def stretch(self) -> Stretch:
        return Stretch(self.before, self.keys, self.values)


def _packed(weight: Tensor) -> Tensor:
    """A large [in, out] weight in the order in which oneDNN reads it; as it is where that is not to be had.

    A product with a few rows waits for memory, and blocks that are read in order come sooner.
    """
    if weight.device.type != "cpu" or weight.numel() < PACKS:
        return weight
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), None)
    return packed


def _times(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x [B, in] times a weight of `_packed`, plus bias [out]."""
    assert weight is not None, "the weights were released; call refresh first"
    if weight.is_mkldnn:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _added(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [B, out] plus x [B, in] times a weight of `_packed`, plus bias [out]."""
    if weight.is_mkldnn:
        return _times(x, weight, bias).add_(y)
    return torch.addmm(y if bias is None else y + bias, x, weight)


class _Layer:
    """The fused weights of one decoder layer, each [in, out]."""

    def __init__(self, layer: Any, heads: int, kv_heads: int, dim: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        order = torch.arange(dim).view(2, dim // 2).t().reshape(-1)  # pairs (i, i + dim/2) side by side
        self.qkv = _packed(torch.cat([
            _paired(attention.q_proj.weight, order), _paired(attention.k_proj.weight, order), attention.v_proj.weight,
        ]).t().contiguous())  # fmt: skip
        self.qkv_bias: Tensor | None = None
        if attention.q_proj.bias is not None:
            q, k = (_paired(p.bias[:, None], order)[:, 0] for p in (attention.q_proj, attention.k_proj))
            self.qkv_bias = torch.cat([q, k, attention.v_proj.bias])
        self.qk_norm: Tensor | None = None
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm.weight[order], attention.k_norm.weight[order]
            self.qk_norm = torch.cat([q.expand(heads, dim), k.expand(kv_heads, dim)])
        self.out, self.out_bias = _packed(attention.o_proj.weight.t().contiguous()), attention.o_proj.bias
        self.gate_up = _packed(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).t().contiguous())
        self.gate_up_bias: Tensor | None = None
        if mlp.gate_proj.bias is not None:
            self.gate_up_bias = torch.cat([mlp.gate_proj.bias, mlp.up_proj.bias])
        self.down, self.down_bias = _packed(mlp.down_proj.weight.t().contiguous()), mlp.down_proj.bias
        self.norm_in = layer.input_layernorm.weight.detach()
        self.norm_mid = layer.post_attention_layernorm.weight.detach()

    def project(self, x: Tensor, rotation: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, heads, dim], k and v [B, kv heads, dim] of x [B, hidden], rotated."""
        x = F.rms_norm(x, x.shape[-1:], self.norm_in, eps)
        mixed = _times(x, self.qkv, self.qkv_bias)
        mixed = mixed.view(len(x), -1, self.dim)
        turned = self.heads + self.kv_heads
        qk = mixed[:, :turned]
        if self.qk_norm is not None:
            qk = F.rms_norm(qk, (self.dim,), None, eps) * self.qk_norm
        pairs = torch.view_as_complex(qk.reshape(len(x), turned, -1, 2))
        qk = torch.view_as_real(pairs * rotation).flatten(-2)
        return qk[:, : self.heads], qk[:, self.heads :], mixed[:, turned:]

    def mix(self, x: Tensor, seen: Tensor, eps: float) -> Tensor:
        """Adds what attention saw [B, heads · dim], then the feed-forward block."""
        x = _added(x, seen, self.out, self.out_bias)
        y = F.rms_norm(x, x.shape[-1:], self.norm_mid, eps)
        both = _times(y, self.gate_up, self.gate_up_bias)
        gate, up = both.chunk(2, -1)
        return _added(x, F.silu(gate) * up, self.down, self.down_bias)


def _paired(weight: Tensor, order: Tensor) -> Tensor:
    """Rows of each head in `order`, so that the two halves that rotate together lie side by side."""
    return weight.view(-1, len(order), weight.shape[1])[:, order].flatten(0, 1)


class _SlimRows:
    """Draws in progress."""

    def __init__(self, runner: SlimRunner, cache: BranchCache, longest: int) -> None:
        self.runner, self.cache, self.longest = runner, cache, longest

    def step(self, tokens: Tensor) -> Tensor:
        run, cache = self.runner, self.cache
        rotation = run._rotation(cache.positions[:, 0], self.longest)
        x = run.embed[tokens]
        for i, layer in enumerate(run.layers):
            q, k, v = layer.project(x, rotation, run.eps)
            seen = cache.attend(i, q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), run.scale)
            x = layer.mix(x, seen.reshape(len(tokens), -1), run.eps)
        cache.advance()
        return run._logits(x)

    def select(self, rows: Tensor) -> None:
        self.cache.keep(rows)
