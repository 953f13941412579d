"""Long documents, mapped and reduced along their headings: `treewright digest FILE QUESTION`.

Tree-oriented map and reduce (ToM): a document's headings are a tree; the question is asked of every leaf, and the notes
of each section are joined upwards, so that what belongs together is reduced together. Each note has the confidence that
the model gives it when it judges it; notes that say nothing go no further.

    answer = await digest(text, "who pays?", model)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from treewright.agent.judges.checklist import Model, answer_shares
from treewright.envs.errors import TreewrightError
from treewright.envs.types import seed_of
from treewright.search.planning.all_nodes import Answer

__all__ = ["Digest", "Section", "digest", "sections"]

HEADING = re.compile(r"^(#{1,6})\s+(\S)(.*)$")  # marks behind the title are cut by hand: no line takes long
NUMBERED = re.compile(r"^(\d+(?:\.\d+)*)\.?\s+(?=[^\W\d_])(\S.{0,78})$")
UNDERLINE = re.compile(r"^([=\-~^\"'*+#`])\1{2,}\s*$")
BEGUN = 32  # sections that are begun at once
NOTHING = re.compile(r"\W*(nothing|none|not stated|no answer)\W*", re.IGNORECASE)


@dataclass(slots=True)
class Section:
    """A heading with its own text and the sections below it; the root's title is empty."""

    title: str
    text: str = ""
    below: list[Section] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Digest:
    """answer (None: nothing in the document says it), notes by path of titles, and how often the model was asked."""

    answer: Answer | None
    notes: tuple[tuple[str, Answer], ...]
    calls: int


def sections(document: str) -> Section:
    """The tree of a document's headings: Markdown's, underlined ones (reStructuredText), and numbered ones (1.2 Title).

    A level below one that was left out hangs on the nearest heading above it.
    """
    root = Section("")
    stack: list[tuple[int, Section]] = [(0, root)]
    own: list[str] = []  # lines of the section that is under way
    marks: list[str] = []
    lines, at, fenced = document.splitlines(), 0, False
    while at < len(lines):
        line, after = lines[at], lines[at + 1] if at + 1 < len(lines) else ""
        fenced ^= line.lstrip().startswith("```")
        level, title = 0, ""
        if not fenced:
            if found := HEADING.match(line):
                level, title = len(found[1]), found[2] + found[3].rstrip().rstrip("#").rstrip()
            elif line.strip() and len(after.strip()) >= min(len(line.strip()), 4) and (rule := UNDERLINE.match(after)):
                if rule[1] not in marks:
                    marks.append(rule[1])
                level, title, at = marks.index(rule[1]) + 1, line.strip(), at + 1
            elif (found := NUMBERED.match(line)) and (at == 0 or not lines[at - 1].strip()) and not after.strip():
                level, title = found[1].count(".") + 1, line.strip()
        if level:
            stack[-1][1].text, own = "".join(own), []
            while stack[-1][0] >= level:
                stack.pop()
            made = Section(title)
            stack[-1][1].below.append(made)
            stack.append((level, made))
        else:
            own.append(line + "\n")
        at += 1
    stack[-1][1].text = "".join(own)
    return root


def parts_of(text: str, letters: int) -> list[str]:
    """The text in pieces of at most so many letters, cut at blank lines, at line ends, or anywhere if need be."""
    out: list[str] = []
    whole, at = text.strip(), 0
    while len(whole) - at > letters:
        near = max(whole.rfind("\n\n", at + 1, at + letters), whole.rfind("\n", at + letters // 2, at + letters), at)
        cut = near if near > at else at + letters
        out.append(whole[at:cut].strip())
        at = cut
        while whole[at].isspace():  # what was stripped ends with a letter
            at += 1
    return [part for part in [*out, whole[at:]] if part]


async def digest(
    document: str,
    question: str,
    model: Model,
    *,
    letters: int = 4000,
    max_tokens: int = 120,
    at_once: int = 8,
    seed: int = 0,
) -> Digest:
    """Asks the question of every leaf and joins what they say, section by section, up to the document.

    letters  most of one piece;  max_tokens  of one note;  at_once  pieces that the model is asked of side by side
    Raises TreewrightError for an empty document or question.
    """
    if not document.strip() or not question.strip():
        raise TreewrightError("a digest needs a document with text and a question")
    reader = _Reader(model, question, max_tokens, seed, asyncio.Semaphore(at_once))
    answer = await reader.section(await asyncio.to_thread(sections, document), "", letters)
    return Digest(answer, tuple(reader.notes), reader.calls)


@dataclass(slots=True)
class _Reader:
    model: Model
    question: str
    max_tokens: int
    seed: int
    gate: asyncio.Semaphore
    notes: list[tuple[str, Answer]] = field(default_factory=list)
    calls: int = 0

    async def section(self, section: Section, above: str, letters: int) -> Answer | None:
        path = f"{above} › {section.title}".strip(" ›")
        leaves = [self._leaf(part, path) for part in parts_of(section.text, letters)]
        found = await _together([*leaves, *(self.section(s, path, letters) for s in section.below)])
        said = [note for note in found if note is not None]
        if len(said) < 2:
            return said[0] if said else None
        shown = "\n".join(f"- {note.text} ({note.confidence:.0%} sure)" for note in said)
        asked = f"Notes on {path or 'a document'}:\n{shown}\n\nJoin what they say about the question in few words."
        return await self._note(asked, shown, path)

    async def _leaf(self, text: str, path: str) -> Answer | None:
        asked = (
            f"{path}\n\n{text}\n\nSay in as few words as possible what this part tells about the question, or: nothing."
        )
        return await self._note(asked.strip(), text, path)

    async def _note(self, asked: str, shown: str, path: str) -> Answer | None:
        async with self.gate:
            await asyncio.sleep(0)  # others get their turn, however quick the model is
            self.calls += 1
            prompt = f"{asked}\nQuestion: {self.question}\nAnswer:"
            text = (await self.model.write(prompt, seed_of(self.seed, prompt) & 0x7FFFFFFF, self.max_tokens)).strip()
            if not text or NOTHING.fullmatch(text):
                return None
            self.calls += 1
            judged = f"{shown}\n\nQuestion: {self.question}\nAnswer: {text}\nIs this answer right? Answer yes or no."
            (tokens,) = await self.model.first_tokens([f"{judged}\nAnswer:"])
        yes, no, _ = answer_shares(tokens)
        note = Answer(" ".join(text.split()), yes / (yes + no) if yes + no else 0.5)
        self.notes.append((path, note))
        return note


async def _together(calls: Sequence[Coroutine[Any, Any, Answer | None]]) -> list[Answer | None]:
    """What all of them give, in order; they are begun a few at a time, so that others get their turn."""
    begun: list[asyncio.Task[Answer | None]] = []
    try:
        for call in calls:
            begun.append(asyncio.create_task(call))
            if not len(begun) % BEGUN:
                await asyncio.sleep(0)
        return await asyncio.gather(*begun)
    except BaseException:
        for task in begun:
            task.cancel()
        for call in calls[len(begun) :]:
            call.close()
        raise


def titles(section: Section) -> Sequence[str]:
    """Every heading, from the top down."""
    return [title for below in section.below for title in (below.title, *titles(below))]
