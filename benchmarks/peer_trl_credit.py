"""TRL's own advantages over the enumerable world: `make check-trl` runs its trainers' code, not a copy of it.

A tiny model stands in, since the trajectories and their returns are given: `rollout_func` of GRPOTrainer answers with
fixed tokens, a reward function gives the returns of the grown trees, and what `_generate_and_score_completions` puts in
as `advantages` is read. The table says how each setting's mean gradient compares with the true one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.agent.policies.policy import SEEDLING
from treewright.envs.errors import TreewrightError
from treewright.training.check import EstimatorCheck, check_estimator
from treewright.training.check.mdp import GROUP

__all__ = ["SETTINGS", "main", "trl_advantages"]

SETTINGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "GRPO, scale_rewards=group": ("grpo", {"scale_rewards": "group"}),
    "GRPO, scale_rewards=batch": ("grpo", {"scale_rewards": "batch"}),
    "GRPO, scale_rewards=none": ("grpo", {"scale_rewards": "none"}),
    "RLOO": ("rloo", {}),
    "RLOO, normalize_advantages": ("rloo", {"normalize_advantages": True}),
}
Floats = NDArray[np.float64]


def trl_advantages(kind: str, options: Mapping[str, Any]) -> Callable[[Floats, NDArray[np.int64]], Floats]:
    """f(returns [R], group [R]) -> advantages [R] by TRL's trainer of this kind, "grpo" or "rloo".

    TRL's groups are of one size: raises TreewrightError for rows whose groups are not GROUP in a row.
    """

    def given(returns: Floats, group: NDArray[np.int64]) -> Floats:
        if len(group) % GROUP or (np.diff(group.reshape(-1, GROUP)) != 0).any():
            raise TreewrightError(f"TRL takes groups of one size; these rows are not {GROUP} to a group")
        with tempfile.TemporaryDirectory(prefix="treewright-trl-") as folder:
            trainer = _trainer(kind, options, folder, returns)
            rows = [{"prompt": "a", "row": i} for i in range(len(returns))]
            made = trainer._generate_and_score_completions(rows)
        return np.asarray(made["advantages"].double().cpu().numpy())

    return given


def _trainer(kind: str, options: Mapping[str, Any], folder: str, returns: Floats) -> Any:
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(SEEDLING))
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    of: Any = trl
    config, trainer = (of.GRPOConfig, of.GRPOTrainer) if kind == "grpo" else (of.RLOOConfig, of.RLOOTrainer)
    settings = config(
        output_dir=folder, num_generations=GROUP, per_device_train_batch_size=len(returns), max_completion_length=2,
        beta=0.0, report_to=[], use_cpu=True, bf16=False, **options,
    )  # fmt: skip

    def reward(row: list[int], **_: Any) -> list[float]:
        return [float(returns[i]) for i in row]

    data = Dataset.from_list([{"prompt": "a", "row": i} for i in range(GROUP)])

    class Given(trainer):  # type: ignore[misc,valid-type]  # one of TRL's two
        """The answers are given: one token and the end."""

        def _generate(self, prompts: list[Any], *rest: Any) -> Any:
            ids = tokenizer("a", add_special_tokens=False)["input_ids"]
            asked, said = [ids] * len(prompts), [[*ids, tokenizer.eos_token_id]] * len(prompts)
            texts = tokenizer.batch_decode(said, skip_special_tokens=True)
            return (asked, said, None, texts, None, {}, None, None) if kind == "grpo" else (asked, said, texts)

    return Given(
        LlamaForCausalLM(shape), reward_funcs=reward, args=settings, train_dataset=data, processing_class=tokenizer
    )


def main(
    quick: bool = False, json_path: Path | str | None = None, plot_path: Path | str | None = None
) -> dict[str, Any]:
    """A table by setting, on independent trajectories; returns and writes {"figures", "quick", "versions"}."""
    import trl

    print(f"TRL {trl.__version__} on independent trajectories in groups of {GROUP}\n")
    trees, found = (800 if quick else 8_000), {}
    for name, (kind, options) in SETTINGS.items():
        found[name] = check_estimator(trl_advantages(kind, options), form="returns", schedules=["chains"], trees=trees)
    print(_table(found))
    figures = {
        f"{quantity}_{name}": {"value": getattr(check.reports["chains"], quantity), "unit": "1"}
        for name, check in found.items()
        for quantity in ("relative_bias", "over_noise", "cosine", "scale")
    } | {f"idle_groups_{name}": {"value": check.idle["chains"], "unit": "1"} for name, check in found.items()}
    result = {"figures": figures, "quick": quick, "trees": trees, "versions": {"trl": trl.__version__}}
    if json_path:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    return result


def _table(found: Mapping[str, EstimatorCheck]) -> str:
    lines: list[str] = []
    for name, check in found.items():
        head, rule, row = check.table().splitlines()
        lines = lines or [head.replace("schedule", "setting"), rule]
        lines.append(row.replace("chains", name, 1))
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    main(json_path=sys.argv[1] if len(sys.argv) > 1 else None)
