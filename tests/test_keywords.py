"""Classes of many fields are constructed by keyword: nobody counts positions, and a new field breaks no call."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields, is_dataclass

import pytest

BY_POSITION = {  # what worlds and policies of one's own write first
    "Completion": ("text", "token_ids", "logprobs"),
    "Observation": ("text", "fingerprint"),
    "Outcome": ("observation", "status"),
    "Pool": ("open", "size", "deadline"),
    "Rule": ("name", "priority", "draws"),
    "Snapshot": ("kind", "data", "fingerprint"),
    "StepResult": ("observation", "reward", "terminated"),
    "Suite": ("name", "tasks", "open"),
    "Task": ("suite", "id", "goal"),
    "ToolSpec": ("name", "description", "parameters", "effect"),
    "Trainer": ("model", "settings"),
}
DOORS = ("treewright.search", "treewright.training", "treewright.kernels", "treewright.envs")
SHOWN = {  # in README and docs
    "treewright.search.commit": ("CommitResult",),
    "treewright.search.store.bulk": ("Columns",),
    "treewright.search.tree": ("TreeHeader",),
    "treewright.search.types": ("Context", "Draft", "Expansion", "Outcome"),
    "treewright.training.credit": ("Credit", "CreditStats", "TreeArrays"),
    "treewright.training.export.options": ("ExportOptions", "TreeFilter"),
    "treewright.training.loss": ("LossInputs", "LossOptions", "LossStats"),
    "treewright.training.pack": ("PackedBatch", "TokenRow"),
    "treewright.training.step": ("Trainer", "TrainSettings"),
}


def public_classes():
    for door in DOORS:
        module = importlib.import_module(door)
        yield from (getattr(module, name) for name in getattr(module, "__all__", ()))
    for door, names in SHOWN.items():
        yield from (getattr(importlib.import_module(door), name) for name in names)


MANY = {c.__name__: c for c in public_classes() if inspect.isclass(c) and is_dataclass(c) and len(fields(c)) > 3}


@pytest.mark.parametrize("name", sorted(MANY))
def test_a_public_class_of_many_fields_takes_few_or_none_by_position(name):
    taken = [p.name for p in inspect.signature(MANY[name]).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert tuple(n for n in taken if n[0] != "_") == BY_POSITION.get(name, ())


def test_a_value_too_many_by_position_is_refused():
    with pytest.raises(TypeError, match="positional"):
        MANY["Task"]("kg", "1", "find it", 3)
