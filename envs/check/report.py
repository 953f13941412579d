"""What a check found: one line for each clause."""

from __future__ import annotations

from dataclasses import dataclass

from treewright.envs.errors import TreewrightError

__all__ = ["CheckFailed", "ClauseResult", "Report"]


class CheckFailed(TreewrightError):
    """At least one clause does not hold; the message is the report."""


@dataclass(frozen=True, slots=True)
class ClauseResult:
    """One clause: `held` is None where it does not apply, and `detail` says why, or what was seen instead."""

    name: str
    promise: str
    held: bool | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All clauses in the order checked; `environment` is the world's name."""

    environment: str
    results: tuple[ClauseResult, ...]

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the clauses that do not hold."""
        return tuple(result.name for result in self.results if result.held is False)

    def raise_if_failed(self) -> None:
        """Raises CheckFailed with the whole report."""
        if self.failed:
            raise CheckFailed(str(self))

    def __str__(self) -> str:
        marks = {True: "ok     ", False: "FAILED ", None: "skipped"}
        lines = [f"{self.environment}: {len(self.failed)} of {len(self.results)} clauses failed"]
        for result in self.results:
            lines.append(f"  {marks[result.held]} {result.name}: {result.promise}")
            if result.detail:
                lines.append(f"            {result.detail}")
        return "\n".join(lines)
