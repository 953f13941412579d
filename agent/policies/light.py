"""Opening a small model without transformers, whose import takes longer than a short search.

A folder whose model is of a plain Llama shape, and whose tokenizer is a `tokenizer.json` without a chat template, is
read by torch, tokenizers and safetensors alone; `SlimRunner` runs it. `HFPolicy.model` is the transformers model all
the same: it is loaded when somebody asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from treewright.envs.lines import json_value

__all__ = ["LightModel", "LightTokenizer", "is_light"]

SHAPES = ("llama", "qwen2", "qwen3")
NEEDED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "attention_bias",
)  # fmt: skip
TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
SAID = {  # of a tokenizer; anything else may change what it makes of a text
    "backend", "clean_up_tokenization_spaces", "eos_token", "pad_token", "extra_special_tokens", "is_local",
    "local_files_only", "model_max_length", "tokenizer_class", "additional_special_tokens",
}  # fmt: skip
WEIGHTS = "model.safetensors"
MANY = 1 << 28  # bytes of weights from which an import no longer counts


def is_light(folder: str | Path, dtype: str = "float32") -> bool:
    """Whether a folder can be opened without transformers, with the same tokens and log-probs."""
    path = Path(folder)
    config, said = _read(path / "config.json"), _read(path / "tokenizer_config.json")
    if config is None or said is None or not (path / WEIGHTS).is_file() or not (path / "tokenizer.json").is_file():
        return False
    return (
        dtype == "float32" == config.get("dtype", config.get("torch_dtype"))
        and config.get("model_type") in SHAPES
        and config.get("hidden_act") == "silu"
        and all(config.get(name) is not None for name in NEEDED)
        and set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and set(config["rope_parameters"]) == {"rope_theta", "rope_type"}
        and config["rope_parameters"]["rope_type"] == "default"
        and not config.get("quantization_config")
        and not config["attention_bias"]
        and not config.get("mlp_bias")
        and (path / WEIGHTS).stat().st_size < MANY
        and said.get("tokenizer_class") in TOKENIZERS
        and set(said) <= SAID
        and not (path / "chat_template.jinja").exists()
    )


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json_value(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class LightModel(nn.Module):
    """The weights of a Llama-shaped model under transformers' names, without a forward of its own.

    config            what config.json says, as attributes
    generation_config what ends a response: `eos_token_id`
    """

    model: Any
    lm_head: Any

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = _Config(**config)
        self.generation_config = SimpleNamespace(eos_token_id=config.get("eos_token_id"))
        vocabulary, width = config["vocab_size"], config["hidden_size"]
        core: Any = nn.Module()
        core.embed_tokens = _weight(vocabulary, width)
        core.layers = nn.ModuleList(_layer(config) for _ in range(config["num_hidden_layers"]))
        core.norm = _weight(width)
        self.model, self.lm_head = core, _weight(vocabulary, width)
        if config.get("tie_word_embeddings"):
            self.lm_head.weight = core.embed_tokens.weight
        core.rotary_emb = _Rotation(config["head_dim"], float(config["rope_parameters"]["rope_theta"]))

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """The model in a folder that `is_light` accepts. Raises ValueError for weights of another shape."""
        from safetensors.torch import load_file

        path = Path(folder)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        said = _read(path / "generation_config.json") or {}
        made = cls({**config, "eos_token_id": said.get("eos_token_id", config.get("eos_token_id"))})
        state = load_file(path / WEIGHTS)
        if config.get("tie_word_embeddings"):
            state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        try:
            made.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from error
        if config.get("tie_word_embeddings"):
            made.lm_head.weight = made.model.embed_tokens.weight
        return made.to(dtype).eval()

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.lm_head.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.lm_head.weight.device
        return device

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


class _Config(SimpleNamespace):
    def get_text_config(self) -> _Config:
        return self


def _weight(*shape: int, biased: bool = False) -> nn.Module:
    """A module with a weight that is still to be read, and a bias or none."""
    made: Any = nn.Module()
    made.weight = nn.Parameter(torch.empty(shape))
    made.bias = nn.Parameter(torch.empty(shape[0])) if biased else None
    built: nn.Module = made
    return built


def _layer(config: dict[str, Any]) -> nn.Module:
    width, dim, inner = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    attention, mlp = nn.Module(), nn.Module()
    layer = nn.Module()
    biased = config["model_type"] == "qwen2"
    attention.q_proj = _weight(heads * dim, width, biased=biased)
    attention.k_proj = _weight(kv_heads * dim, width, biased=biased)
    attention.v_proj = _weight(kv_heads * dim, width, biased=biased)
    attention.o_proj = _weight(width, heads * dim)
    if config["model_type"] == "qwen3":
        attention.q_norm, attention.k_norm = _weight(dim), _weight(dim)
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = _weight(inner, width), _weight(inner, width), _weight(width, inner)
    layer.self_attn, layer.mlp = attention, mlp
    layer.input_layernorm, layer.post_attention_layernorm = _weight(width), _weight(width)
    return layer


class _Rotation:
    """Rotary embedding of the default kind, Su et al. 2021 (arXiv 2104.09864)."""

    def __init__(self, dim: int, theta: float) -> None:
        self.dim, self.theta = dim, theta

    def __call__(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each [1, n, dim], at positions [1, n]."""
        steps = torch.arange(0, self.dim, 2, dtype=torch.int64, device=like.device).float()
        inverse = 1.0 / (self.theta ** (steps / self.dim))
        angles = (inverse[None, :, None] @ positions[:, None, :].float()).transpose(1, 2)
        both = torch.cat((angles, angles), -1)
        return both.cos(), both.sin()


class LightTokenizer:
    """What prompts need of a tokenizer; anything else is asked of transformers' own, loaded then."""

    chat_template = None

    def __init__(self, folder: str | Path) -> None:
        from tokenizers import Tokenizer

        self._folder = Path(folder)
        self._whole: Any = None
        self.backend_tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        said = json.loads((self._folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        named = [said.get("eos_token"), said.get("pad_token")]
        named += [*said.get("extra_special_tokens", ()), *said.get("additional_special_tokens", ())]
        self._named = [_text(token) for token in named]
        self.eos_token = self._named[0]
        self.eos_token_id: int | None = self._id(self.eos_token)

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    @property
    def all_special_ids(self) -> list[int]:
        """Those with a role, such as ending a turn."""
        found = (self._id(text) for text in self._named)
        return list(dict.fromkeys(i for i in found if i is not None))

    def _id(self, text: str | None) -> int | None:
        found: int | None = None if text is None else self.backend_tokenizer.token_to_id(text)
        return found

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def whole(self) -> Any:
        """transformers' tokenizer of the same folder."""
        if self._whole is None:
            from transformers import AutoTokenizer

            self._whole = AutoTokenizer.from_pretrained(str(self._folder))
        return self._whole

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self.whole()(*texts, **options)

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
