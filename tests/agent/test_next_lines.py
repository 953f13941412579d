"""Every line that a command prints to be typed next is typed, as it stands, in a folder of its own."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import forked
import pytest
from not_none import not_none
from speed import patient
from typing_lines import environment, next_line, typed

KG = ["--suites", "kg", "--tasks", "4"]
FEW = ["--set", "search.expansions=2"]


def quick(words: list[str]) -> list[str]:
    """The line with fewer tasks: what is tested is that it works, not what it measures."""
    return [*words, "--tasks", "2"] if words[0] in ("eval", "collect") else words


def test_collect_train_collect_train_goes_round_and_each_line_is_true(tmp_path: Path) -> None:
    out = typed(["collect", "--name", "first", *KG, *FEW], tmp_path)
    assert next_line(out) == ["train", "--name", "first"]
    out = typed(next_line(out), tmp_path)
    assert "4 to train on" in out and next_line(out) == ["eval", "--name", "first"]
    measured = typed(quick(next_line(out)), tmp_path)
    assert "acting with runs/first/checkpoints/step-" in measured and "kg" in measured
    out = typed(["collect", "--name", "first", "--batch", "1", "--tasks", "4"], tmp_path)
    assert "acting with runs/first/checkpoints/step-" in out and "kg" in out
    out = typed(next_line(out), tmp_path)
    assert "4 drawn by other weights" not in out and "4 trained on before, 4 to train on" in out


def test_the_policy_that_a_run_began_with_is_remembered_and_another_one_that_is_named_acts_itself(
    tmp_path: Path,
) -> None:
    typed(["collect", "--name", "a b", *KG, *FEW, "--policy", "seedling"], tmp_path)
    assert (tmp_path / "runs" / "a b" / "run.toml").is_file()
    out = typed(["train", "--name", "a b"], tmp_path)
    assert next_line(out) == ["eval", "--name", "a b"] and "--name 'a b'" in out
    out = typed(
        ["eval", "--name", "a b", "--suites", "maze", "--tasks", "2", "--policy", "scripted:mazewalk:walker"], tmp_path
    )
    assert "acting with" not in out
    out = typed(["eval", "--name", "a b", "--tasks", "2", "--set", "policy.newest=false"], tmp_path)
    assert "acting with" not in out and "kg" in out


def test_trees_that_are_not_exact_are_trained_on_by_the_line_that_says_so(tmp_path: Path, grown: Path) -> None:
    subprocess.run(["cp", "-r", str(grown), str(tmp_path / "runs")], check=True)
    with sqlite3.connect(tmp_path / "runs/first/trees.sqlite") as store:  # as if a fault had persisted in each of them
        store.execute("UPDATE trees SET reasons = ?", (json.dumps(["a fault persisted"]),))
    out = typed(["collect", "--name", "first", "--tasks", "12", "--set", "search.root_draws=6"], tmp_path)
    assert "no tree is exact: a fault persisted" in out
    told = typed(["train", "--name", "first"], tmp_path, code=2)
    assert "12 inexact, 0 to train on" in told and "--set train.allow_biased=true" in told
    assert "saved" in typed(next_line(out), tmp_path)


def test_trees_of_held_out_tasks_are_looked_at_and_never_trained_on(tmp_path: Path) -> None:
    out = typed(["collect", "--name", "held", *KG, *FEW, "--split", "test"], tmp_path)
    assert next_line(out) == ["show", "--name", "held"]
    assert typed(next_line(out), tmp_path).count("test-") == 4
    assert "no finished tree (split train)" in typed(["train", "--name", "held"], tmp_path, code=2)


@pytest.mark.parametrize(
    "words", [["sft"], ["sft", "--head", "Safe:"], ["dpo", "--min-gap", "0.01"], ["prm", "--epochs", "1"]]
)
def test_every_recipe_says_a_line_that_works(words: list[str], tmp_path: Path, grown: Path) -> None:
    subprocess.run(["cp", "-r", str(grown), str(tmp_path / "runs")], check=True)
    out = typed(["train", *words, "--name", "first"], tmp_path)
    assert "kg" in typed(quick(next_line(out)), tmp_path)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs` of a run with trees of twelve tasks."""
    home = tmp_path_factory.mktemp("grown")
    typed(["collect", "--name", "first", "--suites", "kg", "--tasks", "12", "--set", "search.root_draws=6"], home)
    return home / "runs"


