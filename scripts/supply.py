"""What tests install: pinned by hash, compared with what is there, and its licences.

    python scripts/supply.py lock       # writes requirements/tests.lock: what pip would fetch here, one hash each
    python scripts/supply.py check      # versions against the lock, and every installed file against its own record
    python scripts/supply.py licences   # writes docs/licences.md

`make setup` does not install from the lock: torch's build is the machine's choice, and other platforms fetch other
files. `make locked` does, into a folder of its own, without anything that is not in the list.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata as metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK, LICENCES = ROOT / "requirements" / "tests.lock", ROOT / "docs" / "licences.md"
SOURCES = ("constraints.txt", "tests/foreign.txt")
OWN_CHOICE = {"torch"}  # the build that fits the machine is installed first


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> dict[str, str]:
    """Versions by name, as the lists of the repository pin them."""
    found = {}
    for source in SOURCES:
        for line in (ROOT / source).read_text().splitlines():
            if "==" in line and not line.startswith("#"):
                name, _, version = line.partition("==")
                found[canonical(name)] = version.strip()
    return found


def locked(text: str) -> dict[str, tuple[str, str]]:
    """(version, sha256) by name."""
    rows = re.findall(r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$", text, re.M)
    return {canonical(name): (version, digest) for name, version, digest in rows}


def lock() -> None:
    """Asks pip, without installing anything, which file it would take for each pin, and writes down its hash."""
    pins = {name: version for name, version in wanted().items() if name not in OWN_CHOICE}
    with tempfile.TemporaryDirectory() as folder:
        listed, told = Path(folder) / "pins.txt", Path(folder) / "report.json"
        listed.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        line = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", str(told)]
        subprocess.run([sys.executable, "-m", "pip", *line, "-r", str(listed)], check=True)
        report = json.loads(told.read_text())
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(HEAD + "".join(lines(report)))


HEAD = """# What the tests install beside torch, on Linux x86-64 with CPython 3.11, by: scripts/supply.py lock
# Use: pip install torch==2.13.0, then pip install --require-hashes --no-deps -r requirements/tests.lock
"""


def lines(report: Any) -> Iterator[str]:
    rows = []
    for one in report["install"]:
        digest = one["download_info"]["archive_info"]["hashes"]["sha256"]
        rows.append((canonical(str(one["metadata"]["name"])), one["metadata"]["version"], digest))
    for name, version, digest in sorted(rows):
        yield f"{name}=={version} --hash=sha256:{digest}\n"


def changed_files(found: metadata.Distribution) -> list[str]:
    """Files of a distribution that are not what its RECORD says; those without a hash are not looked at.

    Nor are starters of commands and others beside the packages, which the installer writes, and byte code.
    """
    out = []
    for file in found.files or ():
        if file.hash is None or file.hash.mode != "sha256" or file.parts[0] == ".." or file.suffix == ".pyc":
            continue
        try:
            raw = Path(str(file.locate())).read_bytes()
        except OSError:
            out.append(f"{file}: missing")
            continue
        digest = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b"=").decode()
        if digest != file.hash.value:
            out.append(f"{file}: changed")
    return out


def check(packages: Iterable[metadata.Distribution]) -> list[str]:
    """What is wrong with the installed packages that the lock names, one line each."""
    pins, troubles, seen = locked(LOCK.read_text()), [], set()
    for found in packages:
        name = canonical(found.metadata["Name"])
        if name not in pins or name in seen:
            continue
        seen.add(name)
        if found.version != pins[name][0]:
            troubles.append(f"{name} is {found.version}, the lock has {pins[name][0]}")
        troubles += [f"{name}: {line}" for line in changed_files(found)]
    if not seen:
        troubles.append("none of the locked packages is installed here: make test installs them")
    return troubles


def licence(found: metadata.Distribution) -> str:
    """What a package says its licence is: the expression, else classifiers, else the first line of the field, else the
    title of the licence that it brings."""
    told = found.metadata
    if expression := told.get("License-Expression"):
        return str(expression)
    classes = [c.split(" :: ")[-1] for c in told.get_all("Classifier") or () if c.startswith("License ::")]
    if classes := [c for c in classes if c != "OSI Approved"]:
        return "; ".join(classes)
    field = next((line.strip() for line in str(told.get("License") or "").splitlines() if line.strip()), "")
    return field[:60] or brought(found) or "not told"


def brought(found: metadata.Distribution) -> str:
    """The title and the version that stand in front of a package's licence file."""
    for name in found.metadata.get_all("License-File") or ():
        text = found.read_text(f"licenses/{name}") or found.read_text(name) or ""
        titles = [line.strip() for line in text.splitlines() if re.search("licen[cs]e", line, re.I)][:1]
        if titles:
            version = re.search(r"\bversion (\d[\d.]*)", text[:400], re.I)
            return f"{titles[0][:60]}{f' {version[1]}' if version else ''}"
    return ""


def licences() -> str:
    """The page, from the metadata of what is installed."""
    there = {canonical(d.metadata["Name"]): d for d in metadata.distributions()}
    rows = []
    for name, version in sorted({**wanted()}.items()):
        if name in there:
            rows.append(f"| {name} | {version} | {licence(there[name]).replace('|', '/')} |")
    return PAGE + "\n".join(rows) + "\n"


PAGE = """# Licences of what the tests install

What each package says of itself, by `make licences`; treewright is under Apache-2.0. Installing treewright alone brings
the dependencies that `pyproject.toml` names, and those of the extras that you ask for.

| package | version | licence |
|---|---|---|
"""


def main(words: list[str]) -> int:
    if words == ["lock"]:
        lock()
    elif words == ["licences"]:
        LICENCES.write_text(licences())
    elif words == ["check"]:
        troubles = check(metadata.distributions())
        print("\n".join(troubles) or "every locked package that is installed is whole and of its version")
        return 1 if troubles else 0
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
