"""Low-rank adapters (Hu et al., arXiv 2106.09685) through peft: the base stays as it is, and is known by its content.

An adapter's folder holds the adapter alone, and the manifest beside it says which base it belongs to: by name, to find
it, and by the version of its weights, to be sure. The base with the adapter off is the reference of the KL penalty.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from treewright.envs.errors import TreewrightError
from treewright.training.manifest import CheckpointError, base_of, is_adapter_folder
from treewright.training.precision import rounded
from treewright.training.settings import LoraSettings
from treewright.training.versions import weights_version

__all__ = ["adapter_config", "adapter_off", "attach", "is_adapted", "load_model", "merged"]


def is_adapted(model: Any) -> bool:
    """Whether the model is a base with an adapter that `attach` put on."""
    return getattr(model, "treewright_base", None) is not None


def attach(
    model: nn.Module, settings: LoraSettings, base: str | Path, seed: int = 0, dtype: torch.dtype | None = None
) -> Any:
    """A peft model around `model` of which only the adapter is trained; it begins as the identity.

    base   the folder or name that `model` was loaded from, in float32;  seed  of the adapter's first values
    dtype  what the base is kept in from now on; None: as it is. The adapter is float32 or wider

    Raises TreewrightError where peft is missing, or a target names no layer.
    """
    try:
        import peft
    except ImportError:
        raise TreewrightError(
            "train.lora needs peft: pip install 'treewright[lora]'; or set train.lora.rank=0"
        ) from None
    name = str(Path(base).resolve()) if Path(base).is_dir() else str(base)
    known = {"model": name, "version": weights_version(model)}
    rounded(model, dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: Any = peft.get_peft_model(model, adapter_config(settings))
    except ValueError as error:
        linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        raise TreewrightError(
            f"train.lora.targets = {list(settings.targets)}: {str(error).partition(chr(10))[0]}; linear layers here: "
            f"{', '.join(sorted(linear))}"
        ) from error
    made.peft_config["default"].base_model_name_or_path = name
    made.treewright_base = known
    return made.eval()


def adapter_config(settings: LoraSettings) -> Any:
    """What peft is told."""
    import peft

    return peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
        target_modules=list(settings.targets) or "all-linear",
    )  # fmt: skip


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model is its base inside a `with` block."""
    scaled = [m for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)]
    before = [dict(m.scaling) for m in scaled]  # type: ignore[arg-type]
    try:
        for module in scaled:
            module.scaling.update(dict.fromkeys(module.scaling, 0.0))  # type: ignore[union-attr,operator,arg-type]
        yield
    finally:
        for module, scaling in zip(scaled, before, strict=True):
            module.scaling.update(scaling)  # type: ignore[union-attr,operator]


def merged(model: Any) -> Any:
    """The model with its adapter merged into its weights, in place; one without an adapter as it is."""
    return model.merge_and_unload() if is_adapted(model) else model


def load_model(source: str | Path, dtype: torch.dtype = torch.float32, base: str | Path | None = None) -> Any:
    """A transformers causal language model from a folder or by name; an adapter's folder gives its base, merged.

    base  where the adapter's base lies now, if not where it was trained on

    Raises CheckpointError for an adapter of another base: its weights must be those it was trained on.
    """
    from transformers import AutoModelForCausalLM

    if not is_adapter_folder(source):
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    try:
        import peft
    except ImportError:
        raise TreewrightError(f"{source} holds an adapter: pip install 'treewright[lora]'") from None
    known = base_of(source)
    at = str(base or known["model"])
    if "/" in at and Path(at).is_absolute() and not Path(at).is_dir():
        raise CheckpointError(
            f"{source} holds an adapter for {known['model']}, which is gone; say where it lies now with "
            "--set policy.options.base=FOLDER"
        )
    model = load_model(at)
    if "version" in known and weights_version(model) != known["version"]:
        raise CheckpointError(
            f"the adapter in {source} was trained on other weights than those in {at} (version {known['version'][:8]}, "
            f"not {weights_version(model)[:8]}); it belongs to {known['model']} as that was then"
        )
    whole: Any = peft.PeftModel.from_pretrained(model, str(source)).merge_and_unload()
    return whole.to(dtype) if dtype != torch.float32 else whole
