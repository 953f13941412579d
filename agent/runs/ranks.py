"""Many processes that train one model: launched on this machine, or by torchrun on many; who leads and who follows.

A group that loses a rank ends as a whole, and the same line goes on from its last checkpoint: what one rank knows alone
is nothing that a checkpoint would not know.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.training.parallel.launched import LAUNCHER, launched
from treewright.training.settings import TrainSettings

__all__ = ["LOST", "PRELOADED", "following", "launch", "leading", "trainer_kind"]

PATIENCE = 5.0  # seconds that ranks have to end by themselves once one of them has
LOST = 3  # exit status of a rank that lost the others
PRELOADED = ("treewright.agent.cli.lean_start", "treewright.training.parallel.trainer",
             "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto")  # fmt: skip


def launch(
    command: Callable[[], object], count: int, arguments: Sequence[str], say: Callable[[str], object] = print
) -> int:
    """Runs `command` with the command line `arguments` in `count` processes that train together; what to exit with.

    As soon as one of them ends other than well, the others are ended too, and `say` is told which and why.
    """
    meeting = Path(tempfile.mkdtemp(prefix="treewright-")) / "ranks"
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), LAUNCHER: str(meeting)}
    if sys.platform == "linux":
        shared["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    threads = max(1, (os.cpu_count() or 1) // count)
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))
    context = multiprocessing.get_context("forkserver")  # heavy packages are loaded once, for all
    context.set_forkserver_preload(list(PRELOADED))
    ranks = [
        context.Process(target=_rank, args=(command, list(arguments), {**shared, "RANK": str(i), "LOCAL_RANK": str(i)}))
        for i in range(count)
    ]
    try:
        return _watched(ranks, say)
    finally:
        shutil.rmtree(meeting.parent, ignore_errors=True)


def _watched(ranks: Sequence[Any], say: Callable[[str], object]) -> int:
    count = len(ranks)
    for rank in ranks:
        rank.start()
    try:
        ended = _first_end(ranks)
    except KeyboardInterrupt:
        ranks[0].join(PATIENCE)  # it was interrupted too: it closes what it has open and says how to go on
        _end(ranks)
        return 130
    bad = [i for i in ended if ranks[i].exitcode]
    patience = 1.0 if bad else PATIENCE  # who notices by itself that another is gone may say so
    for rank in ranks:
        rank.join(patience)
    _end(ranks)
    codes = [rank.exitcode or 0 for rank in ranks]
    killed = [i for i in ended if codes[i] < 0]
    if killed:
        names = ", ".join(f"rank {i} of {count} was ended by {signal.Signals(-codes[i]).name}" for i in killed)
        say(f"error: {names}, and with it the others. Checkpoints are whole; the same line again goes on from the last")
        return LOST
    return next((codes[i] for i in [*bad, *range(count)] if codes[i] > 0), 0)


def _first_end(ranks: Sequence[Any]) -> list[int]:
    """Waits until one rank ends with an error, or the leader well; the ranks that have ended then."""
    while True:
        wait([rank.sentinel for rank in ranks if rank.is_alive()], timeout=1)
        ended = [i for i, rank in enumerate(ranks) if not rank.is_alive()]
        if 0 in ended or any(ranks[i].exitcode for i in ended):
            return ended


def _end(ranks: Sequence[Any]) -> None:
    for rank in ranks:
        if rank.is_alive():
            rank.terminate()
    end = time.monotonic() + PATIENCE
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
        if rank.is_alive():
            rank.kill()
            rank.join()


def _rank(command: Callable[[], object], arguments: list[str], environment: dict[str, str]) -> None:
    """One process of a group: the command itself, which finds its rank in the environment."""
    os.environ.update(environment)
    sys.argv = ["treewright", *arguments]
    command()


@functools.cache
def _group() -> Any:
    from treewright.training.parallel.ranks import join

    return join()


def follows() -> bool:
    """This process is one of many, and not their leader."""
    found = launched()
    return found is not None and found[0] > 0


def trainer_kind(settings: TrainSettings) -> Callable[..., Any]:
    """What makes the trainer: `Trainer` for a process that is alone, else the one of its group.

    Raises TreewrightError for settings that a group cannot have.
    """
    from treewright.training.step import Trainer

    if launched() is None:
        return Trainer
    from treewright.training.parallel.trainer import RankedTrainer, refuse_settings

    refuse_settings(settings)
    return functools.partial(RankedTrainer, ranks=_group())


def following(make: Callable[[], Any]) -> bool:
    """In a follower: makes its trainer, does what the leader orders until the end, and returns True; else False.

    Raises RankLost where the leader is gone.
    """
    if not follows():
        return False
    trainer = make()
    trainer.follow()
    trainer.ranks_of.leave()
    return True


@contextmanager
def leading(trainer: Any) -> Iterator[None]:
    """The leader's work: at its end, and after an error that all have survived, the followers are sent home."""
    try:
        yield
    except TreewrightError as error:
        _dismiss(trainer, error)
        raise
    _dismiss(trainer, None)


def _dismiss(trainer: Any, error: TreewrightError | None) -> None:
    from treewright.training.parallel.ranks import RankLost

    if getattr(trainer, "ranks", None) is not None and not isinstance(error, RankLost):
        with suppress(RankLost):
            trainer.stop()
            trainer.ranks_of.leave()
