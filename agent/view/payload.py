"""From what was read to the JSON that the page takes. Texts are cleaned here; the page shows them as text only."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.agent.policies.policy import SEEDLING
from treewright.agent.view.finding import Hit
from treewright.agent.view.reading import Columns, Listing, Reader, Turn
from treewright.agent.view.report import clean
from treewright.agent.view.weights import Weights
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Observation
from treewright.search.store import TreeRow
from treewright.search.tree import Tree

__all__ = [
    "Decode",
    "advantage_json",
    "columns_json",
    "decoder",
    "dump",
    "facets_json",
    "find_decoder",
    "list_json",
    "turns_json",
]

Decode = Callable[[Sequence[int]], str]

TEXT = 200_000  # characters of one text that are shown
CREDITED = 200_000  # nodes of a tree up to which its credit is computed on demand
PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
SENT = {
    "parent": "<i4", "born": "<i4", "mult": "<i4", "drawn": "<i4", "n_tokens": "<i4", "share": "<f4",
    "keep_prob": "<f4", "reward": "<f4", "score": "<f4", "status": "<i1", "effect": "<i1", "flags": "<i1",
}  # fmt: skip


def dump(value: Any) -> str:
    """JSON in ASCII that can also stand inside a script element: no '<', '>' or '&', no NaN."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def decoder(path: str | Path) -> Decode:
    """Token ids to text by the tokenizer.json in a folder, or such a file. Raises TreewrightError without one."""
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TreewrightError("decoding tokens needs tokenizers; type: pip install 'treewright[train]'") from error
    if not file.is_file():
        raise TreewrightError(f"no tokenizer at {file}; name a model folder or its tokenizer.json")
    try:
        made = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise TreewrightError(f"{file} is not a tokenizer: {error}; name a model's tokenizer.json") from error
    return lambda ids: str(made.decode(list(ids), skip_special_tokens=False))


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _text(value: str, limit: int = TEXT) -> str:
    text = clean(value)
    return text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit:,} more characters"


def row_json(row: TreeRow, goal: str, weights: Weights) -> dict[str, Any]:
    return {
        "id": row.tree_id,
        "weights": _text(weights.name(row.policy_version, row.run), 300),
        **{name: _text(getattr(row, name), 300) for name in ("run", "suite", "task_id", "split", "policy_version")},
        "goal": _text(goal, 2000),
        "attempt": row.attempt,
        "status": row.status,
        "nodes": row.nodes,
        "chosen": row.chosen,
        "stopped_by": None if row.stopped_by is None else _text(row.stopped_by, 300),
        "outcome": _number(row.outcome),
        "success": row.success,
        "reasons": [_text(reason, 300) for reason in row.reasons],
        "tokens": row.spent.policy_tokens + row.spent.closing_tokens,
        "steps": row.spent.env_steps + row.spent.closing_steps,
        "expansions": row.spent.expansions,
        "seconds": _number(row.spent.seconds),
        "created": row.created,
    }


def list_json(listing: Listing, weights: Weights) -> dict[str, Any]:
    rows = [row_json(row, goal, weights) for row, goal in listing.rows]
    for row in rows:
        if (hit := listing.hits.get(row["id"])) is not None:
            row["hit"] = _hit(hit)
    counts = {"total": listing.total, "done": listing.done, "solved": listing.solved}
    return {"rows": rows, **counts, "indexed": listing.indexed}


def _hit(hit: Hit) -> dict[str, Any]:
    words = {name: _text(getattr(hit, name), 300) for name in ("before", "found", "after")}
    return {"node": hit.node, "kind": hit.kind, "nodes": hit.nodes, **words}


def pack(values: NDArray[Any], dtype: str) -> str:
    """Little-endian bytes in base64: a tenth of the size and time of numbers in JSON."""
    return base64.b64encode(values.astype(dtype).tobytes()).decode()


def columns_json(columns: Columns, weights: Weights) -> dict[str, Any]:
    return {
        **row_json(columns.row, columns.goal, weights),
        "columns": {name: pack(columns.arrays[name], dtype) for name, dtype in SENT.items()},
        "labels": None if columns.labels is None else [clean(text) for text in columns.labels],
        "pops": pack(columns.pops, "<i4"),
        "sampled": pack(columns.tokens, "<f4"),
    }


def advantage_json(reader: Reader, tree_id: str) -> dict[str, Any]:
    """SPLIT-LOO advantages of a finished tree by itself: [N] float32 and why they are biased, if they are.

    An advantage is the draw's value over its baseline, U − b: the credit without the node's weight.

    Raises TreewrightError for a tree that still grows (its rewards are sealed) or that is too large.
    """
    from treewright.training.credit import estimate
    from treewright.training.credit.trees import tree_arrays

    if reader.store.status(tree_id) != "done":
        raise TreewrightError("rewards are sealed until the search ends; advantages need them")
    tree = _loaded(reader, tree_id)
    arrays = tree_arrays([tree])
    credit = estimate("split_loo", arrays, allow_biased=True)
    advantage = np.divide(credit.coef, credit.weight, out=np.zeros(len(tree)), where=credit.weight > 0)
    return {"values": pack(advantage, "<f4"), "biased": [_text(reason, 300) for reason in arrays.why_inexact()[0]]}


