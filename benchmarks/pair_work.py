"""One workload of `treewright bench pair`, run by its path with a build's own folder first in PYTHONPATH.

    python pair_work.py NAME SIZE

Prints one line of JSON: {"cost": per unit, "digest": what both builds must agree on}. Where a build keeps a part in
another module, both places are tried; nothing else of a build is known here.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["WORK"]

Done = tuple[float, str]
POSTGRES, MODEL, PROMPTS = "TREEWRIGHT_BENCH_POSTGRES", "TREEWRIGHT_BENCH_MODEL", "TREEWRIGHT_BENCH_PROMPTS"
PROMPTED = "TREEWRIGHT_BENCH_SUITE"  # whose tasks `hf_nodes` prompts with; kg where it is not set
MOVES = [*(f'move {{"to": "{way}"}}' for way in ("north", "east", "south", "west")), "stop {}"]
WAYS = [(f'move {{"to": "{way}"}}', 0.25) for way in ("north", "east", "south", "west")]
PER_POP, SIDE, TRIES = 2.9, 8, 3  # nodes of a pop of four draws, cells of a side, repetitions of which the least counts
TOKENS, WIDTH = 200, 4  # of a node of a store: token ids, children
DRAWS, PROMPT = 8, 1_000  # draws of a prompt, its tokens
SPREAD = 0.1  # of random weights: with .02 the likeliest token is the last one of the prompt, whatever stands before it
WHOLE = 32  # tokens of a draw from which the model has its full size
EPISODES = 16  # episodes at once from which it has its full size, too


def part(name: str, *modules: str) -> Any:
    """A name in the first of these modules that this build has."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if not module.startswith(str(error.name)):
                raise
    raise ImportError(f"this build has none of {', '.join(modules)}")


def _scripts(name: str) -> Any:
    return part(name, "treewright.agent.policies.scripted", "treewright.agent.clients.scripted")


def _walk(task: Any, turns: Any, tools: Any, rng: Random) -> str:
    return MOVES[int(rng.random() * len(MOVES))]


async def _grown(nodes: int, growing: bool) -> tuple[float, Any]:
    """Microseconds of processor time per node of all threads, and the tree."""
    search, rules, types = (import_module(f"treewright.search.{name}") for name in ("engine", "rules", "types"))
    store_of = part("TreeStore", "treewright.search.store")
    suite = part("make_suite", "treewright.envs.maze")(SIDE)
    (task,) = suite.tasks("train", 1)
    policy = _scripts("ScriptedPolicy")(_walk, trainable=False, newest_only=not growing)
    with tempfile.TemporaryDirectory() as folder, store_of.open(Path(folder) / "trees.sqlite") as store:
        began = time.process_time()
        tree = await search.search(
            task, suite, policy, rule=rules.best_first(draws=4), store=store,
            budget=types.Budget(expansions=round(nodes / PER_POP)), settings=search.Settings(max_tokens=32),
        )  # fmt: skip
        took = time.process_time() - began
    return took / len(tree) * 1e6, tree


def engine(size: int, growing: bool = False) -> Done:
    """A maze, a scripted policy, every expansion stored: µs of processor time per node."""
    asyncio.run(_grown(300, growing))
    tries = [asyncio.run(_grown(size, growing)) for _ in range(TRIES if size <= 20_000 else 1)]
    return min(cost for cost, _ in tries), tries[0][1].digest()


def langgraph(size: int) -> Done:
    """µs of processor time that an expansion takes more through the episode graph than by the bare engine."""
    episode_graph = part("episode_graph", "treewright.agent.runs.graph", "treewright.agent.graph")
    engine_, rules, types = (import_module(f"treewright.search.{name}") for name in ("engine", "rules", "types"))
    pool_of = part("Pool", "treewright.search.restore")
    suite = part("make_suite", "treewright.envs.maze")(12)
    (task,) = suite.tasks("train", 1)
    trees: list[Any] = []

    def given() -> dict[str, Any]:
        return {
            "rule": rules.breadth_first(root_draws=2),
            "budget": types.Budget(expansions=size),
            "settings": engine_.Settings(),
        }

    async def bare() -> None:
        trees.append(await engine_.search(task, pool_of(suite.open), _scripts("scripted_choice")(WAYS), **given()))

    async def through() -> None:
        graph = episode_graph(
            pool_of(suite.open), [task], _scripts("scripted_choice")(WAYS),
            on_end=lambda tree, _: trees.append(tree), **given(),
        )  # fmt: skip
        await graph.ainvoke({"task_id": task.id})

    def cost(way: Callable[[], Coroutine[Any, Any, None]]) -> float:
        began = time.process_time()
        asyncio.run(way())
        return (time.process_time() - began) / size * 1e6

    costs = [(cost(bare), cost(through)) for _ in range(TRIES + 1)][1:]
    if len({tree.digest() for tree in trees}) > 1:
        raise ValueError("the graph grew another tree than the engine")
    return min(c for _, c in costs) - min(c for c, _ in costs), trees[0].digest()


