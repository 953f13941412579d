"""A Gymnasium environment that can be gone back in: by a copy, or by its actions again, whichever costs less here."""

from __future__ import annotations

import contextlib
import copy
import json
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from treewright.envs.errors import RestoreUnsupported, SessionDied, TreewrightError, boundary
from treewright.envs.naming import place_of
from treewright.envs.tools.gym_spaces import action_schema, allowed_now, as_member
from treewright.envs.tools.state import state_size
from treewright.envs.types import Action, Effect, Observation, StepResult, ToolSpec, digest

__all__ = ["Game", "Place"]

CHEAP = 0.002  # seconds; a copy that costs less is not worth avoiding
SHOWN = 40  # allowed actions that an observation names
MAX_CHARS = 20_000


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Place:
    """A state: how it is reached, and perhaps the environment itself (never stepped while it is held here).

    start   what reset was given: seed and options;  taken  the actions since
    below   the nearest earlier place that held the environment, as long as it is kept
    schema  of the actions that are allowed there
    """

    start: tuple[int, dict[str, Any] | None]
    taken: tuple[Action, ...]
    shown: Observation
    schema: Mapping[str, Any]
    ended: bool = False
    env: Any = None
    below: weakref.ref[Place] | None = None


class Game:
    """One environment, used from one thread.

    A place is held as a copy of the environment where going back to it by its actions would cost more than a copy, by
    the prices measured in this very session; else as its actions. A live world has no places: there nothing is copied,
    and no action taken again.
    """

    def __init__(self, name: str, make: Callable[[], Any], describe: Callable[[Any], str] | None) -> None:
        self.name, self._make, self._describe = name, make, describe or words
        self.env: Any = None
        self.copies = False
        self.sandboxed, self.effect = True, Effect.REVERSIBLE
        self._shared = False  # is the environment held by a place, so that a step needs a copy of its own?
        self._below: weakref.ref[Place] | None = None
        self._at = Place((0, None), (), Observation(""), {}, ended=True)
        self._whole: Mapping[str, Any] = {}
        self._specs: dict[str, tuple[ToolSpec, ...]] = {}
        self._copy_s = self._reset_s = self._steps_s = 0.0
        self._steps = 0

    @property
    def ended(self) -> bool:
        return self._at.ended

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The one tool, with what the present state allows."""
        schema = self._at.schema or self._whole
        key = json.dumps(schema)
        if key not in self._specs:
            if len(self._specs) >= 256:
                self._specs.clear()
            parameters = {"type": "object", "properties": {"action": schema}, "required": ["action"]}
            self._specs[key] = (ToolSpec("act", "takes one step", parameters, self.effect),)
        return self._specs[key]

    def open(self) -> None:
        """Makes the environment. Raises TreewrightError with what gymnasium.make says against it."""
        self.env = self._made()
        self._whole = action_schema(self.env.action_space)
        self.sandboxed = (getattr(self.env, "metadata", None) or {}).get("sandboxed", True) is True
        self.effect = Effect.REVERSIBLE if self.sandboxed else Effect.UNKNOWN
        if self.sandboxed:
            with contextlib.suppress(Exception):  # whatever it holds that cannot be copied: it is replayed instead
                self._copied()
                self.copies = True

    def reset(self, seed: int, options: dict[str, Any] | None) -> Observation:
        if self._shared:
            self.env, self._shared = self._made(), False
        began = time.perf_counter()
        with boundary(f"{self.name}: reset"):
            seen, info = self.env.reset(seed=seed, options=options)
        self._reset_s = time.perf_counter() - began
        self._below = None
        self._at = Place((seed, options), (), Observation(""), {})
        return self._note(seen, info, digest(self.name, str(seed), repr(options) if options else ""))

    def step(self, action: Action) -> StepResult:
        """Takes an action that its schema allows. What the environment raises is an observation like any other."""
        value = as_member(self.env.action_space, action.arguments["action"])
        self._own()
        at, began = self._at, time.perf_counter()
        try:
            with boundary(f"{self.name}: step"):
                seen, reward, terminated, truncated, info = self.env.step(value)
        except TreewrightError:
            raise
        except Exception as error:
            return self._complaint(action, error)
        finally:
            self._steps, self._steps_s = self._steps + 1, self._steps_s + time.perf_counter() - began
        ended = bool(terminated or truncated)
        end = f"{float(reward)} {terminated} {truncated}"
        self._at = replace(at, taken=(*at.taken, action), ended=ended)
        shown = self._note(seen, info, digest(at.shown.fingerprint, action.key, end, self._describe(seen)))
        told = dict(info) if isinstance(info, Mapping) else {}
        return StepResult(
            shown, float(reward), bool(terminated), truncated=bool(truncated), effect=self.effect, info=told
        )

    def _complaint(self, action: Action, error: Exception) -> StepResult:
        at, why = self._at, f"{type(error).__name__}: {error}"[:MAX_CHARS]
        shown = Observation(f"error: {why}", digest(at.shown.fingerprint, action.key, why), provenance="error")
        self._at = replace(at, taken=(*at.taken, action), shown=shown)
        return StepResult(shown, effect=self.effect, info={"raised": f"{why}{place_of(error)}"})

    def hold(self) -> tuple[Place, int]:
        """The present place, and how many bytes it keeps in memory."""
        below = self._below() if self._below is not None else None
        steps = len(self._at.taken) - (len(below.taken) if below is not None else 0)
        again = (0.0 if below is not None else self._reset_s) + steps * self._steps_s / max(self._steps, 1)
        if self.copies and (self._copy_s < CHEAP or again > self._copy_s):
            place = replace(self._at, env=self.env)
            self._below, self._shared = weakref.ref(place), True
            return place, state_size(self.env) + state_size(place.shown)
        place = replace(self._at, env=None, below=self._below if below is not None else None)
        return place, state_size((place.shown, place.taken))

    def go(self, place: Place) -> Observation:
        """Back to a place of this or another session; what is found there is for the caller to compare."""
        if place.env is not None:
            self.env, self._shared, self._at = place.env, True, replace(place, env=None)
            self._below = weakref.ref(place)
            return place.shown
        below = place.below() if place.below is not None else None
        if below is not None:
            self.go(below)
        else:
            self.reset(*place.start)
        for action in place.taken[len(self._at.taken) :]:
            if self._at.ended:
                raise RestoreUnsupported(f"{self.name}: the way back ends early, at {action}")
            self.step(action)
        return self._at.shown

    def close(self) -> None:
        if not self._shared and self.env is not None:
            self.env.close()
        self.env, self._shared = None, False

    def _note(self, seen: Any, info: Any, fingerprint: str) -> Observation:
        schema = allowed_now(self.env.action_space, self._whole, info, seen)
        text = self._describe(seen)
        if "enum" in schema and schema is not self._whole:
            named = [str(choice) for choice in schema["enum"]]
            more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
            text = f"{text}\nallowed now: {' | '.join(named[:SHOWN])}{more}"
        shown = Observation(text, fingerprint)
        self._at = replace(self._at, shown=shown, schema=schema)
        return shown

    def _made(self) -> Any:
        try:
            return self._make()
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise TreewrightError(f"{self.name}: gymnasium.make raised {type(error).__name__}: {first}") from error

    def _own(self) -> None:
        """Before a step: an environment that no place holds."""
        if not self._shared:
            return
        at = self._at
        try:
            self.env, self._shared = self._copied(), False
        except Exception as error:  # it could be copied when it was new
            self.copies = False
            self.env, self._shared = self._made(), False
            self.go(replace(at, env=None, below=None))
            if self._at.shown.fingerprint != at.shown.fingerprint:
                raise SessionDied(f"{self.name} cannot be copied any more ({error}), nor repeated") from error

    def _copied(self) -> Any:
        began = time.perf_counter()
        made = copy.deepcopy(self.env)
        self._copy_s = time.perf_counter() - began
        return made


def words(seen: Any) -> str:
    """An observation in plain text: arrays as lists, parts of a dictionary with their names."""
    if isinstance(seen, dict):
        return ", ".join(f"{key}: {words(value)}" for key, value in seen.items())
    if isinstance(seen, tuple):
        return " | ".join(map(words, seen))
    if isinstance(seen, np.ndarray):
        return str(np.round(seen, 4).tolist())
    return str(seen)
