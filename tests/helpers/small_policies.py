"""A scripted policy whose turns are worth nothing for training, for tests of worlds."""

from treewright.agent.policies.scripted import ScriptedPolicy


def script_policy(script):
    return ScriptedPolicy(script, trainable=False)
