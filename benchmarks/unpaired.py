"""What `treewright bench pair` measures beside pairs of builds: against a named peer, or against a goal of its own."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from treewright.benchmarks.pair_work import DRAWS, PROMPT, hf_policy, prompt_of
from treewright.benchmarks.peer_engines import Engine, peer_engines
from treewright.envs.errors import TreewrightError

__all__ = ["UNPAIRED", "Figures", "Unpaired", "against_peers"]

CALLED: Final = {"llama": "llama.cpp (xllamacpp)", "vllm": "vLLM's CPU build"}
Figures = dict[str, tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Unpaired:
    """name  of the part; its figures are NAME_FIGURE;  says  what is measured, for the page;  goal  what was asked for
    measure  figures, of a small size where it is told so
    """

    name: str
    says: str
    goal: str
    measure: Callable[[bool], Figures]


def against_peers(tokens: int, layers: int = 30, length: int = PROMPT, turns: int = 3) -> Figures:
    """Sampled tokens a second of wall clock, eight draws of a prompt, by the `hf:` policy, by `generate` with a static
    cache, and by llama.cpp and vLLM where their Python is named (`peer_engines`): the same model and number of threads,
    in turns, each with the time that the prompt takes and without it.

    `generate` copies the prompt for every draw; what it takes for one token is taken off for the rest. Raises
    TreewrightError where any two disagree on what is likeliest.
    """
    import torch

    longest = 2 * (length + tokens)
    policy = hf_policy(layers, longest)
    found: defaultdict[str, list[float]] = defaultdict(list)
    with peer_engines(policy.model, longest, torch.get_num_threads()) as engines:
        asyncio.run(_turns(policy, engines, tokens, length, turns, found))
    best = {name: min(seconds) for name, seconds in found.items()}
    pace = {name: DRAWS * (tokens - (name == "peer_known")) / took for name, took in best.items()}
    figures = {
        "per_s": (pace["ours"], "tokens/s, the prompt computed too"),
        "known_per_s": (pace["ours_known"], "tokens/s, the prompt known"),
        "peer_per_s": (pace["peer"], "tokens/s, transformers.generate, the prompt computed too"),
        "peer_known_per_s": (pace["peer_known"], "tokens/s, transformers.generate behind its prompt"),
        "vs_peer": (pace["ours"] / pace["peer"], "x"),
        "known_vs_peer": (pace["ours_known"] / pace["peer_known"], "x"),
    }
    for name in (engine.name for engine in engines):
        figures |= {
            f"{name}_per_s": (pace[name], f"tokens/s, {CALLED[name]}, the prompt computed too"),
            f"{name}_known_per_s": (pace[f"{name}_known"], f"tokens/s, {CALLED[name]}, the prompt known"),
            f"vs_{name}": (pace["ours"] / pace[name], "x"),
            f"known_vs_{name}": (pace["ours_known"] / pace[f"{name}_known"], "x"),
        }
    return figures


async def _turns(
    policy: Any, engines: Sequence[Engine], tokens: int, length: int, turns: int, found: dict[str, list[float]]
) -> None:
    import torch

    def generated(ids: tuple[int, ...], count: int, **options: Any) -> Any:
        given = torch.tensor([ids])
        with torch.inference_mode():
            out = policy.model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=count, min_new_tokens=count,
                cache_implementation="static", pad_token_id=0, **options,
            )  # fmt: skip
        return out[:, len(ids) :]

    many = {"do_sample": True, "num_return_sequences": DRAWS, "top_k": 0}
    seeds, check = list(range(DRAWS)), prompt_of(0, length)
    policy.temperature = 0.0
    (own,) = await policy.draw(check, [0], 8)
    policy.temperature = 1.0
    likeliest = {"generate": generated(check.ids, 8, do_sample=False)[0].tolist()}
    likeliest |= {engine.name: engine.draw(check.ids, 1, 8, greedy=True)[1][0] for engine in engines}
    for name, peers in likeliest.items():
        if own.token_ids != tuple(peers):
            raise TreewrightError(
                f"the policy's likeliest tokens are {own.token_ids}, those of {name} {peers}; nothing is timed"
            )
    for number in range(1, turns + 1):
        asked = prompt_of(number, length)
        for name in ("ours", "ours_known"):
            began = time.perf_counter()
            await policy.draw(asked, seeds, tokens)
            found[name].append(time.perf_counter() - began)
        took = []
        for count in (1, tokens):
            began = time.perf_counter()
            generated(asked.ids, count, **many)
            took.append(time.perf_counter() - began)
        found["peer"].append(took[1])
        found["peer_known"].append(took[1] - took[0])
        for engine in engines:
            for name in (engine.name, f"{engine.name}_known"):
                found[name].append(engine.draw(asked.ids, DRAWS, tokens)[0])
    await policy.close()


def _hf(small: bool) -> Figures:
    return against_peers(6, layers=2, length=40, turns=1) if small else against_peers(32, turns=2)


def _viewed(small: bool) -> Figures:
    from treewright.benchmarks import viewing

    return viewing.opening(1_000, 0.5) if small else viewing.opening(100_000)


def _listed(small: bool) -> Figures:
    from treewright.benchmarks import viewing

    return viewing.listing(5, 100) if small else viewing.listing(10_000, 1_000)


def _sessions(small: bool) -> Figures:
    from treewright.benchmarks import tools_sessions

    if small:
        one, eight = (tools_sessions.side_by_side(n, tools_sessions.SLOW, 32) for n in (1, 8))
        return {"8_vs_1_5ms": (one.seconds / eight.seconds, "x")}
    return {name.removeprefix("tool_sessions_"): value for name, value in tools_sessions.figures(quick=False).items()}


UNPAIRED: Final = (
    Unpaired("generate", f"`hf:` policy, {DRAWS} draws of 32 tokens over a prompt of {PROMPT:,}, a random model of "
             "SmolLM2-135M's shape in float32, against `transformers.generate` with a static cache, llama.cpp and the "
             "CPU build of vLLM", "≥ 2 (`vs_peer`)", _hf),
    Unpaired("viewing", "a tree of 100,000 nodes opened and scrolled in Chromium, by its own trace",
             "≤ 1 s, ≥ 30 frames/s", _viewed),
    Unpaired("listing", "`/api/list` of the viewer, 10,000 trees of 1,000 nodes", "≤ 0.5 s", _listed),
    Unpaired("tools_sessions", "MCP sessions side by side against one, calls that take 5 ms and calls that are free",
             "≥ 1.8 (`8_vs_1_5ms`), ≥ 1 (`8_vs_1_free`)", _sessions),
)  # fmt: skip
