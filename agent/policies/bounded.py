"""Chat templates of strangers, rendered within bounds. transformers renders them in a sandbox that reaches no attribute
of Python's own and changes nothing; here they also end, and stay small.

Refused before anything is rendered: products and powers, by which one line makes any amount of text. While one is
rendered its lines are counted and the clock is watched, as loops inside loops need neither. Not covered: a filter that
pads to a great width, which costs memory up to what the process may have.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from treewright.envs.errors import TreewrightError

__all__ = ["LONGEST", "bounded", "refuse_products"]

LONGEST = 16_000_000  # characters of a rendered conversation, and of a text on the way there
TEMPLATE = "<template>"  # the file name that jinja2 gives to a template's code
LINES, SECONDS = 100_000, 10.0


class _TooMuch(BaseException):
    """Not an Exception: a template cannot catch it, nor does whoever tries templates out."""


def refuse_products(source: str) -> None:
    """Raises TreewrightError for a template that multiplies anything but two small numbers, or raises to a power."""
    from jinja2 import Environment, nodes
    from jinja2.exceptions import TemplateError

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except TemplateError:
        return  # it may use other extensions; whoever renders it says what is wrong
    for node in tree.find_all((nodes.Mul, nodes.Pow)):
        sides = [getattr(side, "value", None) for side in (node.left, node.right)]
        if not all(isinstance(side, int) and abs(side) < 10_000 for side in sides) or isinstance(node, nodes.Pow):
            raise TreewrightError(
                f"line {node.lineno} of the chat template multiplies, by which a template can make any amount of text; "
                "pass another template"
            )


def bounded(render: Callable[..., Any], *given: Any, **more: Any) -> str:
    """`render`'s text. Raises TreewrightError where it takes too many lines, too long, or becomes too large."""
    began, lines, before = time.monotonic(), 0, sys.gettrace()

    def count(frame: FrameType, event: str, _: Any) -> Any:
        """Follows the template's own lines: what renders it, and translates it at first, is not the stranger's."""
        nonlocal lines
        if frame.f_code.co_filename != TEMPLATE:
            return None
        lines += 1
        if lines > LINES or time.monotonic() - began > SECONDS or _large(frame):
            raise _TooMuch
        return count

    sys.settrace(count)
    try:
        text = str(render(*given, **more))
    except _TooMuch:
        raise TreewrightError(
            "the chat template does not end, or makes too much text of a short conversation; pass another template"
        ) from None
    except TreewrightError:
        raise
    except Exception as error:
        raise TreewrightError(f"the chat template fails: {type(error).__name__}: {error}") from error
    finally:
        sys.settrace(before)
    if len(text) > LONGEST:
        raise TreewrightError(
            f"the chat template made {len(text):,} characters of a conversation; pass another template"
        )
    return text


def _large(frame: FrameType) -> bool:
    values = list(frame.f_locals.values())
    for value in tuple(values):
        if type(value).__name__ == "Namespace":
            values += object.__getattribute__(value, "_Namespace__attrs").values()
    return any(isinstance(value, str) and len(value) > LONGEST for value in values)
