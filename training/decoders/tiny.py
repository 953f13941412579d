"""A model's configuration with small sizes and the same structure: every flag, every kind of layer, a short window.

What runs exactly on a tree depends on what a model's code does, not on how wide it is. So a decoder is tried out on a
twin of a few thousand weights: the same class, the same options, the first layers up to one of every kind.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn

__all__ = ["tiny_config", "tiny_model"]

SIZES: tuple[tuple[str, int], ...] = (
    (r"(decoder_|unpadded_|audio_|shape_|pronunciation_)?vocab_size(_per_layer_input)?", 97),
    (r"hidden_size|d_model|n_embd|dim_model_base|backbone_hidden_size|attention_hidden_size|word_embed_proj_dim", 64),
    (r"embedding_dim|emb_dim|(input_|output_)?embedding_size|lru_width", 64),
    (r"mamba_d_ssm", 128),
    (r"hidden_size_per_layer_input|ple_embed_dim", 16),
    (
        r"num_attention_heads|n_head|n_heads|num_heads|attention_heads|encoder_attention_heads|decoder_attention_heads",
        4,
    ),
    (r"(swa_)?num_key_value_heads|num_kv_heads|num_query_groups|num_global_key_value_heads", 2),
    (r"swa_num_attention_heads", 4),
    (r"head_dim|kv_channels|swa_head_dim|global_head_dim|attention_head_dim|attention_head_size|d_head", 16),
    (r"(dense_|shared_|moe_|intermediate_)?(intermediate_size|intermediate_size_mlp)", 48),
    (r"(moe_)?shared_expert_intermediate_size|expert_ffn_hidden_size|prefix_dense_intermediate_size", 32),
    (r"ffn_hidden_size|n_inner|ffn_dim|dff|dim_ff|decoder_ffn_dim|encoder_ffn_dim|block_ffn_dim|d_inner", 48),
    (r"(n_routed|num_local|num|moe_num)_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|top_k_experts|moe_k", 2),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts|zero_expert_num", 1),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|laurel_rank|gated_norm_rank|adapter_rank|hc_lowrank|moe_latent_size", 16),
    (r"qk_nope_head_dim", 16),
    (r"qk_rope_head_dim|d_rel", 8),
    (r"v_head_dim", 12),
    (r"qk_head_dim", 24),
    (r"o_groups", 2),
    (r"linear_num_key_heads|linear_num_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"linear_(key_|value_)?head_dim", 8),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 4),
    (r"mamba_d_head|mamba_headdim|mamba_head_dim", 32),
    (r"mamba_n_groups|mamba_ngroups|n_groups", 1),
    (r"mamba_d_state|ssm_state_size|state_size", 8),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"mamba_expand|expand", 2),
    (r"block_size|local_attention", 8),
    (r"sliding_window|attention_chunk_size|sliding_window_size|attention_window_size|window_size|index_block_size", 9),
    (r"index_head_dim|indexer_head_dim", 16),
    (r"index_n_heads|indexer_n_heads", 32),  # few would often score several keys alike
    (r"indexer_kv_heads", 2),
    (r"index_topk", 6),
    (r"rotary_dim", 8),
    (r"encoder_hash_byte_group_vocab|ngram_vocab_size_base", 97),
    (r"num_channels", 3),
    (r"max_position_embeddings|n_positions|max_seq_len|context_length|n_ctx|model_max_length", 512),
)
"""Sizes by the name of the option, first match first; an option that is None, 0 or a flag stays as it is."""

LAYERS = r"num_hidden_layers|n_layers?|num_layers|num_decoder_layers|decoder_layers|encoder_layers|num_blocks|depth"
MOST_LAYERS = 12
UNSAID = ("architectures", "transformers_version", "dtype", "quantization_config", "_name_or_path", "model_type")


def tiny_config(config: Any) -> Any:
    """A small configuration of the same class and structure. Raises what the class raises where none can be made."""
    from transformers import PreTrainedConfig

    plain = PreTrainedConfig().to_dict()
    values = {n: v for n, v in config.to_dict().items() if n not in plain or v != plain[n]}
    for name in UNSAID:
        values.pop(name, None)
    count = next((v for n, v in values.items() if re.fullmatch(LAYERS, n) and isinstance(v, int)), 0)
    said = {name: getattr(config, name, None) for name in ("layer_types", "layers_block_type")}
    layers = _layers(values | said, count)
    shared = int(values.get("num_kv_shared_layers") or 0)
    if shared:  # those layers read what earlier ones keep, so the others come first
        values["num_kv_shared_layers"], layers = layers, 2 * layers
    small = {name: _small(config, name, value, count, layers) for name, value in values.items()}
    _keep_relations(values, small)
    return type(config)(**small)


def tiny_model(model_class: Any, config: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model of `model_class` with random weights, in evaluation mode, made from `tiny_config(config)`."""
    small = tiny_config(config)
    small._experts_implementation = "eager"  # other ways to multiply experts take no float64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = model_class._from_config(small, attn_implementation="eager", dtype=dtype)
        _stir(model)
    return model.eval()


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Makes every weight count: what starts as ones or zeros would hide a part that is left out."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.add_(torch.randn_like(weight) * 0.05)


