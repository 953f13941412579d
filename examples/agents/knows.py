"""A script that can do what the agents beside it are asked: it stands for a larger model, and others learn from it.

    treewright collect … --policy scripted:examples.agents.knows:step

It sees what a model would: what the agent's requests say, and their tools. It keeps to the facts that were shown.
"""

from __future__ import annotations

import json
import re
from typing import Any


def step(task: Any, turns: Any, tools: Any, rng: Any, first: Any) -> str:
    """The next look-up of the question, or the answer."""
    who, *relations = re.findall(r"(?:start|then) (\w+)", task.goal)
    shown = "\n".join([first.text, *(turn.observation.text for turn in turns)])
    for relation in relations:
        found = re.search(rf"\b{who} {relation} (\w+)", shown)
        if found is None:
            return f"search {json.dumps({'entity': who, 'relation': relation})}"
        who = found[1]
    if any(tool.name == "final_answer" for tool in tools):
        return f"final_answer {json.dumps({'answer': who})}"
    return f"answer {json.dumps({'text': who})}"
