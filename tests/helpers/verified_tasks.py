"""Tasks in WebArena-Verified's form about the bazaar, which stands where the benchmark has its SHOPPING."""

from __future__ import annotations

from typing import Any

__all__ = ["TASKS"]


def _task(number: int, start: str, intent: str, kind: str, data: Any, *events: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "array", "items": {"type": "string"}} if data is not None else {"type": "null"}
    response = {
        "evaluator": "AgentResponseEvaluator",
        "results_schema": schema,
        "expected": {"task_type": kind, "status": "SUCCESS", "retrieved_data": data},
    }
    network = [{"evaluator": "NetworkEventEvaluator", "expected": event} for event in events]
    return {
        "sites": ["shopping"], "task_id": number, "intent_template_id": number, "start_urls": [f"__SHOPPING__{start}"],
        "intent": intent, "intent_template": intent, "instantiation_dict": {}, "revision": 1,
        "eval": [response, *network],
    }  # fmt: skip


TASKS = [
    _task(0, "/desk", "Whose refund is number 12?", "retrieve", ["dan"]),
    _task(1, "/", "Open my orders", "navigate", None, {"url": "__SHOPPING__/orders"}),
    _task(
        2, "/shop", "Show red things only", "navigate", None,
        {"url": "__SHOPPING__/shop", "query_params": {"kind": [""], "colour": ["red"], "size": [""], "sort": [""]}},
    ),
    _task(
        3, "/r/14", "Approve refund 14", "mutate", None,
        {"url": "__SHOPPING__/r/14/approve", "http_method": "POST", "response_status": 303},
    ),
    _task(
        4, "/p/white-bag-medium", "Put two of these into the cart", "mutate", None,
        {
            "url": "__SHOPPING__/cart/add", "http_method": "POST", "response_status": 303,
            "post_data": {"item": "white-bag-medium", "pieces": "2"},
        },
    ),
]  # fmt: skip