def test_plans_and_scorers_are_used_by_the_line_they_print(tmp_path: Path, grown: Path) -> None:
    subprocess.run(["cp", "-r", str(grown), str(tmp_path / "runs")], check=True)
    learned = (["plans", "plans.jsonl"], ["train", "scorer", "--epochs", "1"], ["train", "steps"])
    for words in ([*line, "--name", "first"] for line in learned):
        out = typed(words, tmp_path)
        assert "kg" in typed(quick(next_line(out)), tmp_path)


class Chat(BaseHTTPRequestHandler):
    """A chat server that knows nothing of token ids: it answers with the first move there is."""

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "chat", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": 'go {"to": "1,0"}'}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer({"id": "1", "object": "chat.completion", "model": "chat", "choices": [choice]})

    def answer(self, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass


def test_trees_of_a_chat_server_are_not_sent_to_an_update_that_cannot_take_them(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        policy = f"openai:chat@http://127.0.0.1:{server.server_port}/v1"
        out = typed(
            ["collect", "--name", "chat", "--suites", "maze", "--tasks", "2", "--policy", policy, *FEW], tmp_path
        )
    finally:
        server.shutdown()
    assert next_line(out)[0] in ("show", "export")
    typed(next_line(out), tmp_path)
    told = typed(["train", "--name", "chat", "--policy", "seedling"], tmp_path, code=2)
    assert "without the policy's tokens and log-probs" in told and "treewright train sft --name chat" in told


def test_workers_over_postgresql_reach_train_show_and_export(tmp_path: Path, new_database: Callable[[], str]) -> None:
    url = new_database()
    out = typed(["collect", "--name", "w", *KG, *FEW, "--workers", "2", "--url", url], tmp_path)
    assert next_line(out) == ["train", "--name", "w"]
    assert "4 to train on" in typed(next_line(out), tmp_path)
    assert "kg" in typed(["show", "--name", "w"], tmp_path)
    typed(["export", "data/w", "--name", "w", "--formats", "raw", "--file-type", "jsonl"], tmp_path)
    typed(["export", "data/x", "--store", url, "--formats", "raw", "--file-type", "jsonl"], tmp_path)
    assert len((tmp_path / "data/w/raw/train.jsonl").read_text().splitlines()) == 4
    assert "whole" in typed(["store", "check", "w"], tmp_path)


def test_run_stores_its_tree_and_says_where(tmp_path: Path) -> None:
    out = typed(["run", "kg/3", "--expansions", "2"], tmp_path)
    assert "stored in runs/run/trees.sqlite" in out
    assert "1 trees, everything is whole" in typed(["store", "check", "run"], tmp_path)


def test_loop_goes_on_measures_and_collects_with_what_it_learnt(tmp_path: Path) -> None:
    line = ["loop", "--name", "l", "--suites", "kg", "--set", "loop.tasks=3", "--set", "search.expansions=1"]
    out = typed([*line, "--set", "loop.iterations=1"], tmp_path)
    assert next_line(out) == ["eval", "--name", "l"]
    assert "acting with" in typed(quick(next_line(out)), tmp_path)
    done = typed(["loop", "--name", "l"], tmp_path)
    (more,) = re.findall(r"more: treewright (.*)", done)
    assert "iteration 2" in typed([*shlex.split(more), "--set", "loop.iterations=2"], tmp_path)


def test_a_second_trainer_of_a_run_waits_its_turn(tmp_path: Path, grown: Path) -> None:
    subprocess.run(["cp", "-r", str(grown), str(tmp_path / "runs")], check=True)
    hold = (
        "import sys, time; from pathlib import Path; from treewright.training.manifest import only_trainer\n"
        "with only_trainer(Path('runs/first/checkpoints'), 'first'):\n    print('held', flush=True); time.sleep(60)"
    )
    other = forked.Child([], tmp_path, environment(), code=hold)
    try:
        assert other.stdout.readline() == "held\n"
        for words in (["train"], ["train", "sft"], ["loop"]):
            told = typed([*words, "--name", "first"], tmp_path, code=2)
            assert f"process {other.pid} trains the run 'first' right now" in told
    finally:
        other.kill()
        other.wait()
    assert "saved" in typed(["train", "--name", "first"], tmp_path)


def test_nothing_is_written_beside_a_damaged_checkpoint(tmp_path: Path, grown: Path) -> None:
    subprocess.run(["cp", "-r", str(grown), str(tmp_path / "runs")], check=True)
    saved = not_none(re.search(r"saved (\S+);", typed(["train", "--name", "first"], tmp_path))).group(1)
    manifest = tmp_path / saved / "manifest.json"
    whole = manifest.read_text()
    for damage in (whole[:100], "[]", '{"step": "x"}'):
        manifest.write_text(damage)
        for words in (["train", "--name", "first"], ["train", "sft", "--name", "first"], ["eval", "--name", "first"]):
            assert "manifest.json is damaged" in typed(words, tmp_path, code=2)
    assert [p.name for p in (tmp_path / saved).parent.glob("step-*")] == [Path(saved).name]


def test_an_update_without_gradient_saves_nothing_and_says_what_to_try(tmp_path: Path) -> None:
    out = typed(
        [
            "collect",
            "--name",
            "flat",
            "--suites",
            "kg",
            "--tasks",
            "1",
            "--set",
            "search.rule=chains",
            "--set",
            "search.root_draws=1",
        ],
        tmp_path,
    )
    told = typed(next_line(out), tmp_path)
    assert "nothing was learnt, so no checkpoint was made" in told
    assert not list((tmp_path / "runs/flat/checkpoints").glob("step-*"))
    assert "kg" in typed(quick(next_line(told)), tmp_path)


def test_interrupted_imitation_goes_on_with_the_epoch_it_was_in(tmp_path: Path, grown: Path) -> None:
    subprocess.run(["cp", "-r", str(grown), str(tmp_path / "runs")], check=True)
    line = ["train", "sft", "--name", "first", "--epochs", "400"]
    child = forked.Child([forked.COMMAND, *line], tmp_path, environment())
    folder, end = tmp_path / "runs/first/checkpoints", time.monotonic() + patient(120)
    while not list(folder.glob("step-*/manifest.json")) and time.monotonic() < end:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=300)
    assert child.returncode == 130 and "Go on with:" in out
    again = shlex.split(not_none(re.search(r"^  treewright (.*)$", out, re.MULTILINE)).group(1))
    assert again == line
    manifest = json.loads(sorted(folder.glob("step-*/manifest.json"))[-1].read_text())
    done = manifest["extra"]["epochs_done"]
    child = forked.Child([forked.COMMAND, *again], tmp_path, environment())
    told = [child.stdout.readline() for _ in range(2)]
    child.kill()
    child.wait()
    assert f"{done} of 400 epochs were made before" in "".join(told)


@pytest.mark.parametrize("name", ["20240501", "true", "1e3", "null"])
def test_a_name_that_looks_like_something_else_is_a_name(name: str, tmp_path: Path) -> None:
    out = typed(["collect", "--name", name, "--suites", "kg", "--tasks", "1", *FEW], tmp_path)
    assert (tmp_path / "runs" / name / "trees.sqlite").is_file()
    assert next_line(out) == ["train", "--name", name]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "x" * 300, "ü" * 101, "--x"])
