"""What an update that is under way has done so far, so that one that is stopped goes on where it was last saved.

One file beside the checkpoints: the weights that are trained, the optimizer, the gradient gathered so far, the
log-probs by which its step will be measured, and a key that says which update it is of. The key names the weights that
the update began with, its packs and its settings, so another update never takes it up. It is no checkpoint: nothing
acts with it, and the next checkpoint removes it.

An update that went on equals one that was never stopped, bit for bit, where the model's own kernels give the same bits
for the same input: on one machine and as many threads, not on accelerators whose sums come in any order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from treewright.training.optimizer import flatten, unflatten
from treewright.training.pack import PackedBatch

__all__ = ["FILE", "Progress", "Underway"]

log = logging.getLogger("treewright")

FILE = ".underway.safetensors"
SHARE = 0.1  # of the time that saving may take


@dataclass(slots=True)
class Underway:
    """One pass over packs: how many are done, and what was measured of them.

    kept   log-probs before the pass, one tensor for each pack; () if they are not needed, or not known yet
    recent log-probs of the packs that the gradient so far is of, by which the next step is measured; () if it is not
    stats  of a pass that was finished before the update was stopped: nothing is left to do
    """

    key: str = ""
    done: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    kept: tuple[Tensor, ...] = ()
    recent: tuple[Tensor, ...] = ()
    stats: dict[str, float] | None = None


class Progress:
    """Keeps the progress of a trainer's update in `folder`, every `every` seconds, and takes it up again.

    every  0 saves after every pack; else saving takes a tenth of the time at most
    plan   what is being trained and how, as far as packs and settings do not say it; part of the key
    tell   is told that an update goes on, or that one begins anew
    """

    def __init__(self, folder: Path, every: float = 5.0, tell: Callable[[str], None] | None = None) -> None:
        self.path, self.every, self.plan = folder / FILE, every, ""
        self._tell = tell or (lambda _: None)
        self._passes: list[dict[str, Any]] = []  # {"key", "stats"} of those that are finished since the checkpoint
        self._found: dict[str, Any] | None = None  # what the file says, until it is taken up
        self._tensors: dict[str, tuple[Tensor, ...]] = {}  # "old" and "recent" of the pass that was under way
        self._base = ""
        self._looked = False
        self._saved, self._cost = time.monotonic(), 0.0

    def begin(self, trainer: Any, packs: Sequence[PackedBatch], options: object = None) -> Underway:
        """The pass over these packs, with what was done of it. Puts the state of a stopped update into the trainer."""
        if not self._passes:
            self._base = trainer.versions[-1] if trainer.versions else ""
            self._saved = time.monotonic()
        before = self._passes[-1]["key"] if self._passes else f"{self._base} {self.plan}"
        key = _key(before, packs, f"{_settings(trainer)} {options!r}")
        if not self._looked:
            self._looked, self._found = True, self._read()
        found, number = self._found, len(self._passes)
        if found is None:
            return self._anew(trainer, key)
        known = [*found["passes"], found["now"]]
        if number < len(known) and known[number]["key"] == key:
            if number == 0:
                self._restore(trainer)
            if number < len(found["passes"]):
                self._passes.append(found["passes"][number])
                return Underway(key, stats=dict(found["passes"][number]["stats"]))
            self._found, now = None, found["now"]
            old, recent = self._tensors["old"], self._tensors["recent"]
            return Underway(key, int(now["done"]), dict(now["sums"]), old, recent)
        self._found = None
        if number == 0:
            self._tell("an update of other trees or settings was stopped here; it is left, and this one begins anew")
        return self._anew(trainer, key)

    def _anew(self, trainer: Any, key: str) -> Underway:
        at = Underway(key)
        if self._passes:  # between two passes, however short they are
            self.save(trainer, at)
        return at

    def save(self, trainer: Any, at: Underway) -> None:
        """Writes the file if it is time. What goes wrong is told once, and training goes on without it."""
        if time.monotonic() - self._saved < max(self.every, self._cost / SHARE if self.every else 0.0):
            return
        began = time.monotonic()
        slots, groups = flatten(trainer.optimizer)
        trained = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
        tensors = {f"weight:{name}": p.detach() for name, p in trained}
        tensors |= {f"gradient:{name}": p.grad.detach() for name, p in trained if p.grad is not None}
        tensors |= {f"slot:{name}": value for name, value in slots.items()}
        tensors |= {f"old:{i:06d}": value for i, value in enumerate(at.kept)}
        tensors |= {f"recent:{i:06d}": value for i, (_, value) in enumerate(trainer.recent)}
        about = {
            "base": self._base, "steps": trainer.steps, "versions": trainer.versions, "groups": groups,
            "moves": trainer.moves, "passes": self._passes, "now": {"key": at.key, "done": at.done, "sums": at.sums},
        }  # fmt: skip
        part = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part, {"about": json.dumps(about)})
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            log.warning("what this update has done cannot be kept (%s); it goes on without", error)
            self.every = float("inf")
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def end(self, at: Underway, stats: dict[str, float]) -> None:
        """The pass is finished."""
        self._passes.append({"key": at.key, "stats": stats})

    def clear(self) -> None:
        """A checkpoint holds everything now."""
        self.path.unlink(missing_ok=True)
        self._passes, self._found, self._looked = [], None, True

    # -- reading -------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any] | None:
        """What the file says of itself; None without one, for a damaged one and for one from before a checkpoint."""
        try:
            with safe_open(self.path, "pt") as file:
                about: dict[str, Any] = json.loads(file.metadata()["about"])
                return about if about["base"] == self._base and "moves" in about else None
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            self._tell(f"{self.path} cannot be read ({error}); the update begins anew")
            return None

    def _restore(self, trainer: Any) -> None:
        assert self._found is not None
        named = dict(trainer.model.named_parameters())
        slots: dict[str, Tensor] = {}
        others: dict[str, list[Tensor]] = {"old": [], "recent": []}
        trainer.optimizer.zero_grad(set_to_none=True)
        with safe_open(self.path, "pt") as file, torch.no_grad():
            for key in sorted(file.keys()):
                kind, _, name = key.partition(":")
                value = file.get_tensor(key)
                if kind == "weight":
                    named[name].copy_(value)
                elif kind == "gradient":
                    named[name].grad = value.to(named[name])
                elif kind == "slot":
                    slots[name] = value
                else:
                    others[kind].append(value.to(trainer.model.device))
        unflatten(trainer.optimizer, slots, self._found["groups"])
        trainer.steps, trainer.versions = int(self._found["steps"]), self._found["versions"]
        trainer.moves = [(float(kl), float(share)) for kl, share in self._found["moves"]]
        now = self._found["now"]["done"]
        more = f" after {len(self._found['passes'])} passes" if self._found["passes"] else ""
        self._tell(f"going on with the update that was stopped: {now} packs were done{more}")
        self._tensors = {kind: tuple(tensors) for kind, tensors in others.items()}


def _settings(trainer: Any) -> str:
    given = {f.name: getattr(trainer.settings, f.name) for f in fields(trainer.settings) if f.name != "save_every"}
    return f"{trainer.lr!r} {given!r}"


def _key(before: str, packs: Sequence[PackedBatch], told: str) -> str:
    """Names the work: what came before it, its packs, and its settings."""
    h = hashlib.sha256(f"{before} {told} {len(packs)}".encode())
    for pack in packs:
        for one in fields(pack):
            value = getattr(pack, one.name)
            h.update(one.name.encode())
            h.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
    return h.hexdigest()
