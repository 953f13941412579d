"""Questions over your own documents, asked of any OpenAI-compatible server. On the command line no code is needed:

    treewright run own/0 --corpus own_corpus.jsonl --questions own_questions.jsonl \\
        --policy openai:MODEL@http://HOST:PORT/v1

From Python:

    python examples/own_corpus.py MODEL http://HOST:PORT/v1

The key is read from OPENAI_API_KEY. Chat servers hide their prompts, so such draws act and are not trained on.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import treewright
from treewright.agent.policies import open_policy
from treewright.envs.retrieval.opening import open_suite
from treewright.search import Budget, Settings, rule

HERE = Path(__file__).parent


async def main(model: str, url: str) -> None:
    suite = open_suite("own", corpus=HERE / "own_corpus.jsonl", questions=HERE / "own_questions.jsonl")
    policy = open_policy(f"openai:{model}@{url}", deadline=30)
    try:
        for task in suite.tasks("test", 2):
            tree = await treewright.search(
                task,
                suite,
                policy,
                rule=rule("score_first", draws=2),
                budget=Budget(expansions=6, policy_tokens=2000),  # reserved before a call, so never exceeded
                settings=Settings(max_tokens=100),
            )
            if tree.chosen is None:
                print(f"{task.goal} no answer; {'; '.join(tree.reasons)}")
                continue
            print(f"{task.goal} {tree.action[tree.chosen]}; reward {tree.outcome_of(tree.chosen):.0f}")
    finally:
        await policy.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