def _layers(values: dict[str, Any], count: int) -> int:
    """The least number of first layers in which every kind of layer occurs."""
    lists = [[str(v) for v in x] for x in values.values() if isinstance(x, list) and len(x) == count > 0]
    own = values.get("per_layer_config") or {}
    kinds = list(zip(range(count), *lists, strict=True))
    seen = [(str(own.get(f"{i:02d}", own.get(str(i)))), *kind) for i, *kind in kinds]
    needed = max((seen.index(kind) + 1 for kind in set(seen)), default=2)
    return max(min(2, count), min(needed, MOST_LAYERS))


def _small(config: Any, name: str, value: Any, count: int, layers: int) -> Any:
    inner = vars(config).get(name)
    if hasattr(inner, "to_dict"):
        return tiny_config(inner)
    if name == "per_layer_config":
        return {k: {n: _own_size(config, n, v) for n, v in of.items()} for k, of in value.items() if int(k) < layers}
    if isinstance(value, list) and len(value) == count:
        return [_sized(name, v) for v in value[:layers]]
    if name.endswith("_layer_ids") and isinstance(value, list):
        return [i for i in value if i < layers]
    if re.fullmatch(LAYERS, name) and isinstance(value, int):
        return min(value, layers)
    return _sized(name, copy.deepcopy(value))


def _own_size(config: Any, name: str, value: Any) -> Any:
    """A layer's own size stays the multiple of the common one that it is."""
    common = config.to_dict().get(name)
    if isinstance(value, int) and isinstance(common, int) and 0 < common < value:
        return _sized(name, common) * (value // common)
    return _sized(name, value)


def _sized(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if name.endswith("_token_id"):
        return min(value, 3)
    return next((min(value, size) for pattern, size in SIZES if re.fullmatch(pattern, name)), value)


def _keep_relations(values: dict[str, Any], small: dict[str, Any]) -> None:
    """What follows from other sizes, or was equal to another, stays so."""
    heads, own = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if heads is not None and own == heads:
        small["num_key_value_heads"] = small["num_attention_heads"]
    if "qk_rope_head_dim" in values and values.get("head_dim") == values["qk_rope_head_dim"]:
        small["head_dim"] = small["qk_rope_head_dim"]
    if "num_attention_heads_per_layer" in small:
        most = max(values["num_attention_heads_per_layer"])
        small["num_attention_heads_per_layer"] = [
            4 if n == most else 2 for n in values["num_attention_heads_per_layer"][: small["num_hidden_layers"]]
        ]
    if "state_size" in values and "num_heads" in values and "head_dim" in values:
        small["head_dim"] = small["hidden_size"] * small["expand"] // small["num_heads"]
    if "mamba_d_ssm" in values:
        small["mamba_d_ssm"] = small["mamba_n_heads"] * small["mamba_d_head"]
    if "attention_hidden_size" in values and "kv_channels" in values:  # attention over a doubled width
        small["attention_hidden_size"] = 2 * small["hidden_size"]
        small["attention_head_dim"] = 2 * small["hidden_size"] // small["num_attention_heads"]
        small["kv_channels"] = small["hidden_size"] // small["num_attention_heads"]
        small["num_query_groups"] = small["num_attention_heads"]
