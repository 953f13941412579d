"""The gateway's figures at a small size: what they are made of holds, whatever the machine."""

from __future__ import annotations

import asyncio

from treewright.benchmarks.gateway import _overhead
from treewright.benchmarks.gateway_kills import kills


def test_calls_of_many_sessions_are_counted_and_cost_something() -> None:
    figures = asyncio.run(_overhead(64))
    assert figures["gateway_calls"][0] == 64 and figures["gateway_calls_per_s"][0] > 0
    assert figures["gateway_cpu_ms_per_call"][0] > figures["gateway_direct_ms_p50"][0]


def test_a_recorder_that_is_killed_loses_no_acknowledged_call_and_leaves_no_process() -> None:
    figures = kills(3)
    assert figures["gateway_kills_acknowledged"][0] > 0
    assert figures["gateway_lost_calls"][0] == figures["gateway_orphans"][0] == 0
