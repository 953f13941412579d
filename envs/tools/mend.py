"""Argument schemas that other people wrote, made into schemas that can be checked, shown and turned into a grammar.

Servers send what their own libraries take: schemas of older drafts, JavaScript patterns, null where nothing was meant,
choices and references at the root. What JSON Schema 2020-12 says in another way is said that way. What it cannot say
is left out: such an argument is then checked by the server alone, and every other tool stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator

__all__ = ["mend_schema"]

ONE: tuple[str, ...] = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
ONE += ("unevaluatedItems", "unevaluatedProperties", "contentSchema")
MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
VALUES = ("const", "default", "enum", "examples", "example")
HEADS = ("$schema", "$id", "id", "$vocabulary")  # they would move where references point, or name another draft
TYPES = {"str": "string", "text": "string", "int": "integer", "float": "number", "double": "number"}
TYPES |= {"bool": "boolean", "dict": "object", "list": "array", "none": "null"}
ANYTHING = {"additionalProperties": True}
_parser: Any = re._parser  # type: ignore[attr-defined]
REPEATS = (_parser.MAX_REPEAT, _parser.MIN_REPEAT)
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
MAX_REPAIRS = 100


def mend_schema(schema: Any) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """A valid schema (2020-12) of an object of arguments, and the places where something had to be left out.

    Choices and references at the root become plain properties there: an argument of one of them is known, one that all
    need is required. None where the root takes no object, so that no call could fit.
    """
    notes: list[str] = []
    if schema is None:
        return {"type": "object"}, ()
    try:
        root = _mended(schema if isinstance(schema, Mapping) else {"type": "object", **ANYTHING}, "", notes)
        root = {key: value for key, value in root.items() if key not in HEADS}
        _unlink(root, root, "", notes)
        root = _flat(root, root)
        kind = root.get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            return None, (f"it takes arguments of type {kind!r}, not 'object'",)
        root["type"] = "object"
        _repair(root, notes)
    except RecursionError:
        root, notes = {}, ["it is nested too deeply to be read here"]
    if root.get("type") != "object" or ("properties" not in root and notes):
        root |= {"type": "object", **ANYTHING}
    return root, tuple(notes)


def _mended(schema: Mapping[str, Any], place: str, notes: list[str]) -> dict[str, Any]:
    out = {key: value for key, value in schema.items() if value is not None or key in VALUES}
    for key in [key for key, value in out.items() if key in VALUES + BOUNDS and not _plain(value)]:
        notes.append(f"{place}/{key}: {out.pop(key)!r:.60} is no JSON")
    own = [name for name, one in _named(out).items() if isinstance(one, Mapping) and one.get("required") is True]
    if own:  # as draft 3 says it
        named = out.get("required")
        out["required"] = [*(named if isinstance(named, list) else []), *own]
    for key, value in list(out.items()):
        at = f"{place}/{key}"
        if key in ONE and not (key == "items" and isinstance(value, list)):
            out[key] = _part(value, at, notes)
        elif key in MANY or key == "items":
            if isinstance(value, list):
                out[key] = [_part(part, f"{at}/{i}", notes) for i, part in enumerate(value)]
        elif key in NAMED and isinstance(value, Mapping):
            out[key] = {str(name): _part(part, f"{at}/{name}", notes) for name, part in value.items()}
    _translate(out)
    _drop_patterns(out, place, notes)
    return out


def _part(value: Any, place: str, notes: list[str]) -> Any:
    """A schema within a schema. True and False are written as schemas, but where they stand for a rule."""
    if isinstance(value, Mapping):
        return _mended(value, place, notes)
    rule = place.endswith(("/additionalProperties", "/unevaluatedProperties", "/unevaluatedItems"))
    if value is None or isinstance(value, bool):
        said = value is not False
        return said if rule else {} if said else {"not": {}}
    notes.append(f"{place}: {value!r:.60} is no schema")
    return True if rule else {}


def _translate(schema: dict[str, Any]) -> None:
    """What older drafts, OpenAPI and JavaScript say otherwise."""
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = schema.pop("items")
        rest = schema.pop("additionalItems", True)
        if rest is not True:
            schema["items"] = rest
        if not schema["prefixItems"]:
            del schema["prefixItems"]
    if isinstance(kind := schema.get("type"), str):
        schema["type"] = TYPES.get(kind.lower(), kind.lower())
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(strict), bool) and schema.pop(strict) and bound in schema:
            schema[strict] = schema.pop(bound)
    if schema.pop("nullable", False) is True:
        kind = schema.get("type")
        if isinstance(kind, str) and kind != "null":
            schema["type"] = [kind, "null"]
            if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
                schema["enum"] = [*schema["enum"], None]
    if "required" in schema:
        named = [schema["required"]] if isinstance(schema["required"], str) else schema["required"]
        named = named if isinstance(named, list) else []
        schema["required"] = list(dict.fromkeys(name for name in named if isinstance(name, str)))
        if not schema["required"]:
            del schema["required"]
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = _python(schema["pattern"])


def _python(pattern: str) -> str:
    """JavaScript's named groups as Python writes them."""
    return re.sub(r"\(\?<([A-Za-z_]\w*)>", r"(?P<\1>", pattern)


