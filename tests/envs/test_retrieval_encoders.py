"""Encoders of sentence-transformers: known by what is in their folder, with the prompts that it names."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treewright.envs import TreewrightError
from treewright.envs.retrieval.corpus import Corpus, Doc
from treewright.envs.retrieval.dense import DenseIndex, encode_queries
from treewright.envs.retrieval.encoders import SentenceEncoder

pytestmark = pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="needs sentence_transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", ":", "passage", "cat", "dog", "bird", "fish", "."]
DOCS = Corpus([Doc("1", "1", "cat dog"), Doc("2", "2", "bird \ud83d fish"), Doc("3", "3", "dog fish")])


def made(folder: Path, prompts: dict[str, Any] | None = None, seed: int = 0, default: str | None = None) -> Path:
    """A tiny BERT with random weights as a folder of sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    base = folder.with_name(folder.name + "-base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(base)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(base)
    whole = SentenceTransformer(modules=[Transformer(str(base)), Pooling(16)], device="cpu")
    whole.save(str(folder))
    config = folder / "config_sentence_transformers.json"
    told = json.loads(config.read_text()) | {"prompts": prompts or {}, "default_prompt_name": default}
    config.write_text(json.dumps(told))
    return folder


def test_vectors_are_kept_by_what_is_in_the_folder_and_not_by_its_name(tmp_path: Path) -> None:
    folder, cache = made(tmp_path / "encoder"), tmp_path / "cache"
    first = DenseIndex(DOCS, SentenceEncoder(str(folder)), cache=cache)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("another text")
    moved = SentenceEncoder(str(tmp_path / "copy"))
    assert moved.name == first.encoder.name and moved.label == str(tmp_path / "copy")
    assert np.array_equal(DenseIndex(DOCS, moved, cache=cache).vectors, first.vectors)
    assert len(list(cache.glob("dense-*.npy"))) == 1, "a copy has the same vectors"
    shutil.rmtree(folder)
    made(folder, seed=1)
    again = DenseIndex(DOCS, SentenceEncoder(str(folder)), cache=cache)
    assert not np.allclose(again.vectors, first.vectors), "other weights under the old name"
    assert len(list(cache.glob("dense-*.npy"))) == 2


def test_other_prompts_are_another_encoder(tmp_path: Path) -> None:
    plain = SentenceEncoder(str(made(tmp_path / "a")))
    prompted = SentenceEncoder(str(made(tmp_path / "b", {"document": "passage: "})))
    assert plain.name != prompted.name
    assert not np.allclose(plain.encode(["cat"]), prompted.encode(["cat"]))


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({"query": "query: ", "document": "passage: "}, None, "query: ", "passage: "),
        ({"query": "query: ", "passage": "passage: "}, None, "query: ", "passage: "),
        ({"query": "query: ", "corpus": "passage: "}, None, "query: ", "passage: "),
        ({"query": "query: "}, None, "query: ", ""),
        ({"both": "passage: "}, "both", "passage: ", "passage: "),
        ({}, None, "", ""),
    ],
)
def test_queries_and_documents_get_the_prompts_of_the_folder(
    tmp_path: Path, prompts: dict[str, str], default: str | None, query: str, document: str
) -> None:
    encoder = SentenceEncoder(str(made(tmp_path / "e", prompts, default=default)))
    bare = SentenceEncoder(str(tmp_path / "e"), prefix="")
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4 * float(np.abs(bare.encode(["cat"])).max())}
    assert np.allclose(encode_queries(encoder, ["cat"]), bare.encode([query + "cat"]), **close)
    assert np.allclose(encoder.encode(["cat"]), bare.encode([document + "cat"]), **close)
    index = DenseIndex(DOCS, encoder)
    expected = bare.encode([document + text for text in ("cat dog", "bird \ufffd fish", "dog fish")])
    ranked = np.argsort(-(expected @ bare.encode([query + "dog"])[0]), kind="stable")
    assert [hit.position for hit in index.rank("dog", 3)] == ranked.tolist()


def test_an_encoder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        TreewrightError, match=f"no encoder '{tmp_path / 'nothing'}': give a folder of one, or 'minilm'"
    ):
        SentenceEncoder(str(tmp_path / "nothing"))
