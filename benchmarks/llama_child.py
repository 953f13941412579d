"""llama.cpp's server in a process and an environment of its own, for `treewright bench real --only servers`.

    python llama_child.py FILE.gguf FLOAT32 THREADS

FLOAT32 is where the file's weights are written unpacked, and served from; "" serves the file as it is. One line of JSON
says the address; the server ends when the input does. Nothing of treewright is imported here.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

__all__ = ["unpacked"]

OWN = ("general.architecture", "general.file_type", "general.quantization_version")


def unpacked(file: str, out: str) -> str:
    """Writes the same model in float32."""
    import numpy as np

    gguf: Any = import_module("gguf")
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(out, reader.fields[OWN[0]].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in OWN:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(plain, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def main(file: str, plain: str, threads: int) -> None:
    said = os.fdopen(os.dup(1), "w")  # what the engine prints goes beside it
    os.dup2(2, 1)
    xllamacpp: Any = import_module("xllamacpp")
    given = xllamacpp.CommonParams()
    given.model.path = unpacked(file, plain) if plain else file
    given.n_ctx, given.n_parallel, given.kv_unified, given.n_gpu_layers = 8192, 2, True, 0
    given.fit_params, given.warmup, given.hostnames, given.port = False, False, ["127.0.0.1"], 0
    if plain:  # else half precision, and log-probs that differ by .003 however exact all numbers are
        given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(given)
    print(json.dumps({"address": server.listening_address}), file=said, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    os._exit(0)  # the engine leaves threads that nothing ends
