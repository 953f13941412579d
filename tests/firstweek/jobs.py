"""Ten jobs of somebody's first week, as the documents say them, with the lines and files that stand there.

Each job is a function of a Terminal in an empty folder. None of them knows the inside of the package.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from terminal import Stopped, Terminal, expect, go_on_line, next_line

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "helpers"))
EXAMPLES = ROOT / "examples"
JOBS: dict[str, Callable[[Terminal], None]] = {}


def job(function: Callable[[Terminal], None]) -> Callable[[Terminal], None]:
    JOBS[function.__name__] = function
    return function


def block(page: str, after: str, kind: str) -> str:
    """The first block of code of that kind that stands after a text on a page."""
    text = (ROOT / page).read_text()
    if after not in text:
        raise Stopped(f"{page} no longer says {after!r}")
    found = re.search(rf"```{kind}\n(.*?)```", text[text.index(after) :], re.DOTALL)
    if found is None:
        raise Stopped(f"{page} has no block of {kind} after {after!r}")
    return found[1]


def lines(code: str) -> list[str]:
    return [line.partition(" #")[0].strip() for line in code.splitlines() if line.startswith("treewright ")]


def copied(terminal: Terminal, *names: str) -> None:
    for name in names:
        source = EXAMPLES / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, terminal.folder / name)


@job
def own_class(t: Terminal) -> None:
    """README: a world of your own, by pasting what stands there."""
    t.write("mymodule.py", block("README.md", "<!-- readme_world -->", "python"))
    t.write("tasks.jsonl", block("README.md", "<!-- readme_world -->", "json"))
    collect, run = lines(block("README.md", "Tasks are JSON lines", "bash"))
    expect(t.type(run), "file every letter", "stored in")
    out = expect(t.type(collect), r"valid draws", "stored in")
    t.follow(out)  # the packaged model knows no letters: where nothing was learnt, the next line says what to try


@job
def own_corpus(t: Terminal) -> None:
    """docs/retrieval.md: questions over own documents, asked of a chat server."""
    import chat_server

    copied(t, "own_corpus.jsonl", "own_questions.jsonl")
    own = "--corpus own_corpus.jsonl --questions own_questions.jsonl"
    with chat_server.serving() as url:
        policy = f"--policy openai:chat@{url}"
        expect(t.type(f"treewright run own/0 {own} {policy}"), "reward 1")
        expect(t.type(f"treewright eval {own} {policy}"), r"own +│ 2 +│ 100.0 %")
        t.follow(t.type(f"treewright collect --name own {own} {policy} --split test"))
    out = t.type(f"treewright eval {own} {policy} --set policy.options.deadline=3", code=2)  # the server is gone
    expect(out, "error: ", re.escape(url.removesuffix("/v1").removeprefix("http://")))


@job
def langgraph_agent(t: Terminal) -> None:
    """docs/judging.md: an agent of one's own as the policy."""
    copied(t, "langgraph_agent.py")
    expect(t.type("treewright run maze/0 --policy langgraph:langgraph_agent:agent"), "move", "stored in")
    t.follow(t.type("treewright collect --name agent --suites maze --tasks 4 --policy langgraph:langgraph_agent:agent"))


@job
def own_site(t: Terminal) -> None:
    """docs/web.md: a site of one's own; nothing on it is bought."""
    copied(t, "website.py", "website.jsonl")
    words = "--tasks-file website.jsonl --reward website:reward --policy scripted:website:visitor"
    expect(t.type(f"treewright run website:pages/first {words}"), "oracle pick 1")
    t.follow(t.type(f"treewright collect --name site --suites website:pages {words}"))


@job
def mcp_servers(t: Terminal) -> None:
    """docs/worlds.md: a server from PyPI by one line, one from npm by a file."""
    t.write("model.py", SCRIPT)
    line = re.search(r'--suites "(mcp:[^"]*mcp-server-time)"', (ROOT / "docs/worlds.md").read_text())
    if line is None:
        raise Stopped("docs/worlds.md no longer shows mcp-server-time")
    out = t.type(f'treewright run "{line[1]}/0" --policy scripted:model:clock --expansions 2')
    expect(out, "get_current_time", "stored in")
    t.write("memory.toml", block("docs/worlds.md", "Give it a folder:", "toml"))
    (t.folder / "graph").mkdir()
    out = t.type("treewright run mcp:memory.toml/0 --policy scripted:model:remember --expansions 3")
    expect(out, "create_entities", "stored in")


SCRIPT = """
import json

def clock(task, turns, tools, rng):
    if turns:
        return 'done {"answer": "now"}'
    return 'get_current_time {"timezone": "UTC"}'

def remember(task, turns, tools, rng):
    if turns:
        return 'read_graph {}'
    name = rng.choice(["ada", "ben"])
    return "create_entities " + json.dumps({"entities": [{"name": name, "entityType": "person", "observations": []}]})
"""