def _drop_patterns(schema: dict[str, Any], place: str, notes: list[str]) -> None:
    """Patterns in a dialect that cannot be read here: the server reads them."""
    if "pattern" in schema and not _readable(schema["pattern"]):
        notes.append(f"{place}/pattern: {schema.pop('pattern')!r:.60} cannot be read here")
    named = schema.get("patternProperties")
    if isinstance(named, Mapping) and (bad := [name for name in named if not _readable(name)]):
        notes.append(f"{place}/patternProperties: {bad[0]!r:.60} cannot be read here")
        schema["patternProperties"] = {name: inner for name, inner in named.items() if name not in bad} or {".*": True}


def _plain(value: Any) -> bool:
    """JSON has no NaN and no infinity; Python's libraries write them as defaults and bounds."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _readable(pattern: Any) -> bool:
    """A pattern that Python's `re` takes, and that no short text keeps busy for ever."""
    try:
        re.compile(pattern)
        return not _endless(_parser.parse(pattern))
    except (re.error, TypeError, RecursionError, OverflowError):
        return False


def _endless(parts: Any, within: bool = False) -> bool:
    """A repetition of something that is itself no more than a repetition, as (a+)+: time grows as 2 to the length.

    within  the parts are all that a repetition without end repeats
    """
    parts = list(parts)
    for kind, value in parts:
        alone = within and sum(map(_least, parts)) == _least((kind, value))
        unending = kind in REPEATS and value[1] == _parser.MAXREPEAT
        inner = value[1] if kind is _parser.BRANCH else [value[-1]] if kind in (*REPEATS, _parser.SUBPATTERN) else []
        if (unending and alone) or any(_endless(part, unending or alone) for part in inner):
            return True
    return False


def _least(part: Any) -> int:
    """The fewest characters that a part of a pattern takes."""
    kind, value = part
    if kind in REPEATS:
        return int(value[0]) * min(1, int(value[2].getwidth()[0]))
    if kind is _parser.SUBPATTERN:
        return int(value[-1].getwidth()[0])
    if kind is _parser.BRANCH:
        return int(min(branch.getwidth()[0] for branch in value[1]))
    return int(kind not in (_parser.AT, _parser.ASSERT, _parser.ASSERT_NOT))


# -- references ------------------------------------------------------------------------------------------------------


