#!/bin/bash
# Harbor (Python 3.12): of a value with two templates, `${A:-x}/${B:-y}`, the second and the text between them are lost
# where A is set; a test.sh that was killed after it wrote a reward of 0 is graded 0; a misspelt field of task.toml is
# passed over, here an agent's timeout. Exits 1 where that has changed.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3.12}" -m venv venv; venv/bin/python -m pip install -q --disable-pip-version-check harbor==0.26.0
mkdir -p task/environment task/tests
echo 'FROM debian:12' > task/environment/Dockerfile
echo 'Write hello to out.txt.' > task/instruction.md
printf '#!/bin/bash\necho 0 > /logs/verifier/reward.txt\npytest /tests\n' > task/tests/test.sh
printf 'schema_version = "1.4"\n[agent]\ntimeout_secs = 60.0\n' > task/task.toml
venv/bin/python -W ignore - <<'P'
import asyncio
import os
import sys
from importlib.metadata import version
from pathlib import Path

from harbor.environments.base import ExecResult
from harbor.models.task.config import TaskOS
from harbor.models.task.task import Task
from harbor.models.trial.paths import TrialPaths
from harbor.utils.env import resolve_env_vars
from harbor.verifier.verifier import Verifier

print("harbor", version("harbor"))
task, trial = Task(Path("task")), TrialPaths(Path("trial").resolve())
trial.mkdir()


class Killed:
    """A container whose test.sh writes its first line and is then killed for its memory: exit code 137."""

    os = TaskOS.LINUX

    def is_path_mounted(self, *paths):
        return True

    async def upload_dir(self, **paths):
        pass

    async def exec(self, command, env=None, user=None):
        if command.startswith("(/tests/test.sh)"):
            trial.reward_text_path.write_text("0\n")
            return ExecResult(stdout="", stderr="", return_code=137)
        return ExecResult(stdout="", stderr="", return_code=0)


os.environ.pop("B", None)
os.environ["A"] = "one"
seen = {
    "${A:-x}/${B:-y} with A=one": resolve_env_vars({"URL": "${A:-x}/${B:-y}"})["URL"],
    "http://${A}/ with A=one": resolve_env_vars({"URL": "http://${A}/"})["URL"],
    "rewards of a test.sh killed with 137": asyncio.run(Verifier(task, trial, Killed()).verify()).rewards,
    "agent.timeout_sec where timeout_secs = 60.0 is written": task.config.agent.timeout_sec,
}
for what, found in seen.items():
    print(f"{what}: {found}")
sys.exit(0 if [*seen.values()] == ["one", "http://${A}/", {"reward": 0.0}, None] else 1)
P
