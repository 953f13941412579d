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
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from sqlalchemy import create_engine

NAMES = count()


def binaries():
    """The folder of PostgreSQL's programs, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("postgres")
    return Path(there).resolve().parent if there else None


def missing():
    """Why there can be no PostgreSQL here, or None."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'psycopg[binary]'"
    return None if binaries() else "PostgreSQL's programs are not installed: apt-get install postgresql"


def _account():
    """Somebody other than root, as whom PostgreSQL runs; None if this is somebody already."""
    if os.getuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root and there is neither a user postgres nor nobody")


@contextmanager
def cluster(fsync="off"):
    """A running server on a unix socket in a folder of its own; gives a function that makes URLs of empty schemas."""
    home, who = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), _account()
    prefix = ["setpriv", "--pdeathsig", "QUIT"]
    if who is not None:
        os.chown(home, who.pw_uid, who.pw_gid)
        prefix += ["--reuid", str(who.pw_uid), "--regid", str(who.pw_gid), "--clear-groups"]
    bin_, data = binaries(), home / "data"
    init = [*prefix, bin_ / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
    server = None
    try:
        subprocess.run(list(map(str, init)), check=True, capture_output=True, cwd=home)
        flags = {"fsync": fsync, "listen_addresses": "", "unix_socket_directories": home, "max_connections": "100"}
        options = [x for name, value in flags.items() for x in ("-c", f"{name}={value}")]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                list(map(str, [*prefix, bin_ / "postgres", "-D", data, *options])), stdout=log, stderr=log, cwd=home
            )
        admin = f"postgresql+psycopg://tester@/postgres?host={home}"
        _wait(admin, server, home / "log")

        def new():
            name = f"t{next(NAMES)}"
            execute(admin, f"CREATE SCHEMA {name}")  # a schema costs a tenth of the files of a database
            return f"postgresql://tester@/postgres?host={home}&options=-csearch_path%3D{name}"

        yield new
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def _wait(url, server, log):
    for _ in range(600):
        try:
            return execute(url, "SELECT 1")
        except Exception:
            if server.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended: {log.read_text()}") from None
            time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL did not answer within 30 s: {log.read_text()}")


def execute(url, *statements):
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
