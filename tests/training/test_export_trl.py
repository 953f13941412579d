"""`datasets` loads every table, and TRL's own trainers take a step on them with a tiny random model."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from export_store import fill
from not_none import not_none

from treewright.envs.errors import TreewrightError
from treewright.search.store import TreeStore
from treewright.training.export import FORMATS, ExportOptions, export_dataset, grown_trees

if TYPE_CHECKING:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when datasets is imported: nothing here needs the network
datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'treewright[data]'")

TABLES = [f for f in FORMATS if f != "atif"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """(file type, style) → folder of one store's dataset."""
    base = tmp_path_factory.mktemp("data")
    made = {}
    with TreeStore.open(base / "trees.sqlite") as store:
        asyncio.run(fill(store))
        for key in (("parquet", "conversational"), ("jsonl", "conversational"), ("jsonl", "text"), ("jsonl", "tokens")):
            made[key] = base / "-".join(key)
            export_dataset(store, made[key], ExportOptions(file_type=key[0], style=key[1]))
    return made


def table(folder: Any, name: str, split: str = "train") -> Any:
    return datasets.load_dataset(str(folder), name, split=split, cache_dir=str(folder.parent / "cache"))


@pytest.mark.parametrize("file_type", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", TABLES)
def test_datasets_loads_every_table_from_the_card_alone(
    folders: dict[tuple[str, str], Any], name: str, file_type: str
) -> None:
    rows = table(folders[file_type, "conversational"], name)
    assert len(rows) > 0 and set(rows["split"]) == {"train"}


@pytest.mark.parametrize("name", TABLES)
def test_json_lines_and_parquet_hold_the_same(folders: dict[tuple[str, str], Any], name: str) -> None:
    one, two = (table(folders[t, "conversational"], name) for t in ("parquet", "jsonl"))
    assert one.features == two.features and one.to_list() == two.to_list()


def test_datasets_loads_atif_documents(folders: dict[tuple[str, str], Any]) -> None:
    files = str(folders["parquet", "conversational"] / "atif" / "*" / "*.json")
    rows = datasets.load_dataset(
        "json", data_files=files, split="train", cache_dir=str(folders["jsonl", "text"]) + "-c"
    )
    assert set(rows["schema_version"]) == {"ATIF-v1.4"}


def test_a_raw_table_that_datasets_wrote_again_is_still_lossless(
    folders: dict[tuple[str, str], Any], tmp_path: Path
) -> None:
    whole = {g.tree.digest() for g in grown_trees(folders["parquet", "conversational"])}
    for split in ("train", "test"):
        table(folders["parquet", "conversational"], "raw", split).to_parquet(str(tmp_path / f"{split}.parquet"))
    assert {g.tree.digest() for g in grown_trees(tmp_path)} == whole and len(whole) == 6


CALLS = {"q1": ("search", {"q": "cats"}), "q2": ("open", {"page": 3})}
TALKS = [
    {
        "id": name,
        "tools": [
            {"type": "function", "function": {"name": "search", "parameters": {
                "type": "object", "properties": {"q": {"type": "string"}}}}},
            {"type": "function", "function": {"name": "open", "parameters": {
                "type": "object", "properties": {"page": {"type": "integer"}}}}},
        ],
        "messages": [
            {"role": "user", "content": f"task {name}"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": call, "arguments": arguments}}]},
            {"role": "tool", "tool_call_id": "c", "content": "three"},
            {"role": "assistant", "content": "done"},
        ],
    }
    for name, (call, arguments) in CALLS.items()
]  # fmt: skip


@pytest.mark.parametrize("way", ["json lines to parquet", "objects to parquet", "objects to json lines"])
def test_conversations_that_datasets_wrote_come_back_with_the_calls_that_were_made(way: str, tmp_path: Path) -> None:
    lines = tmp_path / "talks.jsonl"
    lines.write_text("\n".join(map(json.dumps, TALKS)))
    if way.startswith("json"):
        rows = datasets.load_dataset("json", data_files=str(lines), split="train", cache_dir=str(tmp_path / "cache"))
    else:
        rows = datasets.Dataset.from_list(TALKS)
    out = tmp_path / ("again.parquet" if way.endswith("parquet") else "again.jsonl")
    (rows.to_parquet if way.endswith("parquet") else rows.to_json)(str(out))
    found = {g.tree.task.id: g.tree for g in grown_trees(out)}
    for name, (call, arguments) in CALLS.items():
        assert [(c.name, dict(c.arguments)) for c in not_none(found[name].action[1]).calls] == [(call, arguments)]
        assert not_none(found[name].observation[1]).text == "three"
        assert found[name].task.data["tools"] == next(iter(grown_trees(lines))).tree.task.data["tools"]


def test_texts_that_datasets_read_as_times_are_refused_by_place(tmp_path: Path) -> None:
    dated = [{**talk, "id": f"2024-05-0{i}"} for i, talk in enumerate(TALKS, 1)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, dated)))
    files = str(tmp_path / "t.jsonl")
    rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    rows.to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(TreewrightError, match=r"t\.parquet, line 1: id: a time, not text: `datasets` reads"):
        list(grown_trees(tmp_path / "t.parquet"))


