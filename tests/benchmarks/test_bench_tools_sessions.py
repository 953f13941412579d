from __future__ import annotations

from treewright.benchmarks.tools_sessions import side_by_side


def test_every_call_of_every_session_is_answered_once() -> None:
    one, two = side_by_side(1, 0.0, 4), side_by_side(2, 1.0, 4)
    assert one.calls == two.calls == 4 and one.processor > 0
    assert one.digest != two.digest and side_by_side(2, 0.0, 4).digest == two.digest
