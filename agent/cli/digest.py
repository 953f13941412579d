"""`treewright digest FILE QUESTION`: what a long document says of a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.cli.options import (
    ANEW,
    ConfigFile,
    PolicySpec,
    Sets,
    console,
    go,
    read_config,
)
from treewright.envs.errors import TreewrightError

__all__ = ["digest_command"]


def digest_command(
    file: Annotated[Path, typer.Argument(help="A text: Markdown, reStructuredText, or plain with numbered headings.")],
    question: Annotated[str, typer.Argument(help="What is asked of it.")],
    letters: Annotated[int, typer.Option(min=100, help="Most letters of one piece that the model reads.")] = 4000,
    notes: Annotated[bool, typer.Option(help="Show the notes of every section, too.")] = False,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Ask a long document a question: of every section, then joined along its headings, with confidences.

    The policy reads, joins and judges; hf:, openai: and vllm: can.

      treewright digest handbook.md "who approves travel?" --policy openai:MODEL@URL --notes
    """
    from treewright.agent.judges.checklist import Model
    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.digest import digest
    from treewright.search.types import layers

    cfg = read_config(None, config, set_, None, policy, remember=False)
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TreewrightError(f"cannot read {file}: {error.strerror}; name a text file") from error

    async def work() -> None:
        actor = open_proposer(cfg.policy)
        try:
            model = next((p for p in layers(actor) if isinstance(p, Model)), None)
            if model is None:
                raise TreewrightError(f"policy {cfg.policy.spec!r} writes no answers; read with hf:, openai: or vllm:")
            found = await digest(text, question, model, letters=letters, seed=cfg.seed)
        finally:
            await actor.close()
        if notes:
            for path, note in found.notes:
                console.print(f"  {path or file.name}: {note.text} ({note.confidence:.0%} sure)", markup=False)
        said = found.answer
        told = f"{said.text}  ({said.confidence:.0%} sure)" if said is not None else "the document says nothing of it"
        console.print(f"{told}; the model was asked {found.calls} times", markup=False)

    go(work, ANEW)