# -- trainers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, *marks])}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.add_special_tokens(marks)
    made = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    made.chat_template = CHAT
    return made


def tiny(tokenizer: Any) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def one_step(
    make_trainer: type[SFTTrainer] | type[DPOTrainer],
    make_config: type[SFTConfig] | type[DPOConfig],
    rows: Any,
    tokenizer: Any,
    folder: Path,
    **given: Any,
) -> Any:
    """The loss of one step, with weights that moved."""
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True,
        "bf16": False, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.1,
    }  # fmt: skip
    model = tiny(tokenizer)
    before = [p.detach().clone() for p in model.parameters()]
    trainer = make_trainer(
        model=model, args=make_config(**settings), train_dataset=rows, processing_class=tokenizer, **given
    )
    loss = trainer.train().training_loss
    assert any(not (a == b).all() for a, b in zip(before, trainer.model.parameters(), strict=True))
    return loss


@pytest.mark.parametrize("style", ["conversational", "text", "tokens"])
def test_trls_sft_trainer_takes_a_step(
    folders: dict[tuple[str, str], Any], style: str, tokenizer: Any, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")

    rows = table(folders["jsonl", style], "sft")
    assert one_step(trl.SFTTrainer, trl.SFTConfig, rows, tokenizer, tmp_path) > 0


def prepared(rows: Any, tokenizer: Any, folder: Path, **settings: Any) -> list[Any]:
    """What TRL makes of the rows before it trains: (input ids, labels) of each."""
    trl = pytest.importorskip("trl")

    config = trl.SFTConfig(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, **settings)
    made = trl.SFTTrainer(model=tiny(tokenizer), args=config, train_dataset=rows, processing_class=tokenizer)
    return [(row["input_ids"], row["labels"]) for row in made.train_dataset]


def test_with_trls_defaults_only_what_was_said_gets_a_loss(
    folders: dict[tuple[str, str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    rows = table(folders["jsonl", "tokens"], "sft")
    for row, (ids, labels) in zip(rows, prepared(rows, tokenizer, tmp_path), strict=True):
        said = [i for i, own in zip(row["input_ids"], row["completion_mask"], strict=True) if own]
        assert ids == row["input_ids"] and [i for i in labels if i != -100] == said and 0 < len(said) < len(ids)


def test_the_length_that_the_export_names_keeps_every_row_in_trl(
    folders: dict[tuple[str, str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    rows = table(folders["jsonl", "tokens"], "sft")
    longest = max(map(len, rows["input_ids"]))
    card = (folders["jsonl", "tokens"] / "README.md").read_text()
    assert f"max_length={longest}" in card
    whole = prepared(rows, tokenizer, tmp_path, max_length=longest)
    assert [ids for ids, _ in whole] == rows["input_ids"]
    assert len(prepared(rows, tokenizer, tmp_path, max_length=2)) < len(rows)  # what the card warns of


@pytest.mark.parametrize("style", ["conversational", "text"])
def test_trls_dpo_trainer_takes_a_step(
    folders: dict[tuple[str, str], Any], style: str, tokenizer: Any, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")

    rows = table(folders["jsonl", style], "dpo")
    loss = one_step(trl.DPOTrainer, trl.DPOConfig, rows, tokenizer, tmp_path, ref_model=tiny(tokenizer))
    assert loss == pytest.approx(0.6931, abs=1e-3)  # ln 2: policy and reference start out equal


def test_trls_prm_trainer_takes_a_step(folders: dict[tuple[str, str], Any], tokenizer: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")

    home = trl if hasattr(trl, "PRMTrainer") else None
    if home is None:
        try:
            home = importlib.import_module("trl.experimental.prm")
        except ImportError:
            pytest.skip(f"TRL {trl.__version__} has no PRM trainer; the loaded columns are tested above")
    rows = table(folders["jsonl", "text"], "prm").select_columns(["prompt", "completions", "labels"])
    assert one_step(home.PRMTrainer, home.PRMConfig, rows, tokenizer, tmp_path) > 0
