"""An installed package brings one of each kind of part: by the name of its entry point, and by module:object."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.envs import TreewrightError
from treewright.search.store import TreeStore

PLUGIN = Path(__file__).parents[1] / "plugin"
NAMES = {
    "world": ("plug_world", "SUITE"), "desk": ("plug_desk", "Desk"), "policy": ("plug_policy", "Clerk"),
    "proposer": ("plug_proposer", "Counted"), "template": ("plug_template", "Renamed"),
    "rule": ("plug_rule", "deepest"), "evaluator": ("plug_judge", "Steady"), "estimator": ("plug_estimator", "halved"),
    "loss": ("plug_loss", "plain_ratio"), "exporter": ("plug_rows", "sizes"), "tracker": ("plug_tracker", "TextFile"),
}  # fmt: skip
WAYS = {
    "entry point": {kind: entry for kind, (entry, _) in NAMES.items()},
    "module:object": {kind: f"tw_plugin:{thing}" for kind, (_, thing) in NAMES.items()},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the package into."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    line = [sys.executable, "-P", "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
            "--disable-pip-version-check", "--target", str(target), str(source)]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def used(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the package's parts were used with, as far as they were since the test began."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(installed))
    import tw_plugin

    tw_plugin.USED.clear()
    yield tw_plugin.USED
    sys.modules.pop("tw_plugin", None)


def call(*words: str) -> str:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, words)
    if result.exception is not None:
        raise result.exception
    return result.output


def sets(**values: Any) -> list[Any]:
    return [w for key, value in values.items() for w in ("--set", f"{key.replace('__', '.')}={value}")]


def trees(name: str) -> list[Any]:
    with TreeStore.open(Path("runs") / name / "trees.sqlite", read_only=True) as store:
        return [store.load(row.tree_id) for row in store.trees()]


@pytest.mark.parametrize("way", WAYS)
def test_run_collect_and_eval_take_a_world_a_policy_a_proposer_a_rule_and_a_judge(
    used: dict[str, Any], way: str
) -> None:
    named = WAYS[way]
    acting = ["--policy", named["policy"], *sets(
        policy__options__word="kim", policy__proposer=named["proposer"], policy__proposer_options__mark="x",
        search__rule=named["rule"], search__options__tilt=3.0, search__evaluator=named["evaluator"],
        search__evaluator_options__worth=0.25, search__expansions=2,
    )]  # fmt: skip
    expected = {"policy": "kim", "proposer": "x", "rule": 3.0, "evaluator": 0.25}
    call("collect", "-n", "a", "--suites", named["world"], "--tasks", "2", *acting)
    assert used == expected
    for tree in trees("a"):
        assert "deepest(tilt=3.0)" in tree.header.settings["rule"] and tree.header.policy_version == "clerk-kim"
        assert {tree.score[i] for i in tree.children[0]} == {0.25}
    used.clear()
    assert "plug_world/" in call("run", f"{named['world']}/0", "-n", "b", *acting) and used == expected
    used.clear()
    assert "plug_world" in call("eval", "--suites", named["world"], "--tasks", "2", "--expansions", "2", *acting)
    assert used == expected


@pytest.mark.parametrize("way", WAYS)
def test_loop_and_train_take_a_template_an_estimator_a_loss_and_a_tracker_and_export_takes_a_format(
    used: dict[str, Any], way: str
) -> None:
    named = WAYS[way]
    learning = ["--suites", named["world"], *sets(
        policy__options__template=named["template"], policy__options__template_options='{"suite": "kg"}',
        policy__proposer=named["proposer"], policy__proposer_options__mark="l", search__rule=named["rule"],
        search__evaluator=named["evaluator"], search__expansions=2, train__estimator=named["estimator"],
        train__options__omega=0.75, train__loss=named["loss"], train__loss_options__scale=2.0,
        track__trackers=json.dumps([named["tracker"]]),
        track__options=json.dumps({named["tracker"]: {"file": "mine.txt"}}), loop__tasks=6, loop__iterations=1,
    )]  # fmt: skip
    expected = {"template": "kg", "proposer": "l", "rule": 1.0, "evaluator": 0.5, "estimator": 0.75, "loss": 2.0}
    call("loop", "-n", "l", *learning)
    assert used == expected
    used.clear()
    call("collect", "-n", "l", "--tasks", "6", "--batch", "1")  # everything else is remembered
    call("train", "-n", "l")
    assert used == expected
    metrics = [json.loads(line) for line in Path("runs/l/metrics.jsonl").read_text().splitlines()]
    told = [line.split() for line in Path("runs/l/mine.txt").read_text().splitlines()]
    assert told == [["l"], _told(metrics[0]), ["l"], _told(metrics[1])]
    call("export", "data", "-n", "l", "--formats", f"sft,{named['exporter']}", "--set", "least=3", "--min-outcome=-9",
         "--file-type", "jsonl")  # fmt: skip
    assert used["exporter"] == 3
    table = named["exporter"].replace(":", "_")
    rows = [json.loads(line) for line in Path(f"data/{table}/train.jsonl").read_text().splitlines()]
    grown = {tree.tree_id: tree for tree in trees("l") if len(tree) >= 3}
    assert {row["tree_id"]: row["nodes"] for row in rows} == {key: len(tree) for key, tree in grown.items()}
    assert all(len(row["values"]) == row["nodes"] for row in rows)
    assert "The size of each tree." in Path("data/README.md").read_text()
    from datasets import load_dataset

    assert load_dataset("data", table)["train"]["nodes"] == [row["nodes"] for row in rows]


def _told(row: Any) -> list[Any]:
    return [str(row["step"]), f"{row['loss']:.6f}"]


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_class_of_a_package_is_a_world_for_own_tasks_and_never_sees_the_truth(
    used: dict[str, Any], way: str
) -> None:
    task = {"id": "one", "goal": "file a", "split": "train", "truth": {"letter": "a"}}
    Path("tasks.jsonl").write_text(json.dumps(task))
    Path("judging.py").write_text(
        "def reward(task, history, desk):\n    return float(desk.filed == [task.truth['letter']])\n"
    )
    call("collect", "-n", "d", "--suites", WAYS[way]["desk"], "--tasks-file", "tasks.jsonl", "--reward",
         "judging:reward", "--policy", WAYS[way]["policy"], *sets(search__expansions=2))  # fmt: skip
    (tree,) = trees("d")
    assert max(tree.outcome_of(leaf) for leaf in tree.leaves()) == 1.0
    with pytest.raises(TreewrightError, match="has no tasks of its own"):
        call("collect", "-n", "e", "--suites", WAYS[way]["desk"], "--policy", WAYS[way]["policy"])


WRONG = [
    ("policy", sets(policy__options__wrod="kim"), "did you mean 'word'"),
    ("proposer", sets(policy__proposer="{}", policy__proposer_options__marc="x"), "did you mean 'mark'"),
    ("rule", sets(search__rule="{}", search__options__tlit=3), "did you mean 'tilt'"),
    ("evaluator", sets(search__evaluator="{}", search__evaluator_options__wroth=3), "did you mean 'worth'"),
    ("estimator", sets(train__estimator="{}", train__options__omgea=3), "did you mean 'omega'"),
    ("loss", sets(train__loss="{}", train__loss_options__scael=3), "did you mean 'scale'"),
    ("template", sets(policy__options__template="{}", policy__options__template_options='{"siute": "kg"}'),
     "did you mean 'suite'"),
    ("tracker", sets(track__trackers="{}", track__options='{"{}": {"fiel": 1}}'), "did you mean 'file'"),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "words", "said"), WRONG, ids=[w[0] for w in WRONG])
def test_an_option_that_a_part_does_not_take_is_an_error_with_the_nearest(
    used: dict[str, Any], way: str, kind: str, words: list[Any], said: str
) -> None:
    named = WAYS[way]
    words = [word.replace("{}", named[kind]) for word in words]
    trains = kind in ("estimator", "loss", "template", "tracker")
    begin = ["loop"] if trains else ["collect", "--tasks", "1", "--policy", named["policy"]]
    with pytest.raises(TreewrightError, match=said):
        call(*begin, "-n", "w", "--suites", named["world"], *words)
    assert not (Path("runs/w/trees.sqlite").exists() and trees("w"))


@pytest.mark.parametrize("way", WAYS)
def test_an_exporters_wrong_option_is_told_before_anything_is_written(used: dict[str, Any], way: str) -> None:
    named = WAYS[way]
    call("collect", "-n", "x", "--suites", named["world"], "--tasks", "1", "--policy", named["policy"])
    for formats, option, said in (
        (named["exporter"], "laest=3", "did you mean 'least'"),
        ("sft", "least=3", "has an option 'least'"),
        (f"{named['exporter']},sft", "least", "no '='"),
    ):
        with pytest.raises(TreewrightError, match=said):
            call("export", "data", "-n", "x", "--formats", formats, "--set", option)
        assert not Path("data").exists()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("search.rule=plug_rul", "did you mean 'plug_rule'"),
        ("search.evaluator=tw_plugin:Stedy", "did you mean 'Steady'"),
        ("train.estimator=plug_estimater", "did you mean 'plug_estimator'"),
        ("train.loss=plug_los", "did you mean 'plug_loss'"),
        ("policy.options.template=plug_templat", "did you mean 'plug_template'"),
        ("policy.proposer=plug_propose", "did you mean 'plug_proposer'"),
        ("track.trackers=plug_track", "did you mean 'plug_tracker'"),
        ("worlds.suites=[\"plug_wrold\"]", "did you mean 'plug_world'"),
        ("policy.spec=plug_polic", "plug_policy"),
    ],
)  # fmt: skip
def test_a_misspelt_name_offers_what_an_installed_package_has(used: dict[str, Any], key: str, said: str) -> None:
    suites = [] if key.startswith("worlds") else ["--suites", "kg"]
    with pytest.raises(TreewrightError, match=said):
        call("collect" if key.startswith("policy.spec") else "loop", "-n", "m", *suites, "--set", key)


@pytest.mark.parametrize("key", ["search.rule", "search.evaluator", "policy.proposer", "policy.spec"])
def test_a_part_that_raises_while_it_is_made_is_told_with_its_place(used: dict[str, Any], key: str) -> None:
    Path("raising.py").write_text("class Part:\n    def __init__(self):\n        raise KeyError('no such table')\n")
    Path("raising_around.py").write_text("def part(policy):\n    return policy.nothing_like_it\n")
    part, said = ("raising_around:part", "line 2") if key == "policy.proposer" else ("raising:Part", "line 3")
    with pytest.raises(TreewrightError, match=said):
        call("collect", "-n", "r", "--suites", "kg", "--tasks", "1", "--set", f"{key}={part}")
    for module in ("raising", "raising_around"):
        sys.modules.pop(module, None)
