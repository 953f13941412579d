"""The catalogue of error texts is that of the source, and no text loses what to do next."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
WANTING = 49
"""Texts for people that do not say what to do next, at most: whoever mends one lowers this."""


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("error_texts", ROOT / "scripts" / "error_texts.py")
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()


def test_the_catalogue_is_up_to_date() -> None:
    made, kept = SCRIPT.catalogue(SCRIPT.texts()).splitlines(), SCRIPT.GOLDEN.read_text("utf-8").splitlines()
    new, gone = [x for x in made if x not in kept], [x for x in kept if x not in made]
    assert made == kept, f"type: python scripts/error_texts.py, and read what it changes: {new[:9]} for {gone[:9]}"


def test_no_new_text_leaves_people_without_a_next_step() -> None:
    wanting = [f"{one.file}: {one.text}" for one in SCRIPT.texts() if one.for_people and not one.says_next]
    assert len(wanting) <= WANTING, "say what to do next: python scripts/error_texts.py --worst"


def test_texts_are_found_wherever_they_are_made() -> None:
    found = SCRIPT.texts()
    assert len(found) > 900
    assert {one.file.partition("/")[0] for one in found} == {*SCRIPT.FLOORS} - {"kernels"}
    kinds = SCRIPT.kinds()
    assert {"TreewrightError", "ConfigError", "StoreError", "CorpusError", "SessionDied", "PolicyFault"} <= kinds
    assert "ValueError" not in kinds
    (text,) = [
        one.text for one in found if one.text.startswith("--set {") and "no key" in one.text and "config" in one.file
    ]
    assert text.endswith("write --set search.expansions=8")
