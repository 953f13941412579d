"""A small model opened without transformers has the tokens, names and log-probs of the same model opened with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.light import LightModel, LightTokenizer, is_light
from treewright.agent.policies.policy import SEEDLING
from treewright.envs.errors import TreewrightError
from treewright.search.types import Context
from treewright.training.versions import weights_version

TEXTS = ["kg who signed <|obs|> the letter", "naïve 日本 \u202e", "", "<|end|><|act|>search a", "  two  spaces\n\ttab"]


def test_the_light_tokenizer_gives_the_same_ids_and_texts() -> None:
    light, whole = LightTokenizer(SEEDLING), AutoTokenizer.from_pretrained(SEEDLING)
    for text in TEXTS:
        assert light.encode(text) == whole.encode(text)
        ids = whole.encode(text, add_special_tokens=False)
        assert light.encode(text, add_special_tokens=False) == ids
        assert light.decode(ids) == whole.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert (light.eos_token, light.eos_token_id) == (whole.eos_token, whole.eos_token_id)
    assert sorted(light.all_special_ids) == sorted(whole.all_special_ids)
    assert {i: str(t) for i, t in light.added_tokens_decoder.items()} == {
        i: str(t) for i, t in whole.added_tokens_decoder.items()
    }
    assert len(light) == len(whole) and light.padding_side == whole.padding_side


@pytest.mark.parametrize("kind", ["seedling", "llama", "qwen2"])
def test_weights_have_the_same_names_and_version(kind: str, tmp_path: Path) -> None:
    folder = SEEDLING if kind == "seedling" else _tiny(kind, tmp_path)
    assert is_light(folder)
    light, whole = LightModel.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert weights_version(light) == weights_version(whole)
    assert light.num_parameters() == whole.num_parameters()
    positions = torch.arange(600)[None]
    for a, b in zip(
        light.model.rotary_emb(whole.lm_head.weight[:1], positions),
        whole.model.rotary_emb(whole.lm_head.weight[:1], positions),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["seedling", "llama", "qwen2"])
async def test_draws_are_the_same_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    folder = SEEDLING if kind == "seedling" else _tiny(kind, tmp_path)
    light = HFPolicy.load(str(folder))
    whole = HFPolicy(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    context = Context(keep=0, delta=(), ids=(0, 50, 60, 70, 2))
    drawn = [await policy.draw(context, range(6), 12) for policy in (light, whole)]
    assert drawn[0] == drawn[1] and light.version == whole.version
    assert isinstance(light._model, LightModel)  # nothing asked for the transformers model
    await light.close()
    await whole.close()


async def test_the_transformers_model_is_there_when_it_is_asked_for() -> None:
    policy = HFPolicy.load(str(SEEDLING))
    version, context = policy.version, Context(keep=0, delta=(), ids=(0, 50, 60))
    before = await policy.draw(context, [1, 2], 8)
    assert type(policy.model).__name__ == "Qwen3ForCausalLM"
    assert policy.refresh() == version and await policy.draw(context, [1, 2], 8) == before
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(0.5)
    assert policy.refresh() != version and await policy.draw(context, [1, 2], 8) != before
    await policy.close()


def test_new_weights_are_taken_from_a_folder_and_others_are_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(SEEDLING)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    shutil.copytree(SEEDLING, tmp_path / "next", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    model.save_pretrained(tmp_path / "next")
    policy = HFPolicy.load(str(SEEDLING))
    assert policy.load_weights(tmp_path / "next") == weights_version(model)
    with pytest.raises(TreewrightError, match="do not fit"):
        policy.load_weights(_tiny("llama", tmp_path))
    assert policy.version == weights_version(model)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}),
        ("config.json", {"hidden_act": "gelu"}),
        ("config.json", {"model_type": "gemma2"}),
        ("config.json", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
        ("config.json", {"attention_bias": True}),
        ("config.json", {"dtype": "bfloat16"}),
        ("config.json", {"rms_norm_eps": None}),
        ("tokenizer_config.json", {"add_prefix_space": True}),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
    ],
)
def test_models_of_other_shapes_are_opened_by_transformers(file: str, change: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(SEEDLING, tmp_path / "m", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    said = json.loads((tmp_path / "m" / file).read_text())
    (tmp_path / "m" / file).write_text(json.dumps({**said, **change}))
    assert not is_light(tmp_path / "m")


def test_a_search_with_the_packaged_model_imports_no_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['treewright', 'run', 'kg/3', '--set', 'search.expansions=2']\n"
        "from treewright.agent.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' in sys.modules and not {'transformers', 'scipy', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def _tiny(kind: str, folder: Path) -> Path:
    """A Llama or Qwen2 with the packaged tokenizer, its own output matrix, and biases where Qwen2 has them."""
    shape: dict[str, Any] = dict(
        vocab_size=2048, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, tie_word_embeddings=False, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**shape)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**shape))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder / kind)
    AutoTokenizer.from_pretrained(SEEDLING).save_pretrained(folder / kind)
    said = json.loads((folder / kind / "config.json").read_text())
    for name, value in (("attention_bias", False), ("head_dim", 8)):
        said.setdefault(name, value)
    (folder / kind / "config.json").write_text(json.dumps(said))
    return folder / kind
