"""Container engines by their command lines: docker, podman, and buildah with chroot isolation.

One container is one state of a task's files. Commands are run in it one by one, each a call of its own.

    docker, podman   a container that sleeps; `exec`. What a command leaves running in the background stays
    buildah          needs no daemon, no cgroups, no network: root on Linux alone. Each command runs in namespaces of
                     its own (boxed.py), so what it leaves running ends with it. CPU and memory are not limited
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from treewright.envs.errors import EnvFault, TreewrightError
from treewright.envs.harbor.called import Called, call
from treewright.envs.harbor.task import HarborTask
from treewright.envs.types import digest

__all__ = ["ENGINES", "Buildah", "Daemon", "Engine", "Where", "choose_engine", "content_of"]

OPERATION = 120.0  # seconds for anything of the engine itself but building and pulling
INSTALL = "install docker or podman, or, as root on Linux, buildah (apt-get install buildah)"
LABEL = "treewright.harbor"
# buildah 1.28 takes the values of variables from its arguments alone, which `ps` shows: they come by stdin instead. It
# ends with its command and now and then loses the last that it printed: so the command ends a bit later.
ENTER = (
    'set_by=; while IFS= read -r line; do set_by="$set_by$line\n"; done; eval "$set_by"; unset set_by line;'
    ' "$@" </dev/null; code=$?; sleep 0.1 >/dev/null 2>&1; exit $code'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """How a command is run in a container: as whom, in which folder, with which further variables; None: the image's.
    network  may it reach the network?"""

    user: str | int | None = None
    folder: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    network: bool = False


class Engine(Protocol):
    """What a world needs of an engine. Each method raises EnvFault where the engine fails."""

    name: str

    async def image(self, task: HarborTask) -> str:
        """The task's image, built or pulled where it is not there yet."""

    async def start(self, image: str, task: HarborTask) -> str:
        """A new container of an image; its name."""

    async def execute(
        self,
        container: str,
        words: Sequence[str],
        where: Where,
        deadline: float,
        limit: int,
        until: re.Pattern[bytes] | None,
    ) -> Called:
        """Runs a command in it."""

    async def copy(self, folder: Path, container: str, target: str) -> None:
        """What is in a folder of ours, into one of the container that is there."""

    async def interrupt(self, container: str) -> None:
        """Ends what still runs in it; its files stay."""

    async def commit(self, container: str) -> str:
        """Its files as a new image."""

    async def remove(self, container: str) -> None: ...

    async def remove_image(self, image: str) -> None: ...

    async def sweep(self) -> None:
        """Removes the containers that killed processes of this machine left behind."""


# -- names ----------------------------------------------------------------------------------------------------------


def _here() -> str:
    """Names this machine and its process numbers: only containers of a process that could be seen here are swept."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return digest(socket.gethostname(), space)[:8]


def fresh_name() -> str:
    return f"treewright-{_here()}-{os.getpid()}-{secrets.token_hex(6)}"


def abandoned(name: str) -> bool:
    """Was it made by a process of this machine that is no more?"""
    found = re.fullmatch(rf"treewright-{_here()}-(\d+)-[0-9a-f]+", name)
    if found is None:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def content_of(folder: Path) -> str:
    """A digest of everything in a folder: names, kinds, modes, contents."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        name = path.relative_to(folder).as_posix().encode()
        mode = f"{stat.S_IFMT(about.st_mode)} {about.st_mode & 0o111}".encode()
        for part in (name, mode, content):
            total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:24]


def built_name(task: HarborTask) -> str:
    """The same for the same environment folder, so that it is built once."""
    return f"localhost/treewright-harbor:{content_of(task.folder / 'environment')}"


def held(done: Called, what: str) -> Called:
    """The call itself. Raises EnvFault unless it ended well."""
    if done.code != 0:
        how = "did not end in time" if done.late else f"failed with {done.code}"
        raise EnvFault(f"{what} {how}: {done.why}")
    return done


# -- docker and podman ----------------------------------------------------------------------------------------------


class _Line:
    """What docker, podman and buildah are asked in the same words."""

    async def _do(self, what: str, *words: str, deadline: float = OPERATION) -> Called:
        raise NotImplementedError

    async def commit(self, container: str) -> str:
        name = f"localhost/{fresh_name()}"
        await self._do("a snapshot", "commit", container, name)
        return name

    async def remove_image(self, image: str) -> None:
        await self._do("removing a snapshot", "rmi", "-f", image)


