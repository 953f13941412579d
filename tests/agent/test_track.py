"""Metrics: a line for every update, trackers by name, and training that no tracker can end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.envs import TreewrightError
from treewright.training.track import Update, open_metrics, open_trackers

NUMBERS = {"loss", "kl", "entropy", "sampler_gap", "grad_norm", "tokens"}
SMALL = ("--suites", "kg", "--set", "search.expansions=2", "--set", "train.minibatches=1")


def call(folder: Path, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--set", f"folder={folder}"])
    if result.exception is not None:
        raise result.exception
    return result.output


def lines(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def update(step: int = 1, **stats: Any) -> Update:
    return Update(step=step, iteration=1, version="w1", stats={"loss": 0.5, **stats}, seconds=1.0, success={"kg": 0.25})


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of one's own in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_trackers.py").write_text(
        "seen = []\n"
        "class Keeps:\n"
        "    def __init__(self, run, prefix=''): self.run, self.prefix = run, prefix\n"
        "    def log(self, step, values):\n"
        "        seen.append((self.run, step, {self.prefix + k: v for k, v in values.items()}))\n"
        "    def close(self): seen.append('closed')\n"
        "class Breaks(Keeps):\n"
        "    def log(self, step, values): raise ConnectionError('no route')\n"
        "class Never:\n"
        "    def __init__(self): raise ConnectionError('not logged in')\n"
        "class NoTracker: pass\n"
        "ready = Keeps('ready')\n"
    )
    yield
    sys.modules.pop("my_trackers", None)


def test_the_loop_and_every_way_to_train_write_one_line_for_each_update(tmp_path: Path, mine: None) -> None:
    loop = ("loop", *SMALL, "--set", "loop.tasks=4", "--set", "loop.iterations=2")
    call(tmp_path / "run", *loop, "--set", "track.trackers=tensorboard,my_trackers:Breaks")
    first, second = lines(tmp_path / "run")
    assert first.keys() >= NUMBERS | {"step", "iteration", "seconds", "policy_version", "success"}
    assert (first["iteration"], second["iteration"]) == (1, 2) and second["step"] > first["step"]
    assert second["drawn_by"] == first["policy_version"] != second["policy_version"]
    assert first["success"].keys() == {"kg"} and first["seconds"] > 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    told = {(e.step, round(e.value, 5)) for e in events.Scalars("loss")}
    assert told == {(row["step"], round(row["loss"], 5)) for row in (first, second)}
    assert {e.step for e in events.Scalars("success/kg")} == {first["step"], second["step"]}
    call(tmp_path / "run", "train", "sft", "--set", "track.trackers=[]", "--set", "train.minibatches=1")
    third = lines(tmp_path / "run")[2]
    assert third["recipe"] == "sft" and third["step"] == second["step"] + 1 and third["success"].keys() == {"kg"}
    assert third["policy_version"] not in (first["policy_version"], second["policy_version"])


def test_a_tracker_that_raises_is_told_once_and_the_file_goes_on(
    tmp_path: Path, mine: None, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["my_trackers:Breaks", "my_trackers:Keeps"]
    with open_metrics(tmp_path, "r", names, {"my_trackers:Keeps": {"prefix": "t/"}}) as metrics:
        for step in (1, 2, 3):
            metrics.log(update(step, kl=math.nan))
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3] and lines(tmp_path)[0]["kl"] is None
    assert sum("no route" in r.message for r in caplog.records) == 1
    seen = sys.modules["my_trackers"].seen
    assert [s[1] for s in seen[:-1]] == [1, 2, 3] and seen[-1] == "closed"
    assert seen[0][0] == "r" and seen[0][2]["t/success/kg"] == 0.25 and "t/kl" not in seen[0][2]


def test_a_line_that_a_kill_cut_off_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste')
    with open_metrics(tmp_path, "r") as metrics:
        metrics.log(update(2))
    whole = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(whole) == 3 and json.loads(whole[2])["step"] == 2


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["tensorbord"], {}, "did you mean 'tensorboard'"),
        (["my_trackers:Kepes"], {}, "did you mean 'Keeps'"),
        (["my_trackers:Keeps"], {"my_trackers:Keeps": {"prefx": 1}}, "did you mean 'prefix'"),
        (["tensorboard"], {"tensorboard": {"logdir": "x"}}, "did you mean 'log_dir'"),
        (["tensorboard"], {"tensorbord": {}}, "did you mean 'tensorboard'"),
        (["my_trackers:ready"], {"my_trackers:ready": {"prefix": 1}}, "takes no options"),
        (["my_trackers:Never"], {}, r"ConnectionError: not logged in \(my_trackers\.py"),
        (["my_trackers:NoTracker"], {}, r"without log\(step, values\)"),
        (["my_trackers:seen"], {}, "is a list"),
    ],
)
def test_what_is_no_tracker_is_told_before_anything_is_trained(
    tmp_path: Path, mine: None, names: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(TreewrightError, match=said):
        open_trackers(tmp_path, "r", names, options)
    with pytest.raises(TreewrightError, match=said):
        sets = ["--set", f"track.trackers={json.dumps(names)}", "--set", f"track.options={json.dumps(options)}"]
        call(tmp_path / "run", "loop", "--suites", "kg", *sets)
    assert not list((tmp_path / "run").rglob("step-*"))


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_missing_package_is_told_with_what_to_install(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (name, "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TreewrightError, match=f"pip install {name}"):
        open_trackers(tmp_path, "r", [name])


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """What a run of wandb that is offline has written: a log in LevelDB's format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    rows: list[dict[str, Any]] = []
    data, at, begun = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if left < 7 or not kind:  # padding to the end of a block
            at += left
            continue
        begun += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(begun)
            begun = b""
            items = [(item.key or ".".join(item.nested_key), item.value_json) for item in record.history.item]
            rows += [{key: json.loads(value) for key, value in items}] if items else []
    return rows


