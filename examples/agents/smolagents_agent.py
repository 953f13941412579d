"""The same questions for a public agent: smolagents' ToolCallingAgent, as it is, with two tools of ours.

pip install smolagents openai
"""

import json
import os
import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool


@tool  # type: ignore[untyped-decorator]
def search(entity: str, relation: str) -> str:
    """Looks up a relation of an entity.

    Args:
        entity: a name
        relation: a relation
    """
    facts = json.loads(os.environ["TREEWRIGHT_TASK"])["data"]["facts"]
    asked = f"{entity} {relation}"
    return f"{asked} {facts[asked]}" if asked in facts else f"error: nothing is known of {asked}"


if __name__ == "__main__":
    base, key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
    model = OpenAIServerModel("kg", api_base=base, api_key=key)
    agent = ToolCallingAgent([search], model, max_steps=8, verbosity_level=0)
    with open("answer.txt", "w") as file:
        file.write(str(agent.run(sys.argv[1])))
