"""What can go wrong in a world, as a tree; classified once, at the boundary.

Two kinds never mix. A *fault* is the infrastructure's: retry it, then record it and mask it, never reward it.
*Invalid output* is the policy's: show it the error, count it, train on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = [
    "ActionTimeout",
    "Divergence",
    "EnvFault",
    "InvalidAction",
    "RestoreUnsupported",
    "SessionDied",
    "TreewrightError",
    "boundary",
    "cancelled",
    "shown_by",
]


class TreewrightError(Exception):
    """Every error this package raises on purpose."""


class InvalidAction(TreewrightError):
    """The policy asked for something that cannot be done. The message is written for the policy."""


class RestoreUnsupported(TreewrightError):
    """The environment does not offer this way back."""


class Divergence(TreewrightError):
    """A replay arrived at another state than recorded: expected and found fingerprints, and the step."""

    def __init__(self, expected: str, found: str, step: int) -> None:
        super().__init__(f"replay diverged at step {step}: expected fingerprint {expected}, found {found}")
        self.expected, self.found, self.step = expected, found, step


class EnvFault(TreewrightError):
    """The infrastructure failed; the action may or may not have happened. Retry from a restored node."""


class SessionDied(EnvFault):
    """The server, browser or process behind the session is gone; the session must be replaced."""


class ActionTimeout(EnvFault):
    """The environment did not answer within its deadline."""


T = TypeVar("T")


def shown_by(given: object, kind: type[T], what: str) -> T:
    """What a world gave. Raises EnvFault where it is of another kind than the contract says."""
    if not isinstance(given, kind):
        raise EnvFault(f"{what} gave a {type(given).__name__}, not a treewright.envs.{kind.__name__}")
    return given


def cancelled() -> bool:
    """Is this task being cancelled? A CancelledError that other people's code raises itself says no such thing."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def boundary(
    what: str, *, dead: tuple[type[BaseException], ...] = (), trouble: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Turns foreign exceptions of one call into the fault vocabulary.

    dead     exceptions that mean the session is gone   → SessionDied
    trouble  other failures of the infrastructure       → EnvFault
    Time-outs become ActionTimeout, broken pipes and connections SessionDied; everything else passes.
    """
    try:
        yield
    except TreewrightError:
        raise
    except asyncio.CancelledError:
        raise
    except dead as error:
        raise SessionDied(f"{what}: {type(error).__name__}: {error}") from error
    except TimeoutError as error:
        raise ActionTimeout(f"{what}: no answer within the deadline") from error
    except (ConnectionError, EOFError) as error:
        raise SessionDied(f"{what}: {type(error).__name__}: {error}") from error
    except trouble as error:
        raise EnvFault(f"{what}: {type(error).__name__}: {error}") from error