def _columns(seed: int, count: int) -> Any:
    import numpy as np

    types = import_module("treewright.envs.types")
    rng, n = np.random.default_rng(seed), count - 1
    return part("Columns", "treewright.search.store.bulk")(
        parent=np.arange(n) // WIDTH,
        text=[f"w{i % 50:02d} " * 50 for i in range(n)],
        sizes=np.full(n, TOKENS),
        ids=rng.integers(0, 150_000, n * TOKENS, dtype=np.int32),
        logprobs=-rng.random(n * TOKENS, dtype=np.float32),
        seed=rng.integers(0, 2**62, n),
        action=[types.Action.of("click", ref=f"e{i % 50}").key for i in range(n)],
        score=rng.random(n),
        pages=[types.Observation(f"page {i} " * 200, f"f{i}") for i in range(20)],
        seen=rng.integers(0, 20, n),
        reward=np.zeros(n),
    )


def _header(index: int) -> Any:
    types, found = import_module("treewright.envs.types"), import_module("treewright.search.types")
    root = found.Outcome(types.Observation("the first page"), found.NodeStatus.OPEN)
    return part("TreeHeader", "treewright.search.tree")(
        run="bench", task=types.Task("bench", f"{index}", "measure"), attempt=0, seed=index, policy_version="v1",
        settings={}, root=root,
    )  # fmt: skip


def _filled(folder: str, trees: int, nodes: int) -> tuple[Path, int, float]:
    """A file with trees of 200 tokens a node; rows, and seconds of wall clock that loading took."""
    load_trees = part("load_trees", "treewright.search.store.bulk")
    some = [_columns(seed, nodes) for seed in range(min(trees, 4))]
    given = [(_header(i), some[i % len(some)]) for i in range(trees)]
    path, began = Path(folder) / "trees.db", time.perf_counter()
    rows = load_trees(str(path), given)
    return path, rows, time.perf_counter() - began


