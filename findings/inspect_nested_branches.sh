#!/bin/bash
# Inspect: a branch inside a branch is no branch. `timeline_branch` may be nested and the events keep the nesting, but
# `timeline_build` makes a branch of the outer span only: the inner one's events stand in the outer branch's content, as if
# they had been one path. Nothing is raised. A tree of depth two or more is whole only in an explicit `timelines` of the
# sample, whose spans may have `branches` of their own.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install inspect_ai==0.3.285
"$folder/venv/bin/python" - <<'PY'
import sys
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

from inspect_ai.event import AnchorEvent, BranchEvent, InfoEvent, SpanBeginEvent, SpanEndEvent, timeline_build

count = 0


def event(kind, span, **fields):
    global count
    count += 1
    when = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=count)
    return kind(uuid=f"u{count}", timestamp=when, working_start=float(count), span_id=span, **fields)


def span(name, over, kind, inside):
    return [
        event(SpanBeginEvent, name, id=name, parent_id=over, type=kind, name=name),
        *inside(name),
        event(SpanEndEvent, name, id=name),
    ]


def inner(name):
    return [event(BranchEvent, name, from_anchor="deeper"), event(InfoEvent, name, data="second")]


def outer(name):
    before = [event(BranchEvent, name, from_anchor="start"), event(AnchorEvent, name, anchor_id="deeper")]
    return [*before, event(InfoEvent, name, data="first"), *span("inner", name, "branch", inner)]


def main(name):
    before = [event(AnchorEvent, name, anchor_id="start"), event(InfoEvent, name, data="trunk")]
    return [*before, *span("outer", name, "branch", outer)]


root = timeline_build(span("main", None, "agent", main)).root
trunk = root if root.branches else root.content[0]
(branch,) = trunk.branches
said = [item.event.data for item in branch.content if item.type == "event" and item.event.event == "info"]
print("inspect_ai", version("inspect_ai"))
print("branches of the trunk:", [one.id for one in trunk.branches], "branches of that one:", branch.branches)
print("what that branch holds:", said)
sys.exit(0 if branch.id == "outer" and not branch.branches and said == ["first", "second"] else 1)
PY
