"""Small tokenizers of the kinds that models have, and chat templates: those that TRL carries, and shapes of others."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from not_none import not_none
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast

TEXTS = [
    "You act in a world step by step. In each turn write exactly one action in one line",
    "find the lamp",
    "nothing found here\n\n two lamps",
    'search {"entity": "ada", "relation": "mother"}',
    "system user assistant the answer is eve",
    "  indented\n\ttext",
    "é ü 你好 — “x”",
] * 20
SPACED = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def bytes_of(before: pre_tokenizers.ByteLevel | pre_tokenizers.Sequence) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = before, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return core


@functools.cache
def pieces() -> str:
    """Vocabulary and merges of a BPE over SentencePiece's ▁, with bytes to fall back on, as JSON."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    marks = ["<unk>", "<s>", "</s>"]
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=marks, show_progress=False))
    made = json.loads(core.to_str())
    size = max(made["model"]["vocab"].values()) + 1
    made["model"]["vocab"] |= {f"<0x{i:02X}>": size + i for i in range(256)}
    made["model"] |= {"byte_fallback": True, "fuse_unk": True}
    return json.dumps(made)


def sentencepiece(
    before: pre_tokenizers.Split | None = None, normalizer: normalizers.Sequence | normalizers.Replace | None = None
) -> Tokenizer:
    core = Tokenizer.from_str(pieces())
    core.pre_tokenizer, core.decoder = before, SPACED
    if normalizer is not None:
        core.normalizer = normalizer
    return core


def unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    marks = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=marks, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    return core


def fast(core: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def llama(**options: Any) -> Any:
    """The class of transformers itself: prepend_scheme 'first', or 'always' where it is told to be legacy."""
    model = json.loads(pieces())["model"]
    return LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], **options)


def prepended() -> Any:
    """As Llama 2's and Phi-3's own files: a normalizer puts ▁ in front of every stretch between marks."""
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return fast(sentencepiece(normalizer=normalizers.Sequence(steps)))


def gemma() -> Any:
    before = pre_tokenizers.Split(" ", "merged_with_previous")
    return fast(sentencepiece(before, normalizers.Replace(" ", "▁")))


KINDS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: fast(bytes_of(pre_tokenizers.ByteLevel(add_prefix_space=False))),
    "llama3": lambda: fast(
        bytes_of(
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(WORDS), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        )
    ),
    "llama": llama,
    "llama-legacy": lambda: llama(legacy=True),
    "prepended": prepended,
    "phi": prepended,
    "gemma": gemma,
    "unigram": lambda: fast(unigram()),
    "bytes": lambda: ByT5Tokenizer(bos_token="<s>"),
}
MARK = re.compile(r"<[^<>\s'\"{}%]{1,40}>|\[/?[A-Z_]{3,}\]")


def tokenizer(kind: str, template: str) -> Any:
    """A tokenizer of the kind, with the marks that the template writes."""
    made = KINDS[kind]()
    marks = sorted({m for m in MARK.findall(template) if "SYS" not in m} - {"<s>", "</s>", "<unk>"})
    # Phi-3's marks swallow the white space behind them.
    swallow = kind == "phi"
    words = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    made.add_tokens([AddedToken(m, special=m not in words, normalized=False, rstrip=swallow) for m in marks])
    made.chat_template = template
    return made


LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set rules = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set rules = false %}{% endif %}{% for m in rest %}"
    "{% if loop.first and rules %}{% set text = '<<SYS>>\n' + rules + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set text = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + text | trim + ' [/INST]' }}{% else %}{{ ' ' + text | trim + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('only user and assistant') }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first, rest = messages[0].content, messages[1:] %}"
    "{% else %}{% set first, rest = '', messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.last and first %}{{ '[INST] ' + first + '\n\n' + m.content + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL7 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + "
    "'[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}"
    "USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SHAPES = {
    "llama2": LLAMA2, "mistral1": MISTRAL1, "mistral3": MISTRAL3, "mistral7": MISTRAL7, "zephyr": ZEPHYR,
    "vicuna": VICUNA,
}  # fmt: skip


def template(name: str) -> str:
    if name in SHAPES:
        return SHAPES[name]
    spec = importlib.util.find_spec("trl")
    return (Path(not_none(not_none(spec).origin)).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
