"""The suite `puzzles`: arithmetic chains, countdown, sorting programs, small logic grids; all answers checked exactly.

    chain      7 + 12 - 5 * 3 = ?                                   the number
    countdown  make 24 from 3, 5, 6, 9                              an expression that uses each number at most once
    sorting    swaps of neighbours that sort 4 1 3 2                the places swapped, in order
    grid       who drinks what, from clues with one solution        name=drink, …

A puzzle follows from its task's seed; the level, and so the length of a good chain of thought, grows over four. The
oracle writes intermediate steps before it answers. `puzzles:sorting` is the suite of one kind, `puzzles:chain-0` of one
level of it, and several stand with a comma.
"""

from __future__ import annotations

import ast
import itertools
import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.envs.reasoning.answering import Answering, answer
from treewright.envs.types import Action, Environment, Suite, Task, ToolSpec, Turn

__all__ = ["KINDS", "SUITE", "Puzzle", "puzzle", "puzzles_suite"]


@dataclass(frozen=True, slots=True)
class Puzzle:
    """question, one solution of it, the steps that lead to it, and whether a text is a right answer."""

    question: str
    solution: str
    steps: str
    right: Callable[[str], bool]


# -- arithmetic chains ------------------------------------------------------------------------------------------------

OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
LONGEST = 200


