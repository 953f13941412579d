"""What tests install: the page of licences and the lock are those of the pinned versions and of what is installed."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply_script", ROOT / "scripts" / "supply.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


supply = _loaded()
PINS: dict[str, str] = supply.wanted()
ROWS = re.compile(r"^\| (\S+) \| (\S+) \| (.+) \|$", re.M)


def test_the_page_of_licences_is_what_the_installed_packages_say() -> None:
    page, made = supply.LICENCES.read_text(), supply.licences()
    shown = {name: (version, licence) for name, version, licence in ROWS.findall(page.removeprefix(supply.PAGE))}
    here = {name: (version, licence) for name, version, licence in ROWS.findall(made.removeprefix(supply.PAGE))}
    assert len(here) > 40, "too little is installed here to compare with"
    assert page.startswith(supply.PAGE) and list(shown) == sorted(shown)
    assert {name: shown.get(name) for name in here} == here, "run make licences"
    assert {name: version for name, (version, _) in shown.items()}.items() <= PINS.items(), "run make licences"
    assert not [name for name, (_, licence) in shown.items() if licence == "not told"]


def test_the_lock_holds_every_pin_with_its_hash() -> None:
    locked = supply.locked(supply.LOCK.read_text())
    wanted = {name: version for name, version in PINS.items() if name not in supply.OWN_CHOICE}
    assert {name: version for name, (version, _) in locked.items()} == wanted, "run scripts/supply.py lock"


def test_a_changed_file_and_another_version_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "one-1.dist-info"
    there.mkdir()
    (there / "METADATA").write_text("Name: one\nVersion: 1\nLicense: Some licence\n of two lines\n")
    (tmp_path / "one.py").write_text("x = 1\n")
    (there / "RECORD").write_text("one.py,sha256=AAAA,6\ngone.py,sha256=AAAA,6\none-1.dist-info/RECORD,,\n")
    (tmp_path / "lock").write_text(f"one==2 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(supply, "LOCK", tmp_path / "lock")
    found = metadata.PathDistribution(there)
    assert supply.check([found]) == ["one is 1, the lock has 2", "one: one.py: changed", "one: gone.py: missing"]
    assert supply.licence(found) == "Some licence"
    (there / "METADATA").write_text("Name: one\nVersion: 1\nLicense-File: LICENCE\n")
    assert supply.licence(found) == "not told"
    (there / "licenses").mkdir()
    (there / "licenses" / "LICENCE").write_text("\n   Some License\n   Version 2.0, January\n")
    assert supply.licence(metadata.PathDistribution(there)) == "Some License 2.0"
    assert supply.check([]) == ["none of the locked packages is installed here: make test installs them"]
