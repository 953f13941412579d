"""Compiles every kernel for GPUs that need not be there, and holds it to a budget.

``python -m treewright.benchmarks.compile_check`` compares registers, spilled bytes and shared memory of each kernel
with ``budgets.json`` and exits with 1 where one has grown; ``--update`` writes that file anew. Needs Triton, whose
wheel brings NVIDIA's assembler; run it without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from treewright.kernels.triton_backend import tile_for

__all__ = ["BUDGETS", "SHARED_LIMIT", "compare", "measure", "variants"]

BUDGETS = Path(__file__).with_name("budgets.json")
SHARED_LIMIT = {80: 166_912, 90: 232_448}
"""Bytes of shared memory a block may use; the compiler does not check it."""

PASSES = ("forward", "queries", "columns", "fused")
Variant = tuple[str, int, int]


def variants(widths: tuple[int, ...] = (32, 64, 128, 256)) -> list[Variant]:
    """(pass, compute capability, head size), in bfloat16; capability 90 uses descriptors, 80 pointers.

    float32 is there to check results, not to be fast, and has no budget.
    """
    return [(name, arch, width) for arch in (90, 80) for name in PASSES for width in widths
            if name != "fused" or width <= 128]  # fmt: skip


def measure(variant: Variant) -> dict[str, int]:
    """Registers per thread, spilled bytes and shared memory in bytes of one compiled kernel."""
    import triton
    from triton.backends.compiler import GPUTarget

    arch = variant[1]
    kernel, signature, constants, tile = _source(variant)
    aligned = {(i,): [["tt.divisibility", 16]] for i, (n, t) in enumerate(signature.items()) if _is_aligned(n, t)}
    source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spilled = _assemble(compiled.asm["ptx"])
    return {"registers": registers, "spilled": spilled, "shared": int(compiled.metadata.shared)}


def _source(variant: Variant) -> tuple[Any, dict[str, str], dict[str, Any], Any]:
    import triton.language as tl

    from treewright.kernels import triton_kernels

    name, arch, width = variant
    tma = arch >= 90
    tile = tile_for(name, tma, torch.bfloat16, width)
    kernel = getattr(triton_kernels, f"{'columns' if name == 'fused' else name}_kernel")
    constants: dict[str, Any] = {
        "GROUPS": 4, "D": width, "DV": width, "BLOCK_Q": tile.block_q, "BLOCK_K": tile.block_k, "COMPUTE": tl.bfloat16,
        "PRECISION": "ieee", "WINDOW": False, "CAP": False, "TMA": tma, "ADD": False,
        "FUSED": name == "fused",
    }  # fmt: skip
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    blocks = {"q_in": tile.block_q, "g_in": tile.block_q, "k_in": tile.block_k, "v_in": tile.block_k}
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in blocks:
            signature[argument] = f"tensordesc<bf16[1,{blocks[argument]},{width}]>" if tma else "*bf16"
        else:
            signature[argument] = _plain_type(argument, name == "fused")
    return kernel, signature, constants, tile


def _plain_type(argument: str, fused: bool) -> str:
    if argument == "d_q_out" and fused:
        return "*fp32"
    if argument in ("out", "d_q_out", "d_k_out", "d_v_out"):
        return "*bf16"
    if argument in ("lse", "delta"):
        return "*fp32"
    if argument in ("scale", "softcap"):
        return "fp32"
    if argument in ("depth", "low"):
        return "*i64"
    if argument.startswith("n_") or argument == "q_offset":
        return "i32"
    return "i32" if argument.endswith(("_sh", "_st")) else "*i32"


def _is_aligned(argument: str, kind: str) -> bool:
    """Pointers are; so are strides, which vary with the model and not with the pack."""
    return kind.startswith("*") or argument.endswith(("_sh", "_st"))


def _assemble(ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes (stores and loads) as NVIDIA's assembler reports them."""
    from triton.backends import nvidia

    assembler = Path(nvidia.__file__ or "").parent / "bin" / "ptxas"
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    chip = target[1] if target else "sm_90a"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name={chip}", str(source), "-o", f"{source}.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))
    used = re.search(r"Used (\d+) registers", report)
    return int(used[1]) if used else 0, spills


def compare(found: dict[str, int], budget: dict[str, int], arch: int) -> list[str]:
    """What exceeds the budget or the hardware, in words; an empty list if nothing does."""
    wrong = [f"{key} {found[key]} > {budget[key]}" for key in found if found[key] > budget[key]]
    if found["shared"] > SHARED_LIMIT[arch]:
        wrong.append(f"shared memory {found['shared']} > {SHARED_LIMIT[arch]}, the limit of sm_{arch}")
    return wrong


def _label(variant: Variant) -> str:
    name, arch, width = variant
    return f"{name} sm_{arch} D={width}"


def _run(chosen: list[Variant], update: bool) -> Iterator[str]:
    import triton

    version = ".".join(triton.__version__.split(".")[:2])
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    table = budgets.setdefault(version, {})
    if not table and not update:
        yield f"no budgets for Triton {version}: run with --update and look at what it wrote"
    for variant in chosen:
        found = measure(variant)
        print(f"{_label(variant)}: {found}", flush=True)
        wrong = compare(found, found if update else table.get(_label(variant), found), variant[1])
        if update:
            table[_label(variant)] = found
        if wrong:
            yield f"{_label(variant)}: {'; '.join(wrong)}"
    if update:
        lines = [f' "{v}": {{\n' + ",\n".join(f'  "{k}": {json.dumps(b)}' for k, b in t.items()) + "\n }"
                 for v, t in sorted(budgets.items())]  # fmt: skip
        BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    """The command; 0 if every kernel keeps its budget."""
    parser = argparse.ArgumentParser(prog="python -m treewright.benchmarks.compile_check")
    parser.add_argument("--update", action="store_true", help="write budgets.json anew")
    parser.add_argument("--quick", action="store_true", help="head sizes 64 and 128 only")
    arguments = parser.parse_args()
    chosen = variants((64, 128)) if arguments.quick else variants()
    wrong = list(_run(chosen, arguments.update))
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