def value_of(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an arithmetic expression and the whole numbers in it; None for anything else."""
    if len(text) > LONGEST:
        return None
    try:
        found = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return found, [int(word) for word in re.findall(r"\d+", text)]


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("not arithmetic")


def chain(rng: random.Random, level: int) -> Puzzle:
    """`level` + 2 numbers joined by +, - and *, with the usual order of operations."""
    numbers, signs = [rng.randint(2, 20)], []
    for _ in range(level + 1):
        signs.append(rng.choice("++--*"))
        numbers.append(rng.randint(2, 9 if signs[-1] == "*" else 20))
    text = str(numbers[0]) + "".join(f" {sign} {number}" for sign, number in zip(signs, numbers[1:], strict=True))
    steps, wanted = _reduced(numbers, signs)
    return Puzzle(
        f"What is {text}?", str(wanted), "; ".join(steps),
        lambda said: re.fullmatch(r"\s*-?\d{1,9}\s*", said) is not None and int(said) == wanted,
    )  # fmt: skip


def _reduced(numbers: Sequence[int], signs: Sequence[str]) -> tuple[list[str], int]:
    """One operation after the other, products first, each with its result; and the last result."""
    left, open_signs, steps = list(numbers), list(signs), []
    while open_signs:
        at = open_signs.index("*") if "*" in open_signs else 0
        a, b, sign = left[at], left.pop(at + 1), open_signs.pop(at)
        left[at] = a * b if sign == "*" else a + b if sign == "+" else a - b
        steps.append(f"{a} {sign} {b} = {left[at]}")
    return steps, left[0]


# -- countdown --------------------------------------------------------------------------------------------------------


def countdown(rng: random.Random, level: int) -> Puzzle:
    """A target that an expression of `level` + 2 of the numbers makes."""
    numbers = [rng.randint(1, 12) for _ in range(level + 2)]
    text, total, steps = str(numbers[0]), numbers[0], []
    for number in rng.sample(numbers[1:], len(numbers) - 1):
        signs = [s for s in "+-*" if not (s == "-" and number >= total) and not (s == "*" and total * number > 200)]
        sign = rng.choice(signs)
        text = f"({text}) {sign} {number}"
        before, total = total, {"+": total + number, "-": total - number, "*": total * number}[sign]
        steps.append(f"{before} {sign} {number} = {total}")
    shown = rng.sample(numbers, len(numbers))

    def right(said: str) -> bool:
        found = value_of(said)
        if found is None or found[0] != total:
            return False
        return all(found[1].count(n) <= numbers.count(n) for n in found[1])

    listed = ", ".join(map(str, shown))
    return Puzzle(
        f"Make {total} from {listed}: an expression with + - * / that uses each number at most once.", text,
        "; ".join(steps), right,
    )  # fmt: skip


# -- sorting ----------------------------------------------------------------------------------------------------------


def sorting(rng: random.Random, level: int) -> Puzzle:
    """A shuffled row of `level` + 2 numbers, to be sorted by swaps of neighbours, at most as many as bubbles take."""
    row = list(range(1, level + 3))
    while row == sorted(row):
        rng.shuffle(row)
    swaps, steps, work = [], [], list(row)
    for _ in work:
        for i in range(len(work) - 1):
            if work[i] > work[i + 1]:
                work[i], work[i + 1] = work[i + 1], work[i]
                swaps.append(i + 1)
                steps.append(f"{i + 1}: {' '.join(map(str, work))}")

    def right(said: str) -> bool:
        words = said.replace(",", " ").split()
        if len(words) > len(swaps) or not all(re.fullmatch(r"\d{1,3}", w) for w in words):
            return False
        now = list(row)
        for place in map(int, words):
            if not 1 <= place < len(now):
                return False
            now[place - 1], now[place] = now[place], now[place - 1]
        return now == sorted(now)

    shown = " ".join(map(str, row))
    question = f"Sort {shown} by {len(swaps)} swaps of neighbours: write the places, k swapping the k-th and the next."
    return Puzzle(question, " ".join(map(str, swaps)), "; ".join(steps), right)


# -- logic grids ------------------------------------------------------------------------------------------------------

NAMES = ("ann", "bob", "cid", "dan", "eve")
DRINKS = ("cocoa", "juice", "milk", "tea", "water")


def grid(rng: random.Random, level: int) -> Puzzle:
    """3 to 5 people and drinks; clues are dropped as long as one solution is left."""
    size = min(3 + level // 2, len(NAMES))
    names, drinks = NAMES[:size], DRINKS[:size]
    truth = tuple(rng.sample(range(size), size))
    every = list(itertools.permutations(range(size)))
    clues = [(p, d) for p in range(size) for d in range(size) if truth[p] != d]
    rng.shuffle(clues)
    kept = list(clues)
    for clue in clues:
        fewer = [c for c in kept if c != clue]
        if sum(all(way[p] != d for p, d in fewer) for way in every) == 1:
            kept = fewer
    told = "; ".join(f"{names[p]} does not drink {drinks[d]}" for p, d in kept)
    solution = {names[p]: drinks[truth[p]] for p in range(size)}

    def right(said: str) -> bool:
        pairs = [part.split("=") for part in said.replace(";", ",").split(",")]
        if len(pairs) != size or any(len(p) != 2 for p in pairs):
            return False
        return {a.strip().lower(): b.strip().lower() for a, b in pairs} == solution

    question = (
        f"{', '.join(names)} each drink another one of {', '.join(drinks)}: {told}. Who drinks what? name=drink, …"
    )
    return Puzzle(question, ", ".join(f"{n}={d}" for n, d in solution.items()), _left(names, drinks, kept), right)


def _left(names: Sequence[str], drinks: Sequence[str], clues: Sequence[tuple[int, int]]) -> str:
    """What the clues leave to each; then, one after the other, who has one drink left takes it from the others, and
    where nobody has, who is the only one left for a drink."""
    left = {name: [d for j, d in enumerate(drinks) if (i, j) not in clues] for i, name in enumerate(names)}
    steps = [f"{name}: {' '.join(some)}" for name, some in left.items()]
    while left:
        name, drink = next(
            ((n, some[0]) for n, some in left.items() if len(some) == 1),
            next(((n, d) for n, some in left.items() for d in some if sum(d in s for s in left.values()) == 1),
                 ("", "")),
        )  # fmt: skip
        if not name:
            break
        del left[name]
        left = {n: [d for d in some if d != drink] for n, some in left.items()}
        steps.append(f"{name}={drink}")
    return "; ".join(steps)


KINDS: dict[str, Callable[[random.Random, int], Puzzle]] = {
    "chain": chain, "countdown": countdown, "sorting": sorting, "grid": grid,
}  # fmt: skip
LEVELS = 4


def puzzle(task: Task) -> Puzzle:
    """The puzzle of a task."""
    return _made(str(task.data["kind"]), int(task.data["level"]), task.seed)


def _made(kind: str, level: int, seed: int) -> Puzzle:
    return KINDS[kind](random.Random(f"{kind} {level} {seed}"), level)


def _chosen(text: str) -> list[tuple[str, int]]:
    """The (kind, level) that `sorting`, `chain-0` or several with a comma name. Raises TreewrightError for others."""
    out = []
    for part in text.split(","):
        kind, dash, level = part.strip().partition("-")
        if kind not in KINDS:
            raise TreewrightError(f"puzzles have no kind {kind!r}; {nearest(kind, list(KINDS))}")
        if dash and level not in map(str, range(LEVELS)):
            raise TreewrightError(f"puzzles:{part.strip()} names no level; write {kind}-0 to {kind}-{LEVELS - 1}")
        out += [(kind, int(level))] if dash else [(kind, n) for n in range(LEVELS)]
    return out


def _made_of(name: str, kinds: Sequence[tuple[str, int]], description: str) -> Suite:
    """The suite of these (kind, level), its tasks in turn."""

    def tasks(split: str, count: int) -> Sequence[Task]:
        out = []
        for i in range(count):
            seed = 2 * i + (split == "test")
            kind, level = kinds[i % len(kinds)]
            goal = f"{_made(kind, level, seed).question} (puzzle {seed})"
            out.append(
                Task(
                    name, f"{split}-{kind}-{level}-{i}", goal, seed=seed, split=split, horizon=2,
                    data={"kind": kind, "level": level},
                )
            )  # fmt: skip
        return out

    return Suite(name, tasks, _open, oracle=oracle, thoughts=thoughts, description=description, max_tokens=256)


async def _open() -> Environment:
    return Answering(lambda task, said: float(puzzle(task).right(said)))


def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    """Gives the solution that the puzzle was made from."""
    return answer(puzzle(task).solution)


def thoughts(task: Task, history: Sequence[Turn]) -> str:
    """The steps that lead to the solution."""
    return puzzle(task).steps


def puzzles_suite(kinds: str) -> Suite:
    """`puzzles:KINDS`: a kind, or one level of it as `sorting-2`, or several with a comma.

    Raises TreewrightError for one that there is not, with the nearest.
    """
    return _made_of(f"puzzles:{kinds}", _chosen(kinds), f"{kinds} of the puzzles, checked exactly")


SUITE = _made_of(
    "puzzles", [(kind, level) for level in range(LEVELS) for kind in KINDS],
    "arithmetic, countdown, sorting and logic, checked exactly",
)  # fmt: skip
