"""Fields of a row of a corpus or question file. One that is there and empty or null counts as missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from treewright.envs.retrieval.rows import CorpusError, clean, one_line
from treewright.envs.types import seed_of

__all__ = ["answers_of", "identity", "named", "split_in", "split_of", "splits_of", "support_of", "text_of", "title_of"]

IDS = ("id", "_id", "doc_id", "docid", "qid")
ANSWERS = ("answers", "answer", "golden_answers")
SUPPORTS = ("support", "supporting_titles")
SPLITS = {"train": "train", "training": "train", "test": "test"}
SPLITS |= dict.fromkeys(("dev", "development", "validation", "valid", "val"), "dev")


def empty(value: Any) -> bool:
    """True for null, blank text, and lists and objects without anything in them."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {}, ())


def named(row: dict[str, Any], names: Iterable[str]) -> str | None:
    """The first of these fields that holds something; None if none does."""
    return next((name for name in names if not empty(row.get(name))), None)


def text_of(row: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The text of the first of these fields that holds something. Raises CorpusError naming place and field."""
    field = named(row, names)
    if field is None:
        there = next((name for name in names if name in row), None)
        raise CorpusError(f"{where}: field {there or names[0]!r} is {'empty' if there else 'missing'}; give it a text")
    if not isinstance(row[field], str):
        raise CorpusError(f"{where}: field {field!r} must be a non-empty string, got {row[field]!r:.40}")
    return clean(row[field])


def word_of(value: Any, field: str, where: str) -> str:
    """A name or a number as one line of text. Raises CorpusError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CorpusError(f"{where}: field {field!r} must be a non-empty string, got {value!r:.40}")
    return one_line(clean(str(value)))


def identity(row: dict[str, Any], where: str) -> str | None:
    """The row's id as text, None if it has none; numbers are taken as they are written."""
    field = named(row, IDS)
    return None if field is None else word_of(row[field], field, where)


def title_of(row: dict[str, Any], where: str) -> str | None:
    return None if empty(row.get("title")) else word_of(row["title"], "title", where)


def answers_of(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """The accepted answers, each once: a text or a number, a list of them, or SQuAD's {"text": [...]}."""
    field = named(row, ANSWERS)
    if field is None:
        there = next((name for name in ANSWERS if name in row), None)
        raise CorpusError(f"{where}: field {there or 'answers'!r} is {'empty' if there else 'missing'}; give it a text")
    given = [*_listed(row[field], "text"), *_listed(row.get("answer_aliases"), "text")]
    kept = [answer for answer in given if not empty(answer)]
    if not kept or any(isinstance(answer, bool) or not isinstance(answer, str | int | float) for answer in kept):
        raise CorpusError(f"{where}: field {field!r} must be a string or a list of strings, got {row[field]!r:.40}")
    return tuple(dict.fromkeys(clean(str(answer)) for answer in kept))


def support_of(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """The ids of the documents that hold the answer, each once."""
    field = named(row, SUPPORTS)
    if field is None:
        return ()
    given = [one for one in _listed(row[field], "title") if not empty(one)]
    try:
        return tuple(dict.fromkeys(word_of(one, field, where) for one in given))
    except CorpusError:
        raise CorpusError(f"{where}: field {field!r} must be a list of document ids, got {row[field]!r:.40}") from None


def split_in(row: dict[str, Any], where: str) -> str | None:
    """What the row says: 'train', 'test', 'dev' (validation too), or None. Raises CorpusError for another word."""
    given = row.get("split")
    if empty(given):
        return None
    found = SPLITS.get(given.strip().lower()) if isinstance(given, str) else None
    if found is None:
        raise CorpusError(f"{where}: field 'split' must be train, dev or test, got {given!r:.40}")
    return found


def splits_of(given: Sequence[tuple[str, str | None]]) -> list[str]:
    """'train' or 'test' for each question of a file, from its id and what its row says.

    Questions of which nothing is said go by `split_of`. So do dev ones in a file without train ones; beside train ones
    they are for testing. If all that go by their ids would be for testing, and no other is for training, the first is.
    """
    trained = any(said == "train" for _, said in given)
    by_id = [said is None or (said == "dev" and not trained) for _, said in given]
    found = [split_of(name) if by else "train" if said == "train" else "test"
             for (name, said), by in zip(given, by_id, strict=True)]  # fmt: skip
    if "train" not in found and any(by_id):
        found[by_id.index(True)] = "train"
    return found


def split_of(question_id: str) -> str:
    """'test' for one id in five, always the same ones."""
    return "train" if seed_of("split", question_id) % 5 else "test"


def _listed(value: Any, inner: str) -> list[Any]:
    """A list as it is, the list under `inner` of an object, nothing as nothing, anything else as a list of one."""
    if isinstance(value, dict) and inner in value:
        value = value[inner]
    if isinstance(value, list):
        return value
    return [] if value is None else [value]
