"""Names of what users set and read: fields go by keyword, and a word of the glossary means one thing."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

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
FLOORS = ("agent", "envs", "search", "training", "kernels")
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


def public_classes() -> Iterator[Any]:
    for door in DOORS:
        module = importlib.import_module(door)
        yield from (getattr(module, name) for name in getattr(module, "__all__", ()))
    for door, names in SHOWN.items():
        yield from (getattr(importlib.import_module(door), name) for name in names)


MANY: dict[str, Any] = {
    c.__name__: c for c in public_classes() if inspect.isclass(c) and is_dataclass(c) and len(fields(c)) > 3
}


@pytest.mark.parametrize("name", sorted(MANY))
def test_a_public_class_of_many_fields_takes_few_or_none_by_position(name: str) -> None:
    taken = [p.name for p in inspect.signature(MANY[name]).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert tuple(n for n in taken if n[0] != "_") == BY_POSITION.get(name, ())


def test_a_value_too_many_by_position_is_refused() -> None:
    with pytest.raises(TypeError, match="positional"):
        MANY["Task"]("kg", "1", "find it", 3)


ROOT = Path(__file__).resolve().parents[1]
MEANT = {  # field or member: the classes where it means what the glossary says
    "draft": {"treewright.search.types.NodeStatus"},
    "drawn": {  # draws made at a node
        "treewright.search.types.Expansion",
        "treewright.search.schema.Columns",
        "treewright.search.schema.Standing",
        "treewright.search.growing.Growing",
    },
    "keep": {  # tokens of the prompt before that stay
        "treewright.search.types.Context",
        "treewright.search.types.Outcome",
        "treewright.search.schema.Columns",
        "treewright.agent.view.reading.Turn",
    },
    "rows": {  # records of a table: of an export, of the store, of the viewer's list of trees
        "treewright.training.export.options.ExportReport",
        "treewright.training.export.tables.Table",
        "treewright.search.store.upkeep.Stats",
        "treewright.agent.view.listing.Listing",
    },
}


def fields_of_public_classes() -> Iterator[tuple[str, str]]:
    """(class, field) of every annotated field and enumeration member of a class whose name is public."""
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        module = ".".join(("treewright", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for line in node.body:
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                        yield f"{module}.{node.name}", line.target.id
                    elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                        yield f"{module}.{node.name}", line.targets[0].id.lower()


@pytest.mark.parametrize("word", MEANT)
def test_a_word_of_the_glossary_names_a_field_of_that_meaning_alone(word: str) -> None:
    assert {owner for owner, name in fields_of_public_classes() if name == word} == MEANT[word]
    told = {"rows": "row"}.get(word, word)
    assert f"\n| {told} |" in (ROOT / "ARCHITECTURE.md").read_text().partition("## Glossary")[2]


@pytest.mark.parametrize("word", MEANT)
def test_no_setting_and_no_option_has_a_word_of_the_glossary_with_another_meaning(word: str) -> None:
    from treewright.agent.cli.main import app
    from treewright.agent.config import explained
    from treewright.agent.policies.opening import OPTIONS
    from treewright.envs.doors import options_of
    from treewright.search.rules import known_rules

    assert word not in {part for key in explained() for part in key.split(".")}
    assert word not in OPTIONS
    assert word not in {name for make in known_rules().values() for name in options_of(make) or ()}
    waiting: list[Any] = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        assert f"--{word}" not in {flag for option in command.params for flag in option.opts}, command.name


def test_the_old_name_of_an_option_is_taken_with_a_warning() -> None:
    from treewright.agent.policies.opening import open_policy

    with pytest.warns(FutureWarning, match="'draft' is called 'speculate'"):
        policy: Any = open_policy("seedling", draft=True)
    assert policy.sampling["drafted_by"]
