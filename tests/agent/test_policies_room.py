"""A policy in this process keeps a bounded number of keys and values, and hands free pages back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from treewright.agent.policies import room
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.room import batch_tokens, token_bytes
from treewright.search.types import Context

from .small import compact, qwen3


def shaped(layers: int, heads: int, kv_heads: int | None, width: int | None, dtype: torch.dtype) -> Any:
    said: dict[str, Any] = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": 64 * heads}
    said |= {} if kv_heads is None else {"num_key_value_heads": kv_heads}
    config = SimpleNamespace(**said, **({} if width is None else {"head_dim": width}))
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config, dtype=dtype)


def test_a_token_takes_what_its_stored_keys_and_values_take() -> None:
    one = HFPolicy(qwen3(), compact(), max_batch_tokens=7)
    stretch, _ = one.runner.prefill(range(4, 24), ())
    assert stretch.nbytes == 20 * token_bytes(one.model) and one.max_batch_tokens == 7


def test_a_batch_on_a_cpu_is_half_a_gigabyte_and_no_batch_is_more_than_65536_tokens() -> None:
    smollm = shaped(30, 9, 3, 64, torch.float32)
    assert token_bytes(smollm) == 46_080
    assert batch_tokens(smollm, on_cpu=True) == 11_650 and batch_tokens(smollm, on_cpu=False) == 65_536
    assert token_bytes(shaped(2, 4, None, None, torch.bfloat16)) == 2 * 2 * 4 * 64 * 2
    assert batch_tokens(shaped(2, 1, 1, 16, torch.float32), on_cpu=True) == 65_536
    silent = SimpleNamespace(config=SimpleNamespace(), dtype=torch.float32)
    silent.config.get_text_config = lambda: silent.config
    assert token_bytes(silent) == 0 and batch_tokens(silent, on_cpu=True) == 65_536


@pytest.mark.parametrize("many, given", [(0, 1), (1 << 40, 0)])
async def test_pages_go_back_after_a_batch_that_was_large(
    many: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    monkeypatch.setattr(room, "give_back", lambda: calls.append("back"))
    monkeypatch.setattr(room, "MANY", many)
    one, ids = HFPolicy(qwen3(), compact()), tuple(range(4, 24))
    await asyncio.wait_for(one.draw(Context(keep=0, delta=ids, ids=ids), [1, 2], 3), 60)
    await one.close()
    assert len(calls) == given
