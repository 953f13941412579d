"""`treewright merge`: a run's newest weights, or an adapter, as a plain model that any tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.cli.options import Name, Sets, read_config, say
from treewright.envs.errors import TreewrightError
from treewright.envs.whole import whole_folder

__all__ = ["merge"]


def merge(
    folder: Annotated[Path, typer.Argument(help="Where the model goes; a folder that does not exist yet.")],
    name: Name = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A checkpoint's or an adapter's folder instead of the run's newest.")
    ] = None,
    set_: Sets = None,
) -> None:
    """Write a run's newest weights as a plain model: an adapter is merged into its base, the optimizer left out.

    treewright merge model --name first
    """
    from treewright.agent.policies.opening import loading_model
    from treewright.training.manifest import latest

    cfg = read_config(name, None, set_, None, None)
    source = adapter
    if source is None:
        found = latest(cfg.home / "checkpoints")
        if found is None:
            raise TreewrightError(f"run {cfg.name!r} has no checkpoint yet; type: treewright train --name {cfg.name}")
        source = found.path
    if folder.exists():
        raise TreewrightError(f"{folder} exists already; name a new folder")
    with loading_model(source):
        from transformers import AutoTokenizer

        from treewright.training.lora import load_model

        model, tokenizer = (
            load_model(source, base=cfg.policy.options.get("base")),
            AutoTokenizer.from_pretrained(source),
        )
    with whole_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    say(f"wrote the weights of {source} to {folder}; act with them: --policy hf:{folder}")
