"""Tokenizers and models small enough to make in a test."""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from treewright.search.types import Context

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% else %} {{ m.content }}</s>{% endif %}"
    "{% endfor %}"
)
SYSTEM_LAST = (
    "{% for m in messages[1:] %}{% if loop.last %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def tokenizer(
    marks: tuple[str, ...] | list[Any],
    template: str | None = None,
    end: str | None = None,
    lower: bool = False,
    **special: Any,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `marks` as special tokens; `lower` makes it forget capitals."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if lower:
        core.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(marks),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(['search {"entity": "ada", "relation": "mother"} hello world the answer'] * 4, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end or marks[-1], **special)
    made.chat_template = template
    return made


def compact(**options: Any) -> PreTrainedTokenizerFast:
    return tokenizer(("<|task|>", "<|obs|>", "<|act|>", "<|end|>"), **options)


def chatml(template: str = CHATML, **options: Any) -> PreTrainedTokenizerFast:
    return tokenizer(("<|im_start|>", "<think>", "</think>", "<|im_end|>"), template, **options)


def qwen3(vocab: int = 400, seed: int = 0, **changes: Any) -> Any:
    """A random Qwen3 of a few thousand parameters, float32, with sharpened logits so that draws vary but not wildly."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = dict(
        vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    return randomised(Qwen3ForCausalLM(Qwen3Config(**{**shape, **changes})), seed)


def randomised(model: Any, seed: int = 0) -> Any:
    """The model with every weight drawn anew, norms and biases too, so that no part of the forward is idle."""
    import torch

    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(dict(model.named_parameters()).items()):
            scale = 0.3 if weight.dim() > 1 else 0.2
            weight.copy_(torch.randn(weight.shape, generator=made) * scale + (1.0 if "norm" in name else 0.0))
    return model.eval()


def prompt(seed: int, length: int) -> tuple[Any, ...]:
    """Ids of a prompt that no other seed has."""
    rng = random.Random(seed)
    return tuple(rng.randrange(4, 300) for _ in range(length))


def context(ids: tuple[Any, ...]) -> Context:
    """A first prompt."""
    return Context(keep=0, delta=tuple(ids), ids=tuple(ids))