def test_a_name_that_is_a_way_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    assert "a run's name is one folder's name" in typed(["collect", f"--name={name}", *KG], tmp_path, code=2)
    assert not list(tmp_path.iterdir())


def test_a_policy_that_cannot_act_in_a_world_is_told_so_with_what_may_help(tmp_path: Path) -> None:
    (tmp_path / "mute.py").write_text("def speak(task, turns, tools, rng):\n    return 'what a nice day'\n")
    for words in (["collect", "--name", "mute"], ["eval"], ["eval", "--expansions", "2"]):
        line = [*words, "--suites", "maze", "--tasks", "2", "--policy", "scripted:mute:speak"]
        out = typed(line, tmp_path)
        assert "maze: no draw was an action of this world" in out and "policy.options.grammar=true" in out
        assert re.search(r"│ 0(\.0)? % +│", out)
    out = typed(["eval", "--suites", "kg", "--tasks", "4"], tmp_path)
    assert "no draw was an action" not in out and "valid draws" in out


LOOKS = """
def looks(task, turns, tools, rng):
    found = turns and "Place 3" in turns[-1].observation.text
    return 'answer {"text": "Place 3"}' if found else 'search {"query": "Place 2"}'
"""


@pytest.mark.parametrize("folder", ["hop", "a hop"])
def test_the_words_that_treehop_prints_open_what_it_learnt(folder: str, tmp_path: Path) -> None:
    places = [{"id": f"{i}", "title": f"Place {i}", "text": f"Beside Place {(i + 1) % 8}."} for i in range(8)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(place) + "\n" for place in places))
    asked = {"question": "What is beside Place 2?", "answers": ["Place 3"], "split": "train"}
    (tmp_path / "asked.jsonl").write_text(json.dumps(asked))
    (tmp_path / "hop_looker.py").write_text(LOOKS)
    out = typed(["train", "treehop", folder, "--corpus", "docs.jsonl", "--epochs", "1"], tmp_path)
    (words,) = re.findall(r"with your --questions and (.*)", out)
    line = [*shlex.split(words), "--questions", "asked.jsonl", "--policy", "scripted:hop_looker:looks"]
    assert "worlds.encoder=minilm" in line and f"worlds.retriever=treehop:{folder}" in line
    assert "answer Place 3" in typed(["run", "own/0", "--split", "train", "--expansions", "2", *line], tmp_path)