def mlflow_rows(folder: Path) -> list[dict[str, Any]]:
    """Every number of the one run in the file, a row for each step."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    rows: dict[int, dict[str, Any]] = {}
    for name in run.data.metrics:
        for one in client.get_metric_history(run.info.run_id, name):
            rows.setdefault(one.step, {"_step": one.step})[name] = one.value
    return [rows[step] for step in sorted(rows)]


def trackio_rows(folder: Path) -> list[dict[str, Any]]:
    """What its own reader gives of the run."""
    from trackio.sqlite_storage import SQLiteStorage

    return [{**row, "_step": row["step"]} for row in SQLiteStorage.get_logs("treewright", "r")]


READERS = {"wandb": wandb_rows, "mlflow": mlflow_rows, "trackio": trackio_rows}


@pytest.mark.parametrize("name", READERS)
def test_numbers_come_back_from_wandb_offline_mlflow_and_trackio_where_they_are_installed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are optional; `make test-trackers` has them. What is not installed is told, which the test above asks for."""
    pytest.importorskip(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    options = {name: {"mode": "offline"}} if name == "wandb" else {}
    with open_metrics(tmp_path, "r", [name], options, {"seed": 1}) as metrics:
        for step in (3, 4):
            metrics.log(update(step, kl=0.25 / step))
    kept = lines(tmp_path)
    rows = READERS[name](tmp_path)
    assert [row["_step"] for row in rows] == [3, 4] == [line["step"] for line in kept]
    for row, line in zip(rows, kept, strict=True):
        assert row["loss"] == line["loss"] == 0.5 and row["success/kg"] == 0.25
        assert row["kl"] == pytest.approx(line["kl"])


def test_wandb_offline_is_given_what_the_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for its interface; `make test-trackers` reads back what the real package keeps."""
    from types import SimpleNamespace

    begun, told, ended = [], [], []
    run = SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: ended.append(True))

    def init(**given: Any) -> SimpleNamespace:
        begun.append(given)
        return run

    stand_in = SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    options = {"wandb": {"mode": "offline", "project": "mine", "tags": ["a"]}}
    with open_metrics(tmp_path, "r", ["wandb", "tensorboard"], options, {"seed": 1}) as metrics:
        for step in (1, 2):
            metrics.log(update(step, kl=0.25 / step))
    (given,) = begun
    assert given["mode"] == "offline" and given["name"] == "r" and given["config"] == {"seed": 1}
    assert ended == [True] and [step for step, _ in told] == [1, 2]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for row, (step, values) in zip(lines(tmp_path), told, strict=True):
        assert values["loss"] == row["loss"] and values["kl"] == row["kl"]
        assert values["success/kg"] == row["success"]["kg"] and values["seconds"] == row["seconds"]
        assert [e.value for e in events.Scalars("kl") if e.step == step] == [pytest.approx(row["kl"])]
