"""Writes the catalogue of error texts, tests/golden/errors.txt: every text that an error of the package can have.

    python scripts/error_texts.py            writes it
    python scripts/error_texts.py --worst    prints the texts that a person reads and that do not say what to do next

Found in the source: each place where an error of the package is made, with its text.
What is filled in stands in braces.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "errors.txt"
FLOORS = ("agent", "envs", "kernels", "search", "training")
BASE = "TreewrightError"
NOT_FOR_PEOPLE = frozenset(
    [
        "InvalidAction",
        "ApiError",
        "HalfPair",
        "Divergence",
        "EnvFault",
        "SessionDied",
        "ActionTimeout",
        "RestoreUnsupported",
        "PolicyFault",
        "EngineDead",
        "RankLost",
        "CheckFailed",
    ]
)
"""Errors that a policy, an agent or a tree reads: they say what happened, and what is next is theirs to decide."""
SHOWN = 48  # characters of an expression that is filled in
NEXT = re.compile(
    r";|\b(did you mean|known:|write|type|give|set|install|pip|make|name|use|add|take|takes|leave|drop|delete|move|"
    r"mend|correct|upgrade|open|declare|must|needs?|expected|such as|one of|export|train|collect|start|raise|lower|ask|"
    r"choose|say|says|run|save|wait)\b|--\w|=N\b|of the form|not a (function|treewright)|not an? [a-z.]*treewright"
)


@dataclass(frozen=True, order=True)
class Text:
    """One text of one kind of error; `file` is where it is made, from the package's root."""

    file: str
    kind: str
    text: str

    @property
    def for_people(self) -> bool:
        return self.kind not in NOT_FOR_PEOPLE

    @property
    def says_next(self) -> bool:
        """Whether it says what to do next, as far as words tell; a text that is made elsewhere is taken to."""
        return bool(NEXT.search(self.text)) or not re.sub(r"\{[^{}]*\}", "", self.text).strip(" :'\"\n")


@lru_cache(maxsize=1)
def sources() -> list[tuple[str, list[ast.ClassDef | ast.Call]]]:
    """Every source file: its path, and the classes and calls in it."""
    out = []
    for path in sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.Call)]
        out.append((path.relative_to(ROOT).as_posix(), found))
    return out


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def kinds() -> set[str]:
    """The names of the package's errors: TreewrightError and all that is made of it."""
    bases = {
        node.name: {_name(base) for base in node.bases}
        for _, nodes in sources() for node in nodes if isinstance(node, ast.ClassDef)
    }  # fmt: skip
    found = {BASE}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def template(node: ast.expr | None) -> str:
    """The text with {what is filled in}."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    whole = ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)
    return "{" + (whole if len(whole) <= SHOWN else whole[: SHOWN - 1] + "…") + "}"


@lru_cache(maxsize=1)
def texts() -> list[Text]:
    """Every text once for each file and kind, in order."""
    known = kinds()
    found: set[Text] = set()
    for file, nodes in sources():
        for node in nodes:
            if isinstance(node, ast.Call) and _name(node.func) in known:
                strings = [
                    arg for arg in node.args if not (isinstance(arg, ast.Constant) and isinstance(arg.value, int))
                ]
                said = template(strings[0] if strings else None)
                if said:
                    found.add(Text(file, _name(node.func), " ".join(said.split())))
    return sorted(found)


def catalogue(found: list[Text]) -> str:
    """The file's text: by source file; `!` stands before a text for people that does not say what to do next."""
    wanting = [one for one in found if one.for_people and not one.says_next]
    people = sum(one.for_people for one in found)
    head = (
        f"# {len(found)} texts of errors. Made by: python scripts/error_texts.py\n"
        f"# {people} are for people; {len(wanting)} of these, marked !, do not say what to do next.\n"
    )
    lines, file = [head], ""
    for one in found:
        if one.file != file:
            file = one.file
            lines.append(f"\n{file}\n")
        mark = "!" if one.for_people and not one.says_next else " "
        lines.append(f"{mark} {one.kind}: {one.text}\n")
    return "".join(lines)


def main(words: list[str]) -> None:
    found = texts()
    if "--worst" in words:
        for one in found:
            if one.for_people and not one.says_next:
                print(f"{one.file}: {one.text}")
        return
    GOLDEN.write_text(catalogue(found), "utf-8")
    print(GOLDEN.read_text("utf-8").partition("\n\n")[0])


if __name__ == "__main__":
    main(sys.argv[1:])