class Daemon(_Line):
    """docker or podman."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def _do(self, what: str, *words: str, deadline: float = OPERATION) -> Called:
        return held(await call([self.name, *words], deadline=deadline), f"{self.name}: {what}")

    async def image(self, task: HarborTask) -> str:
        env = task.file.environment
        name = env.docker_image or built_name(task)
        there = await call([self.name, "image", "inspect", name], deadline=OPERATION)
        if there.code == 0:
            return name
        if task.builds:
            words = ["build", "-t", name, str(task.folder / "environment")]
            await self._do(f"the image of {task.id}", *words, deadline=env.build_timeout_sec)
        else:
            await self._do(f"the image of {task.id}", "pull", name, deadline=env.build_timeout_sec)
        return name

    async def start(self, image: str, task: HarborTask) -> str:
        env, name = task.file.environment, fresh_name()
        words = ["run", "-d", "--name", name, "--label", LABEL]
        words += [] if task.network else ["--network", "none"]
        words += ["--cpus", f"{env.cpus:g}"] if env.cpus else []
        words += ["--memory", f"{env.memory_mb}m"] if env.memory_mb else []
        await self._do(f"a container of {task.id}", *words, image, "sh", "-c", "sleep infinity")
        return name

    async def execute(
        self,
        container: str,
        words: Sequence[str],
        where: Where,
        deadline: float,
        limit: int,
        until: re.Pattern[bytes] | None,
    ) -> Called:
        user = [] if where.user is None else ["-u", str(where.user)]
        folder = [] if where.folder is None else ["-w", where.folder]
        named = [word for key in where.env for word in ("-e", key)]  # values by our environment: `ps` shows arguments
        line = [self.name, "exec", *user, *folder, *named, container, *words]
        return await call(line, deadline=deadline, limit=limit, until=until, environment=where.env)

    async def copy(self, folder: Path, container: str, target: str) -> None:
        await self._do("copying files", "cp", f"{folder}/.", f"{container}:{target}")

    async def interrupt(self, container: str) -> None:
        await self._do("ending what runs", "restart", "-t", "0", container)

    async def remove(self, container: str) -> None:
        await self._do("removing a container", "rm", "-f", container)

    async def sweep(self) -> None:
        seen = await self._do("listing", "ps", "-a", "--filter", f"label={LABEL}", "--format", "{{.Names}}")
        for name in seen.out.text().split():
            if abandoned(name):
                await self.remove(name)


# -- buildah --------------------------------------------------------------------------------------------------------


class Buildah(_Line):
    """buildah. storage  its storage driver, None for the machine's own"""

    name = "buildah"

    def __init__(self, storage: str | None = None) -> None:
        self.line = ["buildah", *(["--storage-driver", storage] if storage else [])]
        self._with_entry: dict[str, bool] = {}

    async def _do(self, what: str, *words: str, deadline: float = OPERATION, boxed: str | None = None) -> Called:
        return held(await call([*self.line, *words], deadline=deadline, boxed=boxed), f"buildah: {what}")

    async def image(self, task: HarborTask) -> str:
        env = task.file.environment
        name = env.docker_image or built_name(task)
        entry = ["inspect", "--type", "image", "--format", "{{.OCIv1.Config.Entrypoint}}", name]
        there = await call([*self.line, *entry], deadline=OPERATION)
        if there.code != 0:
            if task.builds:
                words = ["bud", "--isolation=chroot", "--layers", "-t", name, str(task.folder / "environment")]
            else:
                words = ["pull", name]
            await self._do(f"the image of {task.id}", *words, deadline=env.build_timeout_sec, boxed="host")
            there = await self._do("looking at an image", *entry)
        if there.out.text().strip() not in ("[]", "<no value>", ""):
            raise TreewrightError(
                f"{task.id}: its image has an ENTRYPOINT, which buildah does not run; use ?engine=docker or podman"
            )
        return name

    async def start(self, image: str, task: HarborTask) -> str:
        name = fresh_name()
        await self._do(f"a container of {task.id}", "from", "--pull-never", "--name", name, image)
        return name

    async def execute(
        self,
        container: str,
        words: Sequence[str],
        where: Where,
        deadline: float,
        limit: int,
        until: re.Pattern[bytes] | None,
    ) -> Called:
        line = [*self.line, "run", "--isolation=chroot", "--cap-drop", "CAP_SYS_CHROOT"]
        line += [] if where.user is None else ["--user", str(where.user)]
        line += [] if where.folder is None else ["--workingdir", where.folder]
        if odd := [key for key in where.env if not re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII)]:
            raise TreewrightError(
                f"{odd[0]!r} is no name that a shell takes for a variable; use ?engine=docker or podman"
            )
        exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in where.env.items())
        return await call(
            [*line, container, "--", "sh", "-c", ENTER, "sh", *words], deadline=deadline, limit=limit, until=until,
            boxed="host" if where.network else "none", stdin=exports.encode(),
        )  # fmt: skip

    async def copy(self, folder: Path, container: str, target: str) -> None:
        await self._do("copying files", "copy", container, str(folder), target)

    async def interrupt(self, container: str) -> None:
        return None  # everything ended with the command that started it

    async def remove(self, container: str) -> None:
        await self._do("removing a container", "rm", container)

    async def sweep(self) -> None:
        seen = await self._do("listing", "containers", "--noheading", "--format", "{{.ContainerName}}")
        for name in seen.out.text().split():
            if abandoned(name):
                await self.remove(name)


# -- choosing -------------------------------------------------------------------------------------------------------

ENGINES = ("docker", "podman", "buildah")


def choose_engine(wanted: str | None = None, storage: str | None = None) -> Engine:
    """The engine of that name, or the first of docker, podman and buildah that can be used here.

    Raises TreewrightError saying why none can, and what to install.
    """
    if wanted is not None and wanted not in ENGINES:
        raise TreewrightError(f"there is no engine {wanted!r}; write one of {', '.join(ENGINES)}")
    why = []
    for name in ENGINES if wanted is None else (wanted,):
        trouble = _trouble(name)
        if trouble is None:
            return Buildah(storage) if name == "buildah" else Daemon(name)
        why.append(trouble)
    raise TreewrightError(f"no container engine can be used here ({'; '.join(why)}); {INSTALL}")


def _trouble(name: str) -> str | None:
    """Why an engine cannot be used, as far as can be told without starting a container."""
    if shutil.which(name) is None:
        return f"{name} is not installed"
    if name == "buildah":
        if sys.platform != "linux" or os.geteuid() != 0:
            return "buildah is only used by root on Linux"
        return None
    try:
        done = subprocess.run([name, "info"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{name} does not answer: {error}"
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return None if done.returncode == 0 else f"{name}: {said[-1] if said else 'it does not run'}"