def sqlite(size: int) -> Done:
    """µs of wall clock per row of a bulk load, in trees of 10,000 nodes."""
    with tempfile.TemporaryDirectory() as folder:
        path, rows, took = _filled(folder, max(size // 10_000, 1), min(size, 10_000))
        with part("TreeStore", "treewright.search.store").open(path, read_only=True) as store:
            return took / rows * 1e6, store.load(store.trees()[0].tree_id).digest()


def postgres(size: int) -> Done:
    """The same into PostgreSQL, into a database of its own on the server that TREEWRIGHT_BENCH_POSTGRES names."""
    from sqlalchemy import create_engine, make_url, text

    server, name = make_url(os.environ[POSTGRES]), f"treewright_pair_{os.getpid()}"
    load_trees = part("load_trees", "treewright.search.store.bulk")
    store_of = part("TreeStore", "treewright.search.store")
    engine_ = create_engine(server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    nodes = min(size, 10_000)
    some = [_columns(seed, nodes) for seed in range(4)]
    given = [(_header(i), some[i % len(some)]) for i in range(max(size // 10_000, 1))]
    with engine_.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            url = server.set(database=name).render_as_string(hide_password=False)
            began = time.perf_counter()
            rows = load_trees(url, given)
            took = time.perf_counter() - began
            with store_of.open(url, read_only=True) as store:
                return took / rows * 1e6, store.load(store.trees()[0].tree_id).digest()
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def arrays(size: int) -> Done:
    """Seconds of processor time to read the arrays of a store."""
    with tempfile.TemporaryDirectory() as folder:
        path, _, _ = _filled(folder, max(size // 10_000, 1), min(size, 10_000))
        with part("TreeStore", "treewright.search.store").open(path, read_only=True) as store:
            names = [row.tree_id for row in store.trees()]
            costs = []
            for _ in range(TRIES):
                began = time.process_time()
                found = store.arrays(names)
                costs.append(time.process_time() - began)
            held = hashlib.sha256()
            for name in ("node", "parent", "share", "reward"):
                held.update(found[name].tobytes())
            return min(costs), held.hexdigest()


def viewer(size: int) -> Done:
    """Seconds of processor time in which the viewer's server has a whole tree ready for the browser."""
    client_of = part("TestClient", "starlette.testclient")
    with tempfile.TemporaryDirectory() as folder:
        path, rows, _ = _filled(folder, 1, size)
        with part("TreeStore", "treewright.search.store").open(path, read_only=True) as store:
            tree = store.trees()[0].tree_id
            client = client_of(
                part("make_app", "treewright.agent.view")(store, "bench"), base_url="http://127.0.0.1:8000"
            )
            began = time.process_time()
            answer = client.get(f"/bench/api/tree/{tree}")
            took = time.process_time() - began
    answer.raise_for_status()
    told = answer.json()
    held = json.dumps([rows, told["columns"]["parent"], told["pops"]], sort_keys=True)
    return took, hashlib.sha256(held.encode()).hexdigest()


def hf_policy(layers: int, longest: int) -> Any:
    """A policy that draws from a random model of SmolLM2-135M's shape in float32, or of fewer layers."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=longest, tie_word_embeddings=True, initializer_range=SPREAD,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape).float().eval()
    seedling = part("SEEDLING", "treewright.agent.policies.policy", "treewright.agent.policy")
    policy_of = part("HFPolicy", "treewright.agent.policies.hf", "treewright.agent.clients.hf")
    policy = policy_of(model, AutoTokenizer.from_pretrained(str(seedling)), name="bench", version="v0")
    policy.stop_ids = []  # every draw is as long as it may be
    return policy


def prompt_of(number: int, length: int) -> Any:
    """A prompt of random tokens; any two differ from the first one on."""
    context = part("Context", "treewright.search.types")
    rng = Random(number)
    ids = (1000 + number, *(rng.randrange(2000, 49_000) for _ in range(length - 1)))
    return context(keep=0, delta=(), ids=ids)


def hf(size: int, known: bool = False) -> Done:
    """µs of wall clock per sampled token, eight draws of `size` tokens; `known`: the prompt was drawn from before.

    What must agree is what is likeliest: random numbers that fall within the rounding of an edge may differ.
    """
    full = size >= WHOLE
    policy = hf_policy(30 if full else 2, 2048)
    length, seeds = PROMPT if full else 40, list(range(DRAWS))

    async def timed() -> tuple[float, Any]:
        costs = []
        await policy.draw(prompt_of(0, length), seeds, 4)
        for number in range(1, TRIES):
            asked = prompt_of(number, length)
            if known:
                await policy.draw(asked, seeds[:1], 1)
            began = time.perf_counter()
            done = await policy.draw(asked, seeds, size)
            costs.append((time.perf_counter() - began) / sum(len(one.token_ids) for one in done))
        policy.temperature = 0.0
        likeliest = await policy.draw(prompt_of(0, length), [0], 8)
        await policy.close()
        return min(costs), [one.token_ids for one in likeliest]

    cost, likeliest = asyncio.run(timed())
    return cost * 1e6, hashlib.sha256(repr(likeliest).encode()).hexdigest()


def episodes(size: int) -> Done:
    """µs of wall clock per sampled token of `size` episodes at once, as an agent's prompts grow: 110 tokens that all
    share, 30 of their own, then three turns of 40 more; two draws of 16 tokens at each turn."""
    full = size >= EPISODES
    policy, rng = hf_policy(30 if full else 2, 2048), Random(0)
    shared = prompt_of(0, 110).ids
    context = part("Context", "treewright.search.types")

    def more(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2000, 49_000) for _ in range(length))

    async def timed() -> tuple[float, Any]:
        costs = []
        for _ in range(3):
            prompts, cost, drawn = [shared + more(30) for _ in range(size)], 0.0, 0
            for _ in range(4):
                began = time.perf_counter()
                asked = (policy.draw(context(keep=0, delta=(), ids=ids), [0, 1], 16) for ids in prompts)
                done = await asyncio.gather(*asked)
                cost += time.perf_counter() - began
                drawn += sum(len(one.token_ids) for row in done for one in row)
                prompts = [ids + more(40) for ids in prompts]
            costs.append(cost / drawn)
        policy.temperature = 0.0
        asked = (policy.draw(context(keep=0, delta=(), ids=ids), [0], 2) for ids in prompts)
        likeliest = await asyncio.gather(*asked)
        await policy.close()
        return min(costs), [one.token_ids for row in likeliest for one in row]

    cost, likeliest = asyncio.run(timed())
    return cost * 1e6, hashlib.sha256(repr(likeliest).encode()).hexdigest()


def nodes(size: int) -> Done:
    """µs of wall clock per sampled token of `size` nodes at once, eight draws of up to 24 tokens, of the model that
    TREEWRIGHT_BENCH_MODEL names, behind the prompts whose tokens the file TREEWRIGHT_BENCH_PROMPTS lists."""
    policy_of = part("HFPolicy", "treewright.agent.policies.hf", "treewright.agent.clients.hf")
    context = part("Context", "treewright.search.types")
    policy = policy_of.load(os.environ[MODEL])
    listed = json.loads(Path(os.environ[PROMPTS]).read_text())[:size]
    prompts = [context(keep=0, delta=(), ids=tuple(ids)) for ids in listed]

    async def timed() -> tuple[float, Any]:
        costs = []
        for turn in range(TRIES):
            began, before = time.perf_counter(), policy.stats.sampled_tokens
            seeds = [1000 * turn + i for i in range(DRAWS)]
            await asyncio.gather(*(policy.draw(prompt, seeds, 24) for prompt in prompts))
            costs.append((time.perf_counter() - began) / (policy.stats.sampled_tokens - before))
        policy.temperature = 0.0
        likeliest = await asyncio.gather(*(policy.draw(prompt, [0], 8) for prompt in prompts))
        await policy.close()
        return min(costs), [one.token_ids for row in likeliest for one in row]

    cost, likeliest = asyncio.run(timed())
    return cost * 1e6, hashlib.sha256(repr(likeliest).encode()).hexdigest()


def command(*words: str) -> Done:
    """A command line in this process, whose whole cost the parent measures; both must end well and say something."""
    main = part("main", "treewright.agent.cli.main", "treewright.agent.cli")
    sys.argv, said = ["treewright", *words], io.StringIO()
    try:
        with redirect_stdout(said):
            main()
    except SystemExit as end:
        if end.code:
            raise
    return 0.0, "ended well"


def loop(tasks: int) -> Done:
    """The most resident memory, GB, of a round of the loop on a real model, whose folder TREEWRIGHT_BENCH_MODEL names.

    An entropy bonus lets every tree count, whatever its reward, so that the optimizer's step is part of it.
    """
    few = {
        "loop.iterations": 1, "loop.tasks": tasks, "search.expansions": 1, "search.root_draws": 2, "search.draws": 2,
        "search.max_tokens": 16, "train.max_tokens": 1024, "train.chunk_tokens": 1024, "train.entropy_coef": 0.001,
    }  # fmt: skip
    words = [word for name, value in few.items() for word in ("--set", f"{name}={value}")]
    model = f"hf:{os.environ[MODEL]}"
    done = command("loop", "--name", "m", "--suites", "kg", "--policy", model, *words)
    if not list(Path("runs/m/checkpoints").glob("step-*/model.safetensors")):
        raise ValueError("the loop trained on nothing")
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(peak) * 1024 / 1e9, done[1]


WORK: dict[str, Callable[[int], Done]] = {
    "loop": loop,
    "engine": engine,
    "growing": lambda size: engine(size, growing=True),
    "langgraph": langgraph,
    "sqlite": sqlite,
    "postgres": postgres,
    "arrays": arrays,
    "viewer": viewer,
    "hf": hf,
    "hf_known": lambda size: hf(size, known=True),
    "episodes": episodes,
    "nodes": nodes,
    "run": lambda _: command("run", "kg/3"),
    "help": lambda _: command("--help"),
    "config": lambda _: command("config"),
}

if __name__ == "__main__":
    cost, digest = WORK[sys.argv[1]](int(float(sys.argv[2])))
    print(json.dumps({"cost": cost, "digest": digest}))
