"""Who acts: the Policy protocol and its clients, prompts, and the proposer that turns draws into actions.

policy = open_policy("seedling")
"""

from treewright.agent.policies.opening import loading_model, open_policy, serve_weights
from treewright.agent.policies.policy import SEEDLING, Policy, PolicyStats

__all__ = ["SEEDLING", "Policy", "PolicyStats", "loading_model", "open_policy", "serve_weights"]
