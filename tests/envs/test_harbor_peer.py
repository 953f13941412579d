"""Task folders as Harbor's own package reads them: the same fields, instructions and templates (make test-harbor)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from harbor_tasks import TOML, write_task

from treewright.envs.harbor.task import read_task, resolved

harbor: Any = pytest.importorskip("harbor.models.task.task", reason="with make test-harbor")

OLD = 'version = "1.0"\n[environment]\nallow_internet = false\nmemory = "1.5G"\nstorage = "512M"\n'
FULL = """schema_version = "1.4"
[task]
name = "treewright/sum"
[metadata]
difficulty = "easy"
[agent]
timeout_sec = 90.0
user = "agent"
[verifier]
timeout_sec = 45.0
user = 0
[verifier.env]
KEY = "${TREEWRIGHT_KEY_OF_TEST:-none}"
[environment]
build_timeout_sec = 300.0
cpus = 2
memory_mb = 1024
workdir = "/app"
network_mode = "no-network"
[environment.env]
MODE = "fast"
[environment.healthcheck]
command = "true"
retries = 5
[solution.env]
WORD = "a"
"""


@pytest.mark.parametrize("toml", ["", TOML, OLD, FULL, '[verifier]\nenvironment_mode = "shared"\n'])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_says_the_same_to_both(tmp_path: Path, toml: str) -> None:
    folder = write_task(tmp_path / "sum", toml=toml, goal="# add\n\nwrite the sum to out.txt")
    ours, theirs = read_task(folder), harbor.Task(folder)
    assert harbor.Task.is_valid_dir(folder)
    assert ours.goal == theirs.instruction.rstrip()
    assert ours.network == (theirs.config.environment.network_mode.value == "public")
    for table in ("agent", "verifier", "environment", "solution"):
        mine, other = getattr(ours.file, table), getattr(theirs.config, table).model_dump(mode="json")
        for name in type(mine).model_fields:
            if name in other and name not in ("network_mode", "allowed_hosts", "healthcheck"):
                assert getattr(mine, name) == other[name], f"{table}.{name}"
    check, known = ours.file.environment.healthcheck, theirs.config.environment.healthcheck
    assert (check is None) == (known is None)
    if check is not None:
        assert check.model_dump() == known.model_dump()


@pytest.mark.parametrize("value", ["${TREEWRIGHT_ONE}", "${TREEWRIGHT_NONE:-two words}", "plain", "http://${HOST}/"])
def test_a_template_gives_the_same_to_both(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    from harbor.utils.env import resolve_env_vars  # type: ignore[import-not-found, unused-ignore]

    monkeypatch.setenv("TREEWRIGHT_ONE", "one")
    monkeypatch.delenv("TREEWRIGHT_NONE", raising=False)
    assert resolved({"A": value}) == resolve_env_vars({"A": value})
    assert "TREEWRIGHT_NONE" not in os.environ
