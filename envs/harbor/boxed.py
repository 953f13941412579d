"""Runs one command in namespaces of its own: `python -I -S boxed.py FD NETWORK COMMAND …`, as root on Linux.

buildah's chroot isolation shares processes, devices and network with the machine. Around it, this gives the command a
process tree of its own, a private /proc, a /dev of seven harmless devices and, where NETWORK is 'none', a network of
its own with nothing in it but loopback.

FD is the reading end of a pipe that the parent holds open. When the parent closes it, or dies, the command and all it
started are killed; also when the command itself ends. The exit code is the command's, 128 + n where signal n ended it,
and 125 where the namespaces cannot be made. This file imports nothing of the package, so that it starts fast.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
BIND, PRIVATE, NOSUID, NOEXEC = 0x1000, 0x4000 | 1 << 18, 2, 8
DEATH_SIGNAL = 1
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
SIOCGIFFLAGS, SIOCSIFFLAGS, UP = 0x8913, 0x8914, 1
CANNOT = 125


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    words = [word.encode() for word in (source, target, kind)]
    checked(LIBC.mount(*words, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def own_devices() -> None:
    """A new /dev in place of the machine's."""
    held = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES if os.path.exists(f"/dev/{name}")}
    mount("tmpfs", "/dev", "tmpfs", NOSUID | NOEXEC, "mode=755")
    for name, fd in held.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        mount(f"/proc/self/fd/{fd}", f"/dev/{name}", "", BIND)
        os.close(fd)
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    mount("devpts", "/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    mount("tmpfs", "/dev/shm", "tmpfs", NOSUID | NOEXEC, "mode=1777")
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")


def loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | UP))


def inside(network: bool, command: list[str]) -> int:
    """The first process of the new tree: prepares what it sees, then becomes the command."""
    LIBC.prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    try:
        mount("proc", "/proc", "proc", NOSUID | NOEXEC)
        own_devices()
        if not network:
            loopback()
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)
    return CANNOT


def run(line: int, network: bool, command: list[str]) -> int:
    try:
        flags = NEWNS | NEWUTS | NEWIPC | NEWPID | (0 if network else NEWNET)
        checked(LIBC.unshare(flags), "namespaces")
        mount("none", "/", "", PRIVATE)
    except OSError as error:
        print(f"cannot fence the command in: {error}", file=sys.stderr, flush=True)
        return CANNOT
    pid = os.fork()
    if pid == 0:
        os.close(line)
        os._exit(inside(network, command))
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([line, ended], [], [])
    if ended not in ready:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the first process of the tree: the kernel kills all others with it
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2] != "none", sys.argv[3:]))
