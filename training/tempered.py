"""What draws at another temperature are worth to the policy: ρ = π(a)/π_T(a), from the trainer's own log-probs.

A tree that was grown with `search.temperature_by_depth` holds draws with the log-probs of the distribution that they
came from. One pass of the model over them gives those of the policy; the ratio of whole draws goes into the credit
(`TreeArrays.importance`), on the path above a draw and below it, and not into the loss once more. It is the policy as
the trainer computes it over what the sampler drew from, so that it corrects older weights and other arithmetic too, and
it is not truncated: the gradient stays unbiased, with the variance that such weights have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree
from treewright.training.credit import Credit, TreeArrays
from treewright.training.credit.registry import weighs
from treewright.training.loss import Mode
from treewright.training.pack import PackedBatch, pack_trees
from treewright.training.settings import TrainSettings

__all__ = ["weighed", "weighted_for"]

LogProbs = Callable[[PackedBatch], NDArray[np.float64]]


def weighted_for(trees: Sequence[Tree], arrays: TreeArrays, logprobs: LogProbs, settings: TrainSettings) -> TreeArrays:
    """The arrays as the estimator of the settings takes them: unchanged where the policy itself drew everything.

    Raises TreewrightError for an estimator or a unit that takes no weights, unless train.allow_biased is set.
    """
    if not np.isnan(arrays.importance).any():
        return arrays
    if weighs(settings.estimator) and settings.unit == "turn":
        return weighed(trees, arrays, logprobs, settings.max_tokens)
    if not settings.allow_biased:
        raise TreewrightError(
            f"these trees were grown with search.temperature_by_depth, and train.estimator={settings.estimator} with "
            f"train.unit={settings.unit} does not weigh such draws: use split_loo with turn, or train.allow_biased=true"
        )
    return arrays.with_(importance=np.ones(len(arrays)))


def weighed(trees: Sequence[Tree], arrays: TreeArrays, logprobs: LogProbs, max_tokens: int = 16384) -> TreeArrays:
    """The arrays with the `importance` of every draw that was not made at temperature 1.

    logprobs  f64 [M] of a pack's targets under the policy;  max_tokens  of a pack
    Raises TreewrightError for a draw without exact log-probs.
    """
    warm = np.isnan(arrays.importance)
    asked = warm & (arrays.n_tokens > 0) & arrays.trainable
    ones, nothing = asked.astype(np.float64), np.zeros(len(arrays))
    credit = Credit(value=nothing, coef=ones, weight=nothing, ess=nothing)
    mode = np.where(asked, Mode.PG, Mode.NONE)
    packs = pack_trees(trees, arrays, credit, max_tokens, terms="draw", mode=mode)
    own = [np.bincount(pack.sequence, weights=logprobs(pack)[pack.term]) for pack in packs]
    drawn = [sum(tree.logprobs[i]) for tree in trees for i in range(len(tree))]
    found = np.ones(len(arrays))
    if own:
        found[asked] = np.exp(np.concatenate(own) - np.asarray(drawn)[asked])
    return replace(arrays, importance=found)
