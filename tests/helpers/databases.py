"""Databases to test stores on: a file, or a throw-away PostgreSQL cluster run from the system's binaries.

As a script it runs a command beside such a cluster: `python databases.py treewright bench store`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from not_none import not_none
from sqlalchemy import create_engine

NAMES = count()


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("postgres")
    return Path(there).resolve().parent if there else None


def missing() -> str | None:
    """Why there can be no PostgreSQL here, or None."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'psycopg[binary]'"
    return None if binaries() else "PostgreSQL's programs are not installed: apt-get install postgresql"


def _account() -> pwd.struct_passwd | None:
    """Somebody other than root, as whom PostgreSQL runs; None if this is somebody already."""
    if os.getuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root and there is neither a user postgres nor nobody")


class Cluster:
    """A server on a unix socket in a folder of its own, which can go away and come back. Called, it makes the URL of
    an empty schema."""

    def __init__(self, home: Path, words: Sequence[object]) -> None:
        self.home, self._words = home, [*map(str, words)]
        self._admin = f"postgresql+psycopg://tester@/postgres?host={home}"
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.home / "log").open("ab") as log:
            self._server = subprocess.Popen(self._words, stdout=log, stderr=log, cwd=self.home)
        _wait(self._admin, self._server, self.home / "log")

    def stop(self) -> None:
        """At once, as by a crash: what was committed is recovered by the next start."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(30)
            self._server = None

    def __call__(self) -> str:
        name = f"t{next(NAMES)}"
        execute(self._admin, f"CREATE SCHEMA {name}")  # a schema costs a tenth of the files of a database
        return f"postgresql://tester@/postgres?host={self.home}&options=-csearch_path%3D{name}"


@contextmanager
def cluster(fsync: str = "off") -> Iterator[Cluster]:
    """A running server."""
    home, who = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), _account()
    prefix = ["setpriv", "--pdeathsig", "QUIT"]
    if who is not None:
        os.chown(home, who.pw_uid, who.pw_gid)
        prefix += ["--reuid", str(who.pw_uid), "--regid", str(who.pw_gid), "--clear-groups"]
    bin_, data = not_none(binaries()), home / "data"
    init = [*prefix, bin_ / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
    server: Cluster | None = None
    try:
        subprocess.run(list(map(str, init)), check=True, capture_output=True, cwd=home)
        flags = {"fsync": fsync, "listen_addresses": "", "unix_socket_directories": home, "max_connections": "100"}
        options = [x for name, value in flags.items() for x in ("-c", f"{name}={value}")]
        server = Cluster(home, [*prefix, bin_ / "postgres", "-D", data, *options])
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(home, ignore_errors=True)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> Any:
    for _ in range(600):
        try:
            return execute(url, "SELECT 1")
        except Exception:
            if server.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended: {log.read_text()}") from None
            time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL did not answer within 30 s: {log.read_text()}")


def execute(url: Any, *statements: str) -> Any:
    """Runs SQL past the store; returns the rows of the last statement, if it has any."""
    text = str(url)
    text = text.replace("postgresql://", "postgresql+psycopg://") if "://" in text else f"sqlite:///{text}"
    engine = create_engine(text, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
            return result.fetchall() if result.returns_rows else []
    finally:
        engine.dispose()


if __name__ == "__main__":
    if (why := missing()) is not None:
        sys.exit(why)
    with cluster(fsync="on") as new_url:
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | {"TREEWRIGHT_BENCH_POSTGRES": new_url()}).returncode)
