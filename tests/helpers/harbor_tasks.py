"""Small Harbor task folders, whose images hold nothing but Debian's static busybox."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
DOCKERFILE = """FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
WORKDIR /app
RUN echo 3 > /app/number
"""
TOML = 'schema_version = "1.4"\n[environment]\nnetwork_mode = "no-network"\n'
GRADED = (
    '#!/bin/sh\nif [ "$(cat /app/out.txt)" = {wanted} ]; then r=1; else r=0; fi\necho $r > /logs/verifier/reward.txt\n'
)


def write_task(
    folder: Path,
    *,
    toml: str = TOML,
    goal: str = "write hello to out.txt",
    tests: str = GRADED.format(wanted="hello"),
    solution: str = "#!/bin/sh\necho hello > out.txt\n",
    dockerfile: str = DOCKERFILE,
) -> Path:
    """A whole task; its environment holds a link to the machine's busybox, copied where that is a file."""
    for name in ("environment", "tests", "solution"):
        (folder / name).mkdir(parents=True)
    (folder / "task.toml").write_text(toml)
    (folder / "instruction.md").write_text(f"<!-- canary 123 -->\n\n{goal}\n")
    (folder / "environment" / "Dockerfile").write_text(dockerfile)
    if BUSYBOX.is_file():
        shutil.copy(BUSYBOX, folder / "environment" / "busybox")
    (folder / "tests" / "test.sh").write_text(tests)
    (folder / "solution" / "solve.sh").write_text(solution)
    return folder


def without_buildah() -> str:
    """Why tasks cannot be run by buildah here, or nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "buildah's chroot isolation is for root on Linux"
    if shutil.which("buildah") is None:
        return "buildah is not installed (apt-get install buildah)"
    return "" if BUSYBOX.is_file() else "there is no static /bin/busybox (apt-get install busybox-static)"
