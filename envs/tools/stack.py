"""Python's bytecode, read step by step with a set of origins beside every value on its stack.

A reader of functions says what an origin is and what the steps mean (see `shared`); here is only how the values move,
alike for CPython 3.11 to 3.14. Steps that are not known take and give values without an origin. Loops are read a second
time with what the first reading has brought to their beginning.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Sequence
from typing import Any

__all__ = ["Frame", "merged", "words"]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


Origins = frozenset[Any]
NONE: Origins = frozenset()
STILL = words("""
    RESUME NOP CACHE MAKE_CELL COPY_FREE_VARS EXTENDED_ARG KW_NAMES SETUP_ANNOTATIONS PRECALL JUMP_FORWARD
    JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT NOT_TAKEN TO_BOOL GEN_START LIST_TO_TUPLE
""")
TAKES = ("POP_", "STORE_", "DELETE_", "RAISE_", "RERAISE", "END_", "LIST_", "SET_", "MAP_", "DICT_", "RETURN_")
ENDS = ("JUMP_FORWARD", "JUMP_BACKWARD", "RETURN_", "RAISE_", "RERAISE", "JUMP_ABSOLUTE")
READINGS = 2


def merged(*parts: Origins) -> Origins:
    return frozenset().union(*parts)


class _At:
    """The stack and the variables at one place."""

    def __init__(self, stack: list[Origins], names: dict[str, Origins]) -> None:
        self.stack, self.names = stack, names

    def copy(self) -> _At:
        return _At(list(self.stack), dict(self.names))

    def join(self, other: _At) -> None:
        if len(self.stack) == len(other.stack):
            self.stack = [merged(a, b) for a, b in zip(self.stack, other.stack, strict=True)]
        for name, value in other.names.items():
            self.names[name] = merged(self.names.get(name, NONE), value)

    def pop(self) -> Origins:
        return self.stack.pop() if self.stack else NONE

    def take(self, count: int) -> list[Origins]:
        return [self.pop() for _ in range(count)][::-1]

    def give(self, value: Origins = NONE) -> None:
        self.stack.append(value)


class Frame:
    """Walks the steps of a code. What they mean is for a subclass to say."""

    def returned(self, value: Origins) -> None: ...

    def named(self, name: str) -> Origins:
        return NONE

    def imported(self, name: str) -> Origins:
        return NONE

    def wrote(self, target: Origins, name: str = "") -> None: ...

    def wrote_in_place(self, target: Origins) -> None: ...

    def attribute(self, target: Origins, name: str) -> Origins:
        return NONE

    def element(self, target: Origins) -> Origins:
        return NONE

    def call(self, callee: Origins, given: Sequence[Origins], by_name: dict[str, Origins]) -> Origins:
        return NONE

    def run(self, code: types.CodeType, first: dict[str, Origins]) -> dict[str, Origins]:
        """Reads a code; gives everything that each variable has ever been."""
        steps = list(dis.get_instructions(code))
        guarded = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
        caught = {entry.target: (entry, _At([], {})) for entry in guarded}
        ever = dict(first)
        brought: dict[int, _At] = {}
        for _ in range(READINGS):
            self._words: tuple[str, ...] = ()
            self._last: tuple[str, ...] = ()
            at: _At | None = _At([], dict(first))
            for step in steps:
                if step.offset in caught and at is None:
                    entry, there = caught[step.offset]
                    at = _At([NONE] * (entry.depth + entry.lasti + 1), dict(there.names))
                if step.offset in brought:
                    at = brought[step.offset].copy() if at is None else at
                    at.join(brought[step.offset])
                at = at or _At([], dict(ever))
                if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
                    there = at.copy()
                    _move(there, dis.stack_effect(step.opcode, step.arg, jump=True))
                    if step.argval in brought:
                        brought[step.argval].join(there)
                    else:
                        brought[step.argval] = there
                for entry in guarded:
                    if entry.start <= step.offset < entry.end:
                        caught[entry.target][1].join(_At([], at.names))
                self._step(step, at)
                for name in _names(step) if step.opname.startswith("STORE_") else ():
                    ever[name] = merged(ever.get(name, NONE), at.names.get(name, NONE))
                if step.opname.startswith(ENDS):
                    at = None
        return ever

    def _step(self, step: dis.Instruction, at: _At) -> None:
        name, arg = step.opname, step.argval
        if name.startswith(("LOAD_FAST", "STORE_FAST")) or name in ("LOAD_DEREF", "STORE_DEREF", "LOAD_CLOSURE"):
            self._variables(step, at)
        elif name in ("LOAD_NAME", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF", "LOAD_FROM_DICT_OR_GLOBALS"):
            _move(at, min(0, dis.stack_effect(step.opcode, step.arg) - 1))
            at.give(at.names[arg] if arg in at.names else self.named(arg))
        elif name == "STORE_NAME":
            at.names[arg] = at.pop()
        elif name == "LOAD_GLOBAL":
            _move(at, dis.stack_effect(step.opcode, step.arg) - 1)
            at.give(self.named(arg))
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            more = dis.stack_effect(step.opcode, step.arg)
            at.give(self.attribute(at.pop(), arg))
            _move(at, more)
        elif name == "IMPORT_NAME":
            at.take(2)
            at.give(self.imported(arg))
        elif name == "IMPORT_FROM":
            at.give(self.attribute(at.stack[-1] if at.stack else NONE, arg))
        elif name in ("STORE_ATTR", "DELETE_ATTR"):
            self.wrote(at.pop(), arg)
            at.take(name == "STORE_ATTR")
        elif name in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            at.pop()
            self.wrote(at.pop())
            at.take(name == "STORE_SUBSCR")
        elif name == "STORE_SLICE":
            at.take(2)
            self.wrote(at.pop())
            at.pop()
        elif name == "BINARY_SUBSCR" or (name == "BINARY_OP" and step.argrepr == "[]"):
            at.give(self.element(at.take(2)[0]))
        elif name == "BINARY_SLICE":
            at.give(self.element(at.take(3)[0]))
        elif name == "BINARY_OP":
            left = at.take(2)[0]
            if step.argrepr.endswith("="):
                self.wrote_in_place(left)
            at.give(left if step.argrepr.endswith("=") else NONE)
        elif name == "GET_ITER" or name.startswith("GET_YIELD_FROM"):
            pass
        elif name == "FOR_ITER":
            at.give(self.element(at.stack[-1] if at.stack else NONE))
        elif name in ("UNPACK_SEQUENCE", "UNPACK_EX"):
            more = dis.stack_effect(step.opcode, step.arg) + 1
            part = self.element(at.pop())
            at.stack += [part] * more
        elif name == "COPY":
            at.give(at.stack[-arg] if len(at.stack) >= arg else NONE)
        elif name == "SWAP":
            if len(at.stack) >= arg:
                at.stack[-1], at.stack[-arg] = at.stack[-arg], at.stack[-1]
        elif name == "KW_NAMES":
            self._words = tuple(arg if isinstance(arg, tuple) else ())
        elif name.startswith("CALL") and not name.startswith("CALL_INTRINSIC"):
            self._calls(step, at)
        elif name == "RETURN_VALUE":
            self.returned(at.pop())
        elif name not in STILL:
            self._last = arg if name == "LOAD_CONST" and isinstance(arg, tuple) else ()
            effect = dis.stack_effect(step.opcode, step.arg, jump=False)
            _move(at, effect if effect > 0 or name.startswith(TAKES) else effect - 1)
            if effect <= 0 and not name.startswith(TAKES):
                at.give()

    def _variables(self, step: dis.Instruction, at: _At) -> None:
        names = list(_names(step))
        for verb in step.opname.replace("LOAD_FAST_AND_CLEAR", "LOAD_FAST").split("_"):
            if verb == "LOAD":
                at.give(at.names.get(names.pop(0), NONE))
            elif verb == "STORE":
                at.names[names.pop(0)] = at.pop()

    def _calls(self, step: dis.Instruction, at: _At) -> None:
        words, self._words = self._words, ()
        if step.opname == "CALL_FUNCTION_EX":
            count = 1 - dis.stack_effect(step.opcode, step.arg)
            rows = at.take(count)
            spread = self.element(merged(*rows[2:]))
            at.give(self.call(merged(*rows[:2]), [spread] * 4, {}))
            return
        if step.opname == "CALL_KW":
            at.pop()
            words = self._last
        given = at.take(step.argval)
        callee = merged(*at.take(2))
        split = len(given) - len(words)
        at.give(self.call(callee, given[:split], dict(zip(words, given[split:], strict=False))))


def _names(step: dis.Instruction) -> tuple[str, ...]:
    return step.argval if isinstance(step.argval, tuple) else (str(step.argval),)


def _move(at: _At, effect: int) -> None:
    """So many values more, or less, none of which is known."""
    if effect < 0:
        at.take(-effect)
    else:
        at.stack += [NONE] * effect
