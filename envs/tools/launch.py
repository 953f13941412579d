"""Starts a program that sees one folder at another path. Run as a file; it imports nothing of this package.

    python launch.py FOLDER SHOWN CWD PROGRAM [ARGUMENT …]

FOLDER is mounted over SHOWN in a mount namespace of the program's own (and, for users without the right to mount, a
user namespace in which they keep their id). Nothing outside the program sees the mount, and it ends with it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def main(folder: str, shown: str, cwd: str, *command: str) -> None:
    """Replaces this process by the program. Raises OSError where namespaces or mounts are not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    _own_namespace(libc)
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount --make-rprivate /")
    _check(libc.mount(os.fsencode(folder), os.fsencode(shown), None, MS_BIND | MS_REC, None), f"mount on {shown}")
    os.chdir(cwd or os.getcwd())  # the old working directory may lie under the mount
    os.execvp(command[0], command)


def _own_namespace(libc: ctypes.CDLL) -> None:
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS) == 0:
        return
    if ctypes.get_errno() != errno.EPERM:
        _check(-1, "unshare")
    _check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(line)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[4]}: {error}")
