"""Tasks of the package reasoning-gym as suites: `reasoning:countdown`, or several with a comma.

Each task is one entry of a procedural dataset; `answer` ends the episode with what the dataset's own scorer gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.envs.reasoning.answering import Answering, answer
from treewright.envs.types import Action, Environment, Suite, Task, ToolSpec, Turn

__all__ = ["reasoning_suite"]

SIZE = 1 << 20
SEEDS = {"train": 1, "test": 1 + SIZE}  # entry i is made from seed + i, so that nearer seeds share their entries


def reasoning_suite(names: str) -> Suite:
    """The suite of these datasets, their tasks in turn.

    Raises TreewrightError for a dataset that the package does not have, with the nearest, and without the package.
    """
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    known = _package()
    for name in chosen or [""]:
        if name not in known:
            raise TreewrightError(f"reasoning-gym has no dataset {name!r}; {nearest(name, sorted(known))}")
    title = f"reasoning:{','.join(chosen)}"

    def tasks(split: str, count: int) -> Sequence[Task]:
        out = []
        for i in range(count):
            name, index = chosen[i % len(chosen)], i // len(chosen)
            question = str(_entry(name, split, index)["question"])
            given = {"dataset": name, "index": index}
            out.append(Task(title, f"{split}-{name}-{index}", question, seed=i, split=split, horizon=2, data=given))
        return out

    async def opened() -> Environment:
        return Answering(_worth)

    return Suite(
        title, tasks, opened, oracle=_oracle, description=f"{', '.join(chosen)} of reasoning-gym", max_tokens=512
    )


def _package() -> set[str]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise TreewrightError(
            f"suites reasoning:… need the package reasoning-gym ({error}); type: pip install 'treewright[reasoning]'"
        ) from error
    import reasoning_gym  # noqa: F401  # importing it registers its datasets

    return set(DATASETS)


@lru_cache(maxsize=64)
def _dataset(name: str, split: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=SEEDS[split], size=SIZE)


def _entry(name: str, split: str, index: int) -> dict[str, Any]:
    return dict(_dataset(name, split)[index])


def _of(task: Task) -> tuple[str, str, int]:
    return str(task.data["dataset"]), task.split, int(task.data["index"])


def _worth(task: Task, said: str) -> float:
    name, split, index = _of(task)
    return min(1.0, max(0.0, float(_dataset(name, split).score_answer(said, _entry(name, split, index)))))


def _oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    return answer(str(_entry(*_of(task))["answer"]))