@job
def gym_game(t: Terminal) -> None:
    """docs/worlds.md: a text game that a module registers, with an argument."""
    t.write("mygames.py", GAME)
    expect(t.type('treewright run "gym:mygames:my/Rooms-v0?word=key/0" --policy scripted:mygames:player'), "take key")
    t.follow(t.type('treewright collect --name game --suites "gym:mygames:my/Rooms-v0" --tasks 3 --policy '
                    "scripted:mygames:player"))  # fmt: skip


GAME = '''
import string
import gymnasium
from gymnasium import spaces

class Rooms(gymnasium.Env):
    """A thing lies in one of two rooms."""
    text = spaces.Text(80, charset=string.ascii_letters + string.digits + " .,")
    observation_space = text
    action_space = text

    def __init__(self, word="lamp", render_mode=None):
        self.word = word

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room, self.there = 0, int(self.np_random.integers(2))
        return "a hall", {"admissible_commands": self.commands()}

    def commands(self):
        return ["go left", "go right", *([f"take {self.word}"] if self.room == self.there + 1 else [])]

    def step(self, action):
        if action not in self.commands():
            raise ValueError(f"you cannot {action}")
        if action.startswith("take"):
            return "taken", 1.0, True, False, {}
        self.room = 1 if action == "go left" else 2
        return f"room {self.room}", 0.0, False, False, {"admissible_commands": self.commands()}

gymnasium.register(id="my/Rooms-v0", entry_point=Rooms, max_episode_steps=6)

def player(task, turns, tools, rng, first):
    """Takes what can be taken, else walks."""
    import json
    seen = (turns[-1].observation if turns else first).text
    can = json.dumps(tools[0].parameters) + seen
    take = [word for word in ("key", "lamp") if f"take {word}" in can]
    return "act " + json.dumps({"action": f"take {take[0]}" if take else rng.choice(["go left", "go right"])})
'''


@job
def tasks_and_datasets(t: Terminal) -> None:
    """Own tasks, then docs/datasets.md: SFT and DPO rows out of the trees, and back again."""
    copied(t, "own_tools.py", "own_tools.jsonl")
    own = "--suites own_tools:Shelf --tasks-file own_tools.jsonl --reward own_tools:reward"
    out = t.type(f"treewright collect --name shelf {own} --policy scripted:own_tools:clerk --set search.root_draws=6 "
                 "--set search.draws=4")  # fmt: skip
    t.follow(out)
    expect(t.type("treewright export data/shelf2 --name shelf --formats sft,dpo,raw --file-type jsonl"), "sft", "dpo")
    for kind, keys in (("sft", {"prompt", "completion"}), ("dpo", {"prompt", "chosen", "rejected"})):
        rows = [json.loads(row) for row in (t.folder / f"data/shelf2/{kind}/train.jsonl").read_text().splitlines()]
        if not rows or not keys <= set(rows[0]):
            raise Stopped(f"{kind} has {len(rows)} rows, the first with {sorted(rows[0]) if rows else 'nothing'}")
    t.type("treewright import data/shelf2 --name again")
    expect(t.type("treewright store check again"), "whole")


@job
def workers(t: Terminal) -> None:
    """docs/store.md: processes that share tasks over PostgreSQL; their trees reach every command."""
    import databases

    if (why := databases.missing()) is not None:
        raise Stopped(why)
    with databases.cluster() as new_url:
        out = t.type(f"treewright collect --name many --suites kg --tasks 6 --workers 2 --url '{new_url()}'")
        t.follow(out)
        expect(t.type("treewright show --name many"), "kg")
        t.type("treewright export data/many --name many --formats raw --file-type jsonl")
        expect(t.type("treewright store check many"), "whole")


@job
def metrics(t: Terminal) -> None:
    """README: collect, train, measure; numbers of every update, a report, a comparison."""
    t.type("treewright config --explain train.estimator")
    out = t.type("treewright collect --name one --suites kg --tasks 8 --set search.root_draws=6")
    out = expect(t.type(next_line(out)), "grad_norm", "kl", "saved")
    expect(t.type(f"{next_line(out)} --tasks 8"), "acting with", r"kg +│ 8")
    t.type("treewright collect --name two --suites kg --tasks 8 --set search.root_draws=6 --set seed=1")
    t.type("treewright compare one two")
    t.type("treewright report one")
    expect(t.type("treewright store stats one"), "kg")


@job
def resume(t: Terminal) -> None:
    """README: Ctrl-C, then the line that is printed; nothing is grown twice."""
    line = "treewright collect --name r --suites kg --tasks 30 --set search.trees=2"
    out = t.type(line, code=130, stop_after="3/30")
    t.follow(t.type(go_on_line(out)), most=1)
    expect(t.type("treewright store check r"), r"30 trees")
    out = t.type("treewright loop --name l --suites kg --set loop.iterations=2 --set loop.tasks=4", code=(0, 130),
                 stop_after="iteration 1")  # fmt: skip
    out = t.type("treewright loop --name l")
    t.type(f"{next_line(out)} --tasks 4")
