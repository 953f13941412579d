"""`treewright export` and `treewright import`: datasets out of a run's trees, and trees into a run."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from treewright.agent.cli.options import console
from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value

__all__ = ["data_app", "export_command", "import_command"]

SHOWN = 10
data_app = typer.Typer(help="Datasets out of trees, and trees out of datasets.", no_args_is_help=True)

Name = Annotated[str, typer.Option("--name", "-n", help="Name of the run; its trees are in runs/NAME/trees.sqlite.")]
StoreFile = Annotated[
    str | None, typer.Option("--store", help="A file, a run's folder or postgresql://… URL, instead of that of a run.")
]


def _store_of(name: str, store: str | None) -> str:
    """Where the store is: a file or a URL, as it was given."""
    if store is not None:
        return str(Path(store) / "trees.sqlite") if "://" not in store and Path(store).is_dir() else store
    from treewright.agent.config import load_config

    return load_config(given={"name": name}, remember=True).store_at


@data_app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="A new folder for the dataset.")],
    name: Name = "run",
    store: StoreFile = None,
    formats: Annotated[
        str,
        typer.Option(
            "--formats",
            "-f",
            help="Comma separated: sft, dpo, prm, prefix, atif, raw, inspect, or MODULE:FUNCTION of your own.",
        ),
    ] = "sft,dpo,prm,prefix,atif,raw",
    style: Annotated[str, typer.Option(help="Of sft, dpo and prefix: conversational, text or tokens.")] = (
        "conversational"
    ),
    file_type: Annotated[str, typer.Option(help="parquet (needs pyarrow) or jsonl.")] = "parquet",
    suite: Annotated[str | None, typer.Option(help="Only trees of this suite.")] = None,
    split: Annotated[str | None, typer.Option(help="Only trees of this split.")] = None,
    run: Annotated[str | None, typer.Option(help="Only trees of this run, where a store holds several.")] = None,
    policy_version: Annotated[str | None, typer.Option(help="Only trees that these weights grew.")] = None,
    success: Annotated[
        bool | None, typer.Option("--success/--failure", help="Only trees whose chosen answer was right, or wrong.")
    ] = None,
    exact: Annotated[bool | None, typer.Option("--exact/--inexact", help="Only exact trees, or inexact ones.")] = None,
    paths: Annotated[str, typer.Option(help="Paths for sft and prefix: best, chosen or all.")] = "best",
    min_outcome: Annotated[float, typer.Option(help="Least return of such a path.")] = 1.0 - 1e-6,
    min_gap: Annotated[float, typer.Option(help="dpo: least difference of the siblings' values.")] = 0.1,
    pairs: Annotated[str, typer.Option(help="dpo: extremes (best and worst of a branch) or all.")] = "extremes",
    min_ess: Annotated[float, typer.Option(help="dpo: effective finished leaves behind each side.")] = 0.0,
    on_policy: Annotated[bool, typer.Option(help="dpo: only pairs that the tree's own weights drew.")] = False,
    label_threshold: Annotated[float, typer.Option(help="prm: a step is good above this value.")] = 0.0,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --style text: decode what the policy read with this tokenizer.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message for every conversation.")] = None,
    license_: Annotated[str, typer.Option("--license", help="Licence identifier for the card.")] = "unknown",
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="An option of your own format, e.g. --set least=2.")
    ] = None,
) -> None:
    """Write a dataset of finished trees with a card; `datasets` loads it, TRL's trainers read it.

    treewright export data/first --name first --formats sft,dpo --suite kg --min-gap 0.25
    treewright export data/raw --name first --formats raw --file-type jsonl
    treewright export data/mine --name first --formats sft,mymod:rows --set least=2
    """
    from treewright.search.store import TreeStore
    from treewright.training.export import ExportOptions, TreeFilter, export_dataset

    options = ExportOptions(
        formats=tuple(dict.fromkeys(f.strip() for f in formats.split(",") if f.strip())),
        style=style, file_type=file_type, paths=paths, min_outcome=min_outcome, min_gap=min_gap, pairs=pairs,
        min_ess=min_ess, on_policy=on_policy, label_threshold=label_threshold, system=system,
        decode=_decoder(tokenizer, style), license=license_, options=_options(set_ or ()),
    )  # fmt: skip
    where = TreeFilter(run=run, suite=suite, split=split, success=success, policy_version=policy_version, exact=exact)
    where_from = _store_of(name, store)
    if "://" not in where_from and not Path(where_from).exists():
        raise TreewrightError(f"there is no store at {where_from}; type: treewright collect --name {shlex.quote(name)}")
    with TreeStore.open(where_from, read_only=True) as opened:
        report = export_dataset(opened, folder, options, where)
    for one in options.formats:
        left = report.skipped[one].most_common()
        why = f", {sum(n for _, n in left)} left out: {left[0][0]} ({left[0][1]})" if left else ""
        console.print(f"  {one:<7} {report.total(one)} rows{why}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"wrote {folder} from {sum(report.trees.values())} trees; its README.md says what is in it",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if long := max((report.longest[one] for one in ("sft", "dpo") if one in options.formats), default=0):
        console.print(
            f"the longest row has {long} tokens; TRL cuts rows at max_length (1024 if not set) and drops those whose "
            f"completion lies beyond: set max_length={long} or None",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _options(settings: Sequence[str]) -> dict[str, Any]:
    """key=value pairs; values are read as JSON where they are JSON, else as texts."""
    out: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise TreewrightError(f"--set {setting!r} has no key or no '='; write --set least=2")
        try:
            out[key] = json_value(text)
        except json.JSONDecodeError:
            out[key] = text
    return out


def _decoder(tokenizer: str | None, style: str) -> Callable[[Sequence[int]], str] | None:
    """Token ids to text, marks spelled out."""
    if tokenizer is None:
        return None
    if style != "text":
        raise TreewrightError(f"--tokenizer is for --style text; --style {style} does not decode token ids")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise TreewrightError("--tokenizer needs transformers; type: pip install 'treewright[train]'") from None
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise TreewrightError(
            f"no tokenizer at {tokenizer}: {error}; name a folder or a model of transformers"
        ) from error

    def decode(ids: Sequence[int]) -> str:
        return str(loaded.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


@data_app.command("import")
def import_command(
    path: Annotated[Path, typer.Argument(help="A dataset folder, or a .jsonl, .parquet, .json or .eval file.")],
    name: Name = "run",
    store: StoreFile = None,
    kind: Annotated[str, typer.Option(help="raw, messages, or auto: rows with `messages` are conversations.")] = "auto",
    run: Annotated[str | None, typer.Option(help="Conversations: their run; else the file's name.")] = None,
    suite: Annotated[str, typer.Option(help="Conversations: their suite where a line names none.")] = "imported",
    origin: Annotated[str, typer.Option(help="Conversations: demo or stored.")] = "stored",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be taken.")] = False,
) -> None:
    """Read raw trees back, or conversations as chains, into a run's store.

    Conversations are rows in OpenAI's message format, ATIF documents, verifiers' traces, and logs of Inspect.

    Rows that cannot be taken are left out and named. The same line again adds nothing. Conversations have no log-probs:
    they are never trained on by policy gradients.

      treewright import data/raw --name second
      treewright import talks.jsonl --name talks --suite support --origin demo
      treewright import logs/2026-11-30_support.eval --name logs
    """
    from treewright.search.store import TreeStore
    from treewright.training.export import import_trees

    if not path.exists():
        raise TreewrightError(
            f"there is no file or folder at {path}; name a .jsonl or .parquet file, or a folder of them"
        )
    with TreeStore.open(_store_of(name, store)) as opened:
        report = asyncio.run(import_trees(path, opened, kind=kind, run=run, suite=suite, origin=origin, strict=strict))
        there = f", {report.present} were there already" if report.present else ""
        console.print(f"{len(report.added)} trees with {report.nodes} nodes added to {opened.name}{there}")
    if report.left_out:
        console.print(f"[yellow]{len(report.left_out)} rows left out[/]:", markup=True)
        for line in report.left_out[:SHOWN]:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        if len(report.left_out) > SHOWN:
            console.print(f"  and {len(report.left_out) - SHOWN} more")
    if report.toolless:
        console.print(
            f"{report.toolless} conversations list no tools: prompts made from them show none; give \"tools\" in each "
            "line",
            markup=False, soft_wrap=True,
        )  # fmt: skip
