"""WebArena-Verified's own tasks and evaluators, asked for by lines of JSON. Imports nothing of this package.

    PYTHON verified_judge.py CONFIG

Run by an interpreter that has `webarena-verified`, whose pinned packages need not be those of the asking process.
{"op": "tasks", "subset": ""} is answered by {"tasks": […]}; {"op": "judge", "task_id", "response", "trace"} by
{"score", "status", "why", "valid"}: `valid` is False where the response is none of the benchmark's form.
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


class _Own:
    """The package's reader and evaluators on a file of other tasks: its own front door takes exactly 812."""

    def __init__(self, config: Any, ids: list[int]) -> None:
        subset = import_module("webarena_verified.types.data").TaskSubset
        reader = import_module("webarena_verified.api.internal.data_reader").WebArenaVerifiedDataReader
        evaluator = import_module("webarena_verified.api.internal.evaluator").WebArenaVerifiedEvaluator
        self._reader = reader(config, subset=subset(task_ids=ids, checksum=subset.compute_checksum(ids)))
        self.evaluate_task = evaluator(config=config, reader=self._reader).evaluate_task

    def get_tasks(self) -> list[Any]:
        return list(self._reader.tasks)


def _opened(given: dict[str, Any]) -> Any:
    config = import_module("webarena_verified.types.config").WebArenaVerifiedConfig(**given)
    if "test_data_file" in given:
        return _Own(config, [row["task_id"] for row in json.loads(Path(given["test_data_file"]).read_text())])
    return import_module("webarena_verified.api").WebArenaVerified(config=config)


def _given(text: str) -> Any:
    """The response as the package reads it: JSON, perhaps in a block of code."""
    block = re.search(r"```(?:json)?\s*\n?(.*?)\n?```", text, re.DOTALL)
    try:
        return json.loads(block[1].strip() if block else text)
    except json.JSONDecodeError:
        return None


def _why(result: Any) -> str:
    """What did not hold, in the package's words."""
    said = [result.error_msg or ""]
    for one in result.evaluators_results:
        failed = [a for a in one.assertions or () if a.status != "success"]
        said += [f"{one.evaluator_name}: {a.assertion_name}: {a.error_msg or ' '.join(a.assertion_msgs or ())}"
                 for a in failed]  # fmt: skip
    return "; ".join(text for text in said if text)[:2000]


def _judged(benchmark: Any, form: Any, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        form.model_validate(_given(asked["response"]))
    except ValueError as error:
        return {"score": 0.0, "status": "failure", "valid": False, "why": str(error).splitlines()[0]}
    result = benchmark.evaluate_task(
        task_id=asked["task_id"], agent_response=asked["response"], network_trace=asked["trace"]
    )
    return {"score": result.score, "status": str(result.status), "valid": True, "why": _why(result)}


def _tasks(benchmark: Any, subset: str) -> dict[str, Any]:
    found = benchmark.get_tasks()
    if subset:  # of the package's own tasks
        folder = Path(import_module("webarena_verified").__file__ or "").parent / "assets" / "dataset" / "subsets"
        path = folder / f"webarena-verified-{subset}.json"
        if not path.is_file():
            known = ", ".join(sorted(p.stem.removeprefix("webarena-verified-") for p in folder.glob("*.json")))
            return {"error": f"there is no subset {subset!r}; known: {known}"}
        chosen = set(json.loads(path.read_text())["task_ids"])
        found = [task for task in found if task.task_id in chosen]
    return {
        "tasks": [
            {
                "task_id": t.task_id,
                "sites": [s.name for s in t.sites],
                "start_urls": list(t.start_urls),
                "intent": t.intent,
            }
            for t in found
        ]
    }


def main() -> None:
    lines, out = sys.stdin, os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the package logs to where answers are read
    try:
        form = import_module("webarena_verified.types.agent_response").FinalAgentResponse
        benchmark = _opened(json.loads(sys.argv[1]))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=out, flush=True)
        return
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in lines:
        asked = json.loads(line)
        try:
            if asked["op"] == "tasks":
                answer = _tasks(benchmark, asked["subset"])
            else:
                answer = _judged(benchmark, form, asked)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
