"""Files and folders that are there whole or not at all, however the process that writes them ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_folder", "write_whole"]


def write_whole(path: str | Path, text: str) -> Path:
    """Writes a text file, UTF-8, beside its place and moves it there; its folder is made. Raises OSError.

    A link, a pipe or a device, such as /dev/stdout, is written as it is.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or (target.exists() and not target.is_file()):
        target.write_text(text, "utf-8", newline="\n")
        return target
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(text, "utf-8", newline="\n")
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(target)) from error
    return target


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside the final one to write to. It takes its place when the block has ended without an error.

    What is in its place by then goes. What killed processes left beside it is removed; a lock tells it from what
    others write now. A folder that is a place of its own, such as a mounted disk, cannot be replaced: empty, it is
    written in its place. Raises OSError.
    """
    final = Path(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir() and (final.is_symlink() or os.path.ismount(final)):
        yield final
        return
    _sweep(final)
    part = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
    lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        part.chmod(0o777 & ~_umask())
        yield part
        before = part.with_suffix(".before")
        if final.exists():
            os.replace(final, before)
        os.replace(part, final)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        os.close(lock)
        shutil.rmtree(part, ignore_errors=True)


def _sweep(final: Path) -> None:
    """Removes what processes that are gone have left beside a folder."""
    for part in final.parent.glob(f".{final.name}.*.part"):
        lock = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now
