"""What people call the weights that drew a tree: by their optimizer step, where the run's checkpoints know it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from treewright.training.manifest import MANIFEST, CheckpointError, read_manifest

__all__ = ["Weights", "steps_in"]

DIGITS = re.compile(r"[0-9a-f]{32}")
SHOWN = 8  # digits of weights that no checkpoint knows


class Weights:
    """Names of policy versions, for the runs of one store.

    store   the file, or the URL, of the store: checkpoints of a run are looked for beside it, in the run's folder
            beside that one, and in runs/NAME
    """

    def __init__(self, store: str, runs: Iterable[str]) -> None:
        self._of: dict[str, Mapping[str, str]] = {}
        home = None if "://" in store else Path(store).resolve().parent
        for run in runs:
            places = [Path("runs") / run] if home is None else [home.parent / run, Path("runs") / run]
            if home is not None and home.name == run:
                places.insert(0, home)
            found = (steps_in(place / "checkpoints") for place in places if _plain(run))
            self._of[run] = next((steps for steps in found if steps), {})
        if home is not None and len(self._of) == 1 and not any(self._of.values()):
            self._of = dict.fromkeys(self._of, steps_in(home / "checkpoints"))

    def name(self, version: str, run: str | None = None) -> str:
        """'step 12' where that is known; the first digits of other hashes; any other name as it is."""
        if run is not None and (known := self._of.get(run, {}).get(version)):
            return known
        mine = {name: steps[version] for name, steps in self._of.items() if version in steps}
        if mine:
            return " = ".join(self._full(name, step) for name, step in sorted(mine.items()))
        return version[:SHOWN] if DIGITS.fullmatch(version) else version

    def _full(self, run: str, step: str) -> str:
        return step if sum(1 for steps in self._of.values() if steps) < 2 else f"{step} of {run}"

    def order(self) -> list[str]:
        """Known versions by run and step, for sorting."""
        steps = [(run, _count(step), version) for run, known in self._of.items() for version, step in known.items()]
        return list(dict.fromkeys(version for _, _, version in sorted(steps)))

    def versions(self, word: str, whole: bool = False) -> list[str]:
        """The versions whose name holds a word, or is it."""
        found = {version for steps in self._of.values() for version in steps}
        names = {v: {self.name(v), *(self.name(v, run) for run in self._of)} for v in found}
        fits = (lambda name: word == name) if whole else (lambda name: word.casefold() in name.casefold())
        return sorted(v for v, called in names.items() if any(map(fits, called)))


def _count(step: str) -> int:
    return int(step.rpartition(" ")[2])


def _plain(run: str) -> bool:
    """A name that leads to a folder of its own: names out of a store are not trusted with a path."""
    return bool(run) and not Path(run).is_absolute() and ".." not in Path(run).parts and "\0" not in run


def steps_in(folder: Path) -> dict[str, str]:
    """What a run's checkpoints call the weights it has had: version → 'step N'.

    A checkpoint knows its own step and all versions before it; where a round took several steps, those of checkpoints
    that are gone are called 'round N'. Damaged checkpoints are passed over.
    """
    exact: dict[str, str] = {}
    counted: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for path in sorted(folder.glob("step-*")):
        if not (path / MANIFEST).exists():
            continue
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            continue
        step, versions = int(manifest["step"]), [str(v) for v in manifest.get("versions") or ()]
        if not versions:
            continue
        word = "step" if len(versions) == step + 1 else "round"
        for i, version in enumerate(versions):
            counted.setdefault(version, f"{word} {i}")
        exact[versions[-1]] = f"step {step}"
        aliases |= {str(k): str(v) for k, v in dict(manifest.get("aliases") or {}).items()}
    found = counted | exact
    return {alias: found[version] for alias, version in aliases.items() if version in found} | found
