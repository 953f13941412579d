"""A folder as bytes: what a tool server keeps its state in, copied out and put back."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from treewright.envs.errors import RestoreUnsupported
from treewright.envs.types import digest

__all__ = ["clear_folder", "folder_digest", "pack_folder", "unpack_folder"]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def _read(folder: Path) -> list[tuple[str, Path, bytes | None]]:
    """(name, path, content) of everything; no content for a folder. Raises RestoreUnsupported for links and such."""
    out: list[tuple[str, Path, bytes | None]] = []
    for path in _entries(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise RestoreUnsupported(f"the state folder holds {name!r}, which is neither a file nor a folder")
        out.append((name, path, None if path.is_dir() else path.read_bytes()))
    return out


def pack_folder(folder: Path) -> bytes:
    """Every file and sub-folder with its mode and time, and those of the folder itself.

    A JSON line of [path, length, mode, nanoseconds of the last change], length −1 for a folder, then all contents.
    Owners, hard links and extended attributes are not kept. Raises RestoreUnsupported for links, sockets and devices,
    whose state lies elsewhere.
    """
    found = _read(folder)
    index = [(".", -1, *_marks(folder))]
    index += [(name, -1 if content is None else len(content), *_marks(path)) for name, path, content in found]
    return b"".join([json.dumps(index).encode(), b"\n", *(content for _, _, content in found if content is not None)])


def _marks(path: Path) -> tuple[int, int]:
    about = path.stat()
    return stat.S_IMODE(about.st_mode), about.st_mtime_ns


def clear_folder(folder: Path) -> None:
    """Empties the folder, which is made if it is missing; what is read-only goes too."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(folder.stat().st_mode | stat.S_IRWXU)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            clear_folder(path)
            path.rmdir()
        else:
            path.unlink()


def unpack_folder(packed: bytes, folder: Path) -> None:
    """Makes the folder hold exactly what `pack_folder` saw: names, contents, modes and times."""
    clear_folder(folder)
    line, _, rest = packed.partition(b"\n")
    index, offset = json.loads(line), 0
    for name, length, *_ in index:
        if length >= 0:
            (folder / name).write_bytes(rest[offset : offset + length])
            offset += length
        elif name != ".":
            (folder / name).mkdir()
    # Contents change the time of their folder, and a read-only folder takes none: the innermost are marked first.
    for name, _, mode, changed in reversed(index):
        os.chmod(folder / name, mode)
        os.utime(folder / name, ns=(changed, changed))


def folder_digest(folder: Path) -> str:
    """A hash of the folder's names and contents; modes and times are not in it."""
    found = _read(folder)
    index = [(name, -1 if content is None else len(content)) for name, _, content in found]
    return digest(
        b"".join([json.dumps(index).encode(), b"\n", *(content for _, _, content in found if content is not None)])
    )
