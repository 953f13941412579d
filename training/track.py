"""What is measured of every update: one line of runs/NAME/metrics.jsonl, and the trackers that `track.trackers` names.

with open_metrics("runs/first", run="first", trackers=["tensorboard"]) as metrics:
    metrics.log(Update(step=12, iteration=3, version="…", stats=stats, success={"kg": 0.4}, seconds=8.1))

A tracker has `log(step, values)` and `close()`. One that raises is told of once and left out from then on: it never
ends training.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, runtime_checkable

from treewright.envs.doors import Door, call, nearest
from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value

__all__ = ["DOOR", "FILE", "Metrics", "Tracker", "Update", "open_metrics", "open_trackers", "read_metrics"]

log = logging.getLogger("treewright")

FILE = "metrics.jsonl"


@runtime_checkable
class Tracker(Protocol):
    """Where numbers of a training run go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers by name, such as loss or success/kg, after `step` optimizer steps."""

    def close(self) -> None:
        """Writes what is not written yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What is known after one update.

    step       optimizer steps that the weights have taken;  iteration  of the loop, 0 without one
    version    of the policy that came out of it;  drawn_by  of the one that drew the trees, where that is known
    recipe     credit, or the name of another way to train
    stats      what the trainer measured: loss, kl, entropy, sampler_gap, grad_norm, tokens, …
    success    by suite, estimated from the trees trained on
    seconds    wall-clock, collecting included where the loop collected
    meter      what it cost, by the names of `treewright.search.meter.Meter`
    """

    step: int
    iteration: int
    version: str
    stats: Mapping[str, float]
    seconds: float
    recipe: str = "credit"
    drawn_by: str | None = None
    success: Mapping[str, float] = field(default_factory=dict)
    meter: Mapping[str, float | None] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        """As one JSON object; numbers that are not finite are null."""
        own = {"step": self.step, "iteration": self.iteration, "recipe": self.recipe, "policy_version": self.version}
        told = {} if self.drawn_by is None else {"drawn_by": self.drawn_by}
        stats = {name: _finite(value) for name, value in self.stats.items() if name not in own}
        success = {name: _finite(value) for name, value in self.success.items()}
        cost = {"meter": dict(self.meter)} if self.meter else {}
        return {**own, **told, "seconds": round(self.seconds, 3), "success": success, **stats, **cost}

    def values(self) -> dict[str, float]:
        """The finite numbers by name, for trackers."""
        every = {
            **self.stats,
            "iteration": self.iteration,
            "seconds": self.seconds,
            **{f"success/{suite}": value for suite, value in self.success.items()},
            **{f"meter/{name}": value for name, value in self.meter.items() if value is not None},
        }
        return {name: float(value) for name, value in every.items() if _finite(value) is not None}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Metrics:
    """The run's metrics.jsonl, which is added to, and its trackers by name. Raises TreewrightError if it cannot be."""

    def __init__(self, folder: Path, trackers: Mapping[str, Tracker]) -> None:
        self.path, self._trackers = folder / FILE, dict(trackers)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] | None = self.path.open("a+", encoding="utf-8", newline="\n")
            if _cut_off(self.path):  # a kill ended the last line; the next one shall be whole
                self._file.write("\n")
        except OSError as error:
            raise TreewrightError(f"cannot write {self.path}: {error.strerror}; name another folder") from error

    def log(self, update: Update) -> None:
        """Writes the line and tells every tracker. Raises nothing: what fails is told once and left out."""
        if self._file is not None:
            try:
                self._file.write(json.dumps(update.line(), ensure_ascii=False) + "\n")
                self._file.flush()
            except OSError as error:
                log.warning("%s cannot be written (%s); training goes on without it", self.path, error)
                self._file = None
        self._each(lambda tracker: tracker.log(update.step, update.values()))

    def holds(self, step: int) -> bool:
        """The file has a line for the weights after `step` optimizer steps."""
        return any(line.get("step") == step for line in read_metrics(self.path))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._each(lambda tracker: tracker.close())
        self._trackers.clear()

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:
                log.warning(
                    "tracker %s failed and is left out from now on (%s: %s); %s goes on",
                    name, type(error).__name__, error, self.path,
                )  # fmt: skip
                del self._trackers[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file in their order, [] where there is none; what a kill cut off is left out."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        try:
            row = json_value(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def _cut_off(path: Path) -> bool:
    """The file ends within a line."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def open_metrics(
    folder: str | Path,
    run: str,
    trackers: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Metrics:
    """The metrics of a run whose files are in `folder`; see `open_trackers` for the rest, and for what it raises."""
    return Metrics(Path(folder), open_trackers(Path(folder), run, trackers, options, settings))


def open_trackers(
    folder: Path,
    run: str,
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Tracker]:
    """The trackers by name: built in, module:object or an entry point of `treewright.trackers`.

    A class or function is called with its options, and with those of `run`, `folder` and `settings` that it asks for.

    options   by tracker; settings  the run's configuration, which trackers show beside the numbers

    Raises TreewrightError for an unknown name or option, for a missing package with what to install, and for a tracker
    that cannot be opened.
    """
    given = options or {}
    for name in given:
        if name not in names:
            raise TreewrightError(f"track.options are given for {name!r}, which track.trackers does not name; "
                                  f"{nearest(name, names)}")  # fmt: skip
    return {
        name: _opened(name, given.get(name, {}), run=run, folder=folder, settings=dict(settings or {}))
        for name in dict.fromkeys(names)
    }


def _opened(name: str, options: Mapping[str, Any], **given: Any) -> Tracker:
    found = DOOR.find(name)
    if isinstance(found, type) or not isinstance(found, Tracker):
        if not callable(found):
            raise TreewrightError(f"tracker {name!r} is a {type(found).__name__}; name one, or what makes one")
        try:
            found = call(found, options, f"tracker {name!r}", **given)
        except ImportError as error:
            raise TreewrightError(
                f"tracker {name!r} needs a package that is missing ({error.name}); type: pip install "
                f"{PACKAGES.get(name, error.name)}"
            ) from error
    elif options:
        raise TreewrightError(f"tracker {name!r} is an object and takes no options; name the class that makes it")
    if not isinstance(found, Tracker):
        raise TreewrightError(f"tracker {name!r} gave a {type(found).__name__} without log(step, values) and close()")
    return found


# -- the built-in ones: each asks for its package when it is opened ----------------------------------------------------


class TensorBoard:
    """Event files in runs/NAME/tensorboard, or in `log_dir`; look at them with: tensorboard --logdir runs"""

    def __init__(self, folder: Path, log_dir: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(log_dir or str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. `mode="offline"` needs no account and writes to runs/NAME/wandb."""

    def __init__(
        self, run: str, folder: Path, settings: Mapping[str, Any], project: str = "treewright",
        entity: str | None = None, mode: str | None = None, tags: Sequence[str] = (),
    ) -> None:  # fmt: skip
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=project, entity=entity, mode=mode, name=run, tags=list(tags), dir=str(folder), config=dict(settings)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio, which keeps its numbers on this machine; look at them with: trackio show"""

    def __init__(
        self, run: str, settings: Mapping[str, Any], project: str = "treewright", space_id: str | None = None
    ) -> None:
        import trackio

        self._run: Any = trackio.init(
            project=project, name=run, space_id=space_id, config=dict(settings), resume="allow"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow: a server by its `uri`, else the file runs/NAME/mlflow.db."""

    def __init__(self, run: str, folder: Path, uri: str | None = None, experiment: str = "treewright") -> None:
        from mlflow.tracking import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        self._client: Any = MlflowClient(uri or f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        known = self._client.get_experiment_by_name(experiment)
        where = known.experiment_id if known is not None else self._client.create_experiment(experiment)
        self._id: str = self._client.create_run(where, run_name=run).info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
BUILT_IN: dict[str, Callable[..., Tracker]] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow,
}  # fmt: skip
DOOR = Door(kind="tracker", group="treewright.trackers", built_in=lambda: BUILT_IN)