def _loaded(reader: Reader, tree_id: str) -> Tree:
    size = len(reader.store.arrays([tree_id])["node"])
    if size > CREDITED:
        raise TreewrightError(f"the tree has {size} nodes; the viewer credits trees of up to {CREDITED}")
    return reader.store.load(tree_id)


def turn_json(turn: Turn, decode: Decode | None, limit: int = TEXT) -> dict[str, Any]:
    """One node with its texts, tokens with log-probs, and what its prompt adds."""
    done, seen = turn.completion, turn.observation
    return {
        "node": turn.node,
        "text": _text(done.text, limit),
        "action": None if turn.action is None else _text(str(turn.action), limit),
        "calls": None if turn.action is None else _calls(turn.action, limit),
        "error": None if turn.error is None else _text(turn.error, limit),
        "fault": None if turn.fault is None else _text(turn.fault, limit),
        "observation": None if seen is None else _text(seen.text, limit),
        "provenance": "" if seen is None else _text(seen.provenance, 80),
        "pictures": [] if seen is None else pictures(seen),
        "boxes": boxes(seen),
        "refs": refs(turn.action),
        "distance": None if seen is None or not seen.distance else _number(seen.distance),
        "ids": done.token_ids,
        "logprobs": [round(value, 4) if np.isfinite(value) else None for value in done.logprobs],
        "pieces": None if decode is None else pieces(done.token_ids, decode),
        "keep": turn.keep,
        "added": None if decode is None else pieces(turn.delta, decode),
        "delta": len(turn.delta),
        "origin": done.origin.value,
        "version": _text(done.policy_version, 100),
        "finish": _text(done.finish_reason, 40),
        "temperature": _number(done.temperature),
        "trainable": done.trainable,
        "seed": str(turn.seed),
    }


def spelling(ids: Sequence[int]) -> str:
    """Token ids of policies that speak bytes; larger ids are marks without text."""
    return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", "replace")


def find_decoder(turns: Sequence[Turn], named: Decode | None) -> Decode | None:
    """The named tokenizer, or the packaged one or plain bytes if that gives what was said, or None."""
    if named is not None:
        return named
    return next((some for some in (_packaged(), spelling) if some is not None and fits(turns, some)), None)


@cache
def _packaged() -> Decode | None:
    file = SEEDLING / "tokenizer.json"
    try:
        return decoder(file) if file.is_file() else None
    except TreewrightError:
        return None


def fits(turns: Sequence[Turn], decode: Decode) -> bool:
    """Whether a tokenizer that nobody named decodes these turns to what was said."""
    said = [turn.completion for turn in turns if turn.completion.token_ids and turn.completion.text.strip()]
    return bool(said) and all(done.text.strip() in decode(done.token_ids) for done in said)


def pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """One text for each token; a character that takes several tokens stands with the last of them."""
    out: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = decode(waiting)
        if text.endswith("\ufffd") and len(waiting) < 8:
            out.append("")
            continue
        out.append(clean(text))
        waiting = []
    if waiting:
        out[-1] = clean(decode(waiting))
    return out


def pictures(seen: Observation) -> list[str]:
    """PNG and JPEG parts as data: addresses, recognised by their first bytes; other parts by their type."""
    out = []
    for part in seen.shown:
        raw = next((value for value in part.values() if isinstance(value, bytes)), b"")
        kind = next((kind for magic, kind in PICTURES.items() if raw.startswith(magic)), None)
        out.append(f"data:{kind};base64,{base64.b64encode(raw).decode()}" if kind else "")
    return out


def turns_json(turns: Sequence[Turn], decode: Decode | None, limit: int = TEXT) -> list[dict[str, Any]]:
    return [turn_json(turn, decode, limit) for turn in turns]


def boxes(seen: Observation | None) -> dict[str, list[float]]:
    """Where elements stand in the first picture, by reference: left, top, width and height as shares of it."""
    for part in seen.shown if seen is not None else ():
        known, raw = part.get("boxes"), part.get("png")
        if isinstance(known, Mapping) and isinstance(raw, bytes) and raw.startswith(b"\x89PNG") and len(raw) >= 24:
            width, height = (int.from_bytes(raw[at : at + 4], "big") for at in (16, 20))
            sides = (width, height, width, height)
            return {
                str(ref): [round(float(v) / side, 5) for v, side in zip(box, sides, strict=True)]
                for ref, box in known.items()
                if width and height and isinstance(box, list) and len(box) == 4
            }
    return {}


def refs(action: Action | None) -> list[str]:
    """The elements that an action names."""
    named = (call.arguments.get(name) for call in (action.calls if action else ()) for name in ("ref", "to"))
    return [ref for ref in named if isinstance(ref, str) and ref]


def _calls(action: Action, limit: int) -> list[dict[str, Any]] | None:
    """The calls, for copying; None where they are longer than what is shown."""
    key = action.key
    return None if len(key) > limit else _cleaned(json.loads(key))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    return {clean(name): _cleaned(one) for name, one in value.items()} if isinstance(value, dict) else value


def facets_json(facets: Mapping[str, Sequence[str]], weights: Weights) -> dict[str, Any]:
    """The values of each filter, and under `weights` what the policy versions are called."""
    found: dict[str, Any] = {name: [_text(value, 300) for value in values] for name, values in facets.items()}
    return {**found, "weights": {v: _text(weights.name(v), 300) for v in found.get("policy_version", ())}}