def _resolve(root: Mapping[str, Any], reference: Any) -> Any:
    """What a reference within the document points at; None where there is nothing, or where it leads elsewhere."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for step in reference[1:].split("/")[1:] if reference != "#" else ():
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, Sequence) and not isinstance(found, str) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found if isinstance(found, Mapping | bool) and (reference == "#" or reference[1] == "/") else None


def _subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in ONE:
            yield key, value
        elif key in MANY and isinstance(value, list):
            yield from ((f"{key}/{i}", part) for i, part in enumerate(value))
        elif key in NAMED and isinstance(value, Mapping):
            yield from ((f"{key}/{name}", part) for name, part in value.items())


def _unlink(schema: Any, root: Mapping[str, Any], place: str, notes: list[str]) -> None:
    """Leaves out references that lead nowhere, or only back to themselves."""
    if not isinstance(schema, dict):
        return
    for key in ("$ref", "$dynamicRef", "$recursiveRef"):
        if key in schema and not _leads(schema, key, root):
            notes.append(f"{place}/{key}: {schema.pop(key)!r:.60} leads nowhere")
    for at, part in _subschemas(schema):
        _unlink(part, root, f"{place}/{at}", notes)


def _leads(schema: Mapping[str, Any], key: str, root: Mapping[str, Any]) -> bool:
    seen: list[Any] = []
    found: Any = schema
    while isinstance(found, Mapping) and key in found:
        if any(found is one for one in seen):
            return False
        seen.append(found)
        found = _resolve(root, found[key])
    return found is not None and key == "$ref"


# -- the root --------------------------------------------------------------------------------------------------------


def _flat(schema: Mapping[str, Any], root: Mapping[str, Any], within: tuple[int, ...] = ()) -> dict[str, Any]:
    """The schema with its reference, its allOf and its choices merged into properties of its own."""
    if id(schema) in within:
        return {}
    within = (*within, id(schema))
    out = {key: value for key, value in schema.items() if key not in ("$ref", "allOf", "anyOf", "oneOf")}
    parts = [_resolve(root, schema["$ref"])] if "$ref" in schema else []
    parts += schema.get("allOf", []) if isinstance(schema.get("allOf"), list) else []
    for part in parts:
        if isinstance(part, Mapping):
            out = _both(out, _flat(part, root, within))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            branches = [_flat(part, root, within) for part in schema[key] if isinstance(part, Mapping)]
            objects = [one for one in branches if one.get("type", "object") in ("object", ["object"])]
            out = _either(out, objects) if objects else out
    return out


def _both(first: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """An object that fits both: `first` and what `more` adds to it."""
    out = {**more, **first}
    properties = dict(_named(first))
    for name, inner in _named(more).items():
        here = properties.get(name, True)
        properties[name] = inner if here in (True, {}) else here if inner in (True, {}, here) else _all(here, inner)
    if properties:
        out["properties"] = properties
    if needed := list(dict.fromkeys([*first.get("required", ()), *more.get("required", ())])):
        out["required"] = needed
    return out


def _all(*parts: Any) -> dict[str, Any]:
    return {"allOf": list(parts)}


def _either(first: Mapping[str, Any], branches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`first` with every argument of every branch; which of them go together is said only as far as names go."""
    out = dict(first)
    own = _named(first)
    properties = dict(own)
    for name in dict.fromkeys(name for branch in branches for name in _named(branch)):
        if name not in own:
            properties[name] = _one_of([_named(branch)[name] for branch in branches if name in _named(branch)])
    if properties:
        out["properties"] = properties
    needs = [[name for name in branch.get("required", ()) if isinstance(name, str)] for branch in branches]
    common = [name for name in needs[0] if all(name in need for need in needs)]
    if needed := list(dict.fromkeys([*first.get("required", ()), *common])):
        out["required"] = needed
    own_needs = [[name for name in need if name not in needed] for need in needs]
    if all(own_needs) and "anyOf" not in out:
        out["anyOf"] = [{"required": need} for need in own_needs]
    return out


def _one_of(kinds: Sequence[Any]) -> Any:
    """A value that fits one of the kinds; constants become one list of choices."""
    distinct = [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]]
    if len(distinct) == 1:
        return distinct[0]
    values: list[Any] = []
    for kind in distinct:
        if not isinstance(kind, Mapping) or not ({"const", "enum"} & kind.keys()):
            return {"anyOf": distinct}
        values += [kind["const"]] if "const" in kind else list(kind["enum"])
    return {"enum": [value for i, value in enumerate(values) if value not in values[:i]]}


def _named(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("properties", {})
    return found if isinstance(found, Mapping) else {}


# -- what is left --------------------------------------------------------------------------------------------------


def _repair(root: dict[str, Any], notes: list[str]) -> None:
    """Leaves out what the standard refuses, keyword by keyword."""
    checker = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    for _ in range(MAX_REPAIRS):
        error = next(checker.iter_errors(root), None)
        if error is None:
            return
        place = [*error.absolute_path]
        if not place:
            break
        # The error may lie inside a keyword's value (an entry of `required`, say): the keyword itself goes.
        while len(place) > 1 and isinstance(place[-1], int):
            place.pop()
        holder: Any = root
        for step in place[:-1]:
            holder = holder[step]
        notes.append(f"/{'/'.join(map(str, place))}: {error.message:.100}")
        del holder[place[-1]]
    else:
        root.clear()
    if next(checker.iter_errors(root), None) is not None:
        root.clear()
