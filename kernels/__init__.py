"""Tree attention and log-probabilities: a whole token forest in one forward and one backward pass.

Needs torch; Triton only for its own two backends.
"""

from treewright.kernels.decode import BranchCache, PromptCache, Stretch
from treewright.kernels.tree_attention import tree_attention
from treewright.kernels.tree_chunks import TreeChunk, TreeChunkState
from treewright.kernels.tree_logp import tree_logp
from treewright.kernels.tree_plan import TreePlan, preorder

__all__ = [
    "BranchCache",
    "PromptCache",
    "Stretch",
    "TreeChunk",
    "TreeChunkState",
    "TreePlan",
    "preorder",
    "tree_attention",
    "tree_logp",
]
