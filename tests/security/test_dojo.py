"""AgentDojo's attacks on a policy that obeys them: without the rules they succeed, with them they do not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("agentdojo", reason="agentdojo is not installed")

from .dojo import MEMORY, Case, play

CASES = [Case("banking", "user_task_0", "injection_task_0", "important_instructions"),
         Case("slack", "user_task_1", "injection_task_1", "direct")]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.suite)
async def test_an_obeyed_injection_does_its_harm_without_the_rules_and_none_with_them(
    case: Case, tmp_path: Path
) -> None:
    folder = Path(MEMORY) if MEMORY else tmp_path
    with tempfile.TemporaryDirectory(dir=folder) as name:
        free = await play(case, guarded=False, folder=Path(name))
        held = await play(case, guarded=True, folder=Path(name))
    assert free.met and free.attacked and held.met and not held.attacked
