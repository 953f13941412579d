"""Plain values as TOML text, which the standard library does not write; and reading what others wrote."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

__all__ = ["toml_text", "toml_value"]


def toml_value(text: str) -> dict[str, Any]:
    """What a TOML text from outside says. Raises tomllib.TOMLDecodeError, for what is nested too deeply as well."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise tomllib.TOMLDecodeError(why) from None


def toml_text(plain: Mapping[str, Any]) -> str:
    """Values, then a section for each mapping; keys without a value are left as comments."""
    top = [_line(k, v) for k, v in plain.items() if not isinstance(v, dict)]
    sections = [
        "\n".join([f"[{name}]", *(_line(k, v) for k, v in body.items())])
        for name, body in plain.items()
        if isinstance(body, dict)
    ]
    return "\n\n".join(["\n".join(top), *sections] if top else sections) + "\n"


def _line(key: str, value: Any) -> str:
    return f"# {key} =" if value is None else f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)