@pytest.mark.parametrize("beta", ["0.1", "0.5"])
def test_dpo_tells_what_was_learnt_and_not_the_values_before_its_step(beta: str, tmp_path: Path, grown: Path) -> None:
    subprocess.run(["cp", "-r", str(grown), str(tmp_path / "runs")], check=True)
    out = typed(["train", "dpo", "--min-gap", "0.01", "--name", "first", "--beta", beta], tmp_path)
    told = {
        name: float(value) for name, value in re.findall(r"(loss|first_loss|accuracy) +([\d.]+)$", out, re.MULTILINE)
    }
    assert told["first_loss"] == pytest.approx(0.6931, abs=1e-4)  # log 2: policy and reference begin equal
    assert told["loss"] < told["first_loss"] - 0.01 and told["accuracy"] > 0.5


@pytest.mark.parametrize("words", [["collect", "--name", "cart", *FEW], ["eval"]], ids=["collect", "eval"])
def test_the_packaged_model_in_a_world_it_never_saw_is_told_to_act_in_nothing(words: list[str], tmp_path: Path) -> None:
    tasks = [{"id": split, "goal": "keep it up", "horizon": 3, "split": split} for split in ("train", "test")]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    own = ["--suites", "gym:CartPole-v1", "--tasks-file", "tasks.jsonl", "--set", "search.max_tokens=24"]
    out = typed([*words, *own], tmp_path)
    assert "no draw was an action of this world" in out and "policy.options.grammar=true" in out
