"""llama.cpp or vLLM in a process and an environment of its own, for `treewright bench pair --only generate`.

    python peer_child.py llama|vllm FOLDER THREADS LONGEST

FOLDER holds a model of Llama's shape as transformers saves it, in float32. Each line of JSON that comes in, {"ids",
"draws", "tokens", "greedy"}, is answered by one: {"seconds" of wall clock, "drawn": token ids of each draw}. Nothing of
treewright is imported here: these packages need other versions of what it uses.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["ENGINES"]

Drawn = list[list[int]]
Draw = Callable[[list[int], int, int, bool], Drawn]
HALF, TOKENS = 2, "<{}>"


def vllm(folder: Path, threads: int, longest: int) -> Draw:
    """vLLM's CPU build in this process, prefixes kept; compiled, which takes a minute or two, where
    TREEWRIGHT_BENCH_VLLM_COMPILED is set."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=longest, enable_prefix_caching=True,
        enforce_eager=not os.environ.get("TREEWRIGHT_BENCH_VLLM_COMPILED"), max_num_seqs=16, seed=0,
    )  # fmt: skip

    def draw(ids: list[int], draws: int, tokens: int, greedy: bool) -> Drawn:
        how = SamplingParams(
            n=draws, temperature=0.0 if greedy else 1.0, max_tokens=tokens, min_tokens=0, ignore_eos=True,
            detokenize=False,
        )  # fmt: skip
        (done,) = engine.generate([{"prompt_token_ids": ids}], how, use_tqdm=False)
        return [list(one.token_ids) for one in done.outputs]

    return draw


def llama(folder: Path, threads: int, longest: int) -> Draw:
    """llama.cpp's own server without its socket, eight slots that share a prompt, weights in float32."""
    xllamacpp: Any = import_module("xllamacpp")
    given = xllamacpp.CommonParams()
    given.model.path = str(converted(folder))
    given.n_ctx, given.n_parallel, given.kv_unified = 2 * longest, 8, True
    given.n_batch = given.n_ubatch = 512
    given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # else half precision
    given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # log-probs off by .003
    given.n_gpu_layers, given.fit_params, given.warmup = 0, False, False
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(given)

    def draw(ids: list[int], draws: int, tokens: int, greedy: bool) -> Drawn:
        asked = {
            "prompt": ids, "n": draws, "max_tokens": tokens, "ignore_eos": True, "cache_prompt": True,
            "temperature": 0.0 if greedy else 1.0, "samplers": ["temperature"], "top_k": 0, "top_p": 1.0, "min_p": 0.0,
            "return_tokens": True,
        }  # fmt: skip
        done = server.handle_completions(asked)
        if "choices" not in done:
            raise RuntimeError(f"llama.cpp says {done}")
        return [_ids(one) for one in done["choices"]]

    return draw


def _ids(choice: dict[str, Any]) -> list[int]:
    """A token's text is its number."""
    return [int(number) for number in choice["text"].replace("<", " ").replace(">", " ").split()]


def converted(folder: Path) -> Path:
    """The model as GGUF in float32: llama.cpp's names, and rows of queries and keys as it turns them."""
    import numpy as np
    from safetensors.numpy import load_file

    gguf: Any = import_module("gguf")
    said = json.loads((folder / "config.json").read_text())
    heads, keys = said["num_attention_heads"], said["num_key_value_heads"]
    theta = said.get("rope_theta") or (said.get("rope_parameters") or {}).get("rope_theta", 10_000.0)
    out = gguf.GGUFWriter(str(folder / "model.gguf"), "llama")
    out.add_context_length(said["max_position_embeddings"])
    out.add_embedding_length(said["hidden_size"])
    out.add_block_count(said["num_hidden_layers"])
    out.add_feed_forward_length(said["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(keys)
    out.add_rope_dimension_count(said["hidden_size"] // heads)
    out.add_rope_freq_base(float(theta))
    out.add_layer_norm_rms_eps(said["rms_norm_eps"])
    out.add_vocab_size(said["vocab_size"])
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list([TOKENS.format(i) for i in range(said["vocab_size"])])
    out.add_token_types([gguf.TokenType.NORMAL] * said["vocab_size"])
    out.add_token_merges(["< 0"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    out.add_add_bos_token(False)

    def turned(weight: Any, count: int) -> Any:
        rows = weight.reshape(count, HALF, weight.shape[0] // count // HALF, *weight.shape[1:])
        return rows.swapaxes(1, 2).reshape(weight.shape)

    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}  # fmt: skip
    for name, weight in load_file(folder / "model.safetensors").items():
        if name in whole:
            out.add_tensor(whole[name], np.ascontiguousarray(weight))
            continue
        _, _, layer, part = name.split(".", 3)
        part = part.removesuffix(".weight")
        if part.endswith(("q_proj", "k_proj")):
            weight = turned(weight, heads if part.endswith("q_proj") else keys)
        out.add_tensor(f"blk.{layer}.{names[part]}.weight", np.ascontiguousarray(weight))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return folder / "model.gguf"


ENGINES: dict[str, Callable[[Path, int, int], Draw]] = {"llama": llama, "vllm": vllm}


def main(words: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")  # what the engines print goes beside it
    os.dup2(2, 1)
    draw = ENGINES[words[0]](Path(words[1]), int(words[2]), int(words[3]))
    print(json.dumps({"ready": words[0]}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        drawn = draw(asked["ids"], asked["draws"], asked["tokens"], asked["greedy"])
        print(json.dumps({"seconds": time.perf_counter() - began, "drawn": drawn}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # engines leave threads that nothing ends
