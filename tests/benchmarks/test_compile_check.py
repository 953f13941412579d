"""The Triton kernels compile for GPUs that are not there, within their budgets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from treewright.benchmarks.compile_check import BUDGETS, SHARED_LIMIT, compare, variants


def test_kernels_for_common_head_sizes_keep_their_budgets() -> None:
    triton = pytest.importorskip("triton", reason="Triton is not installed, so nothing can be compiled")
    version = ".".join(triton.__version__.split(".")[:2])
    if version not in json.loads(BUDGETS.read_text()):
        pytest.skip(
            f"no budgets for Triton {version}; python -m treewright.benchmarks.compile_check --update makes them"
        )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "treewright.benchmarks.compile_check", "--quick"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_committed_budgets_cover_every_kernel_and_fit_the_hardware() -> None:
    for table in json.loads(BUDGETS.read_text()).values():
        assert len(table) == len(variants())
        for label, budget in table.items():
            assert budget["shared"] <= SHARED_LIMIT[90 if "sm_90" in label else 80], label
            if label.endswith(("D=64", "D=128")):
                assert budget["spilled"] <= 256, label


def test_a_kernel_above_its_budget_is_named_with_both_numbers() -> None:
    budget = {"registers": 200, "spilled": 0, "shared": 1000}
    assert compare(budget, budget, 90) == []
    grown = {"registers": 201, "spilled": 8, "shared": 240_000}
    wrong = compare(grown, budget | {"shared": 250_000}, 90)
    assert wrong == ["registers 201 > 200", "spilled 8 > 0", "shared memory 240000 > 232448, the limit of sm_90"]
