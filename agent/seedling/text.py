"""The seedling's tokens: a byte-level BPE over words, signs and single digits, and the compact prompt in pieces.

`<|task|>{suite} {goal}<|obs|>{observation}<|act|>{action line}<|end|><|obs|>{observation}<|act|>…`

Every piece is encoded alone, so that tokens at run time equal tokens in training, and nothing inside a piece can
become a special token.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from treewright.agent.policies.template import WINDOWS, window_of
from treewright.agent.seedling.demos import VALUE, WORD, Demo

__all__ = [
    "ACT",
    "END",
    "LINE",
    "OBS",
    "PAD",
    "TASK",
    "WINDOWS",
    "Encoder",
    "Example",
    "demo_pieces",
    "frame_words",
    "train_tokenizer",
]

LINE = re.compile(r'\w+ "([^"\\]*)"(?: ([ea]\d+))?')
"""A line of a page: its name, and its reference where it has one."""
TASK, OBS, ACT, END, PAD = "<|task|>", "<|obs|>", "<|act|>", "<|end|>", "<|pad|>"


def frame_words(demos: Mapping[str, Sequence[Demo]], least: float = 0.1, most: float = 0.03) -> list[str]:
    """The words around names and values, from the demonstrations of each suite.

    A frame word stands in at least the part `least` of one suite's demonstrations, and of its goals if in any; and
    in no suite is it an action's argument in more than the part `most`.
    """
    frame: set[str] = set()
    values: set[str] = set()
    for found in demos.values():
        often, goals, used = (Counter[str]() for _ in range(3))
        for demo in found:
            often.update(_words(demo_pieces(demo)))
            goals.update(_words([demo.goal]))
            used.update(_words(text for step in demo.steps for text in VALUE.findall(step.action)))
        enough = least * len(found)
        frame |= {w for w, n in often.items() if n >= enough and (w not in goals or goals[w] >= enough)}
        values |= {w for w, n in used.items() if n > most * len(found)}
    return sorted(frame - values)


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in WORD.findall(text)}


def train_tokenizer(texts: Iterable[str], frame: Iterable[str] = (), vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which a word never carries its blank: a name is the same tokens wherever it stands.

    Only words of the `frame` may grow together with each other and with signs between them, so that
    `search {"entity": "` becomes one token: shorter prompts, and fewer draws for an action.
    """
    words = "|".join(re.escape(word) for word in sorted(frame, key=len, reverse=True))
    pattern = rf"(?:\b(?:{words})\b|\W)+|\w+" if words else r"\w+|\W+"
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[TASK, OBS, ACT, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=40,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TASK, OBS, ACT],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def demo_pieces(demo: Demo) -> list[str]:
    """The texts of a demonstration, as they are encoded."""
    pieces = [f"{demo.suite} {demo.goal}", demo.first]
    for step in demo.steps:
        pieces += [step.action, step.observation]
    return pieces


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one training row and the kind of each: 0 context, 1 observation, 2 action."""

    ids: list[int]
    kinds: list[int]


class Encoder:
    """Pieces to token ids and back, with a cache of pieces."""

    def __init__(self, tokenizer: Any, cache: int = 200_000) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        self._cache = cache
        self.task, self.obs, self.act, self.end, self.pad = tokenizer.convert_tokens_to_ids([TASK, OBS, ACT, END, PAD])

    def piece(self, text: str) -> list[int]:
        """The ids of one piece; what looks like a special token inside it is plain text."""
        ids = self._ids.get(text)
        if ids is None:
            ids = list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
            if len(self._ids) < self._cache:
                self._ids[text] = ids
        return ids

    def prompt(
        self, suite: str, goal: str, observations: Sequence[str], responses: Sequence[Sequence[int]]
    ) -> list[int]:
        """The context before the next action: observations has one more entry than responses.

        Responses are the tokens as sampled, `<|end|>` included. Observations outside the suite's window are empty.
        """
        first_kept = max(0, len(observations) - (window_of(WINDOWS, suite) or len(observations)))
        ids = [self.task, *self.piece(f"{suite} {goal}")]
        for i, text in enumerate(observations):
            ids += [self.obs, *(self.piece(text) if i >= first_kept else ()), self.act]
            if i < len(responses):
                ids += responses[i]
        return ids

    def drill(self, suite: str, page: str, rng: random.Random, but: Container[str] = ()) -> Example | None:
        """A row of questions about a page: an element's name, and its reference or the text behind it.

        One name stands before the page, where a goal would name it, up to five others after it; those in `but` are
        not asked for. None for a page with less than two.
        """
        lines = [(m[1], m[2] or "") for line in page.splitlines() if (m := LINE.match(line))]
        asked = [
            (f"{name} text", f'answer {{"text": "{behind[0].split(" ")[-1]}"}}')
            if behind[1] == "" and ref and rng.random() < 0.3
            else (name, f'click {{"ref": "{ref}"}}')
            for (name, ref), behind in zip(lines, [*lines[1:], ("", "-")], strict=False)
            if ref and name and name not in but
        ]
        if len(asked) < 2:
            return None
        chosen = rng.sample(asked, min(6, len(asked)))
        ids = [self.task, *self.piece(f"{suite} {chosen[0][0]}"), self.obs, *self.piece(page)]
        marks = [0] * len(ids)
        for i, (name, action) in enumerate(chosen):
            said = [*self.piece(action), self.end]
            before = [self.act] if i == 0 else [self.obs, *self.piece(name), self.act]
            ids += [*before, *said]
            marks += [0] * len(before) + [2] * len(said)
        return Example(ids, marks)

    def examples(self, demo: Demo) -> list[Example]:
        """One row per episode; with a window one row per action, since earlier context changes with each."""
        seen = [demo.first, *(s.observation for s in demo.steps[:-1])]
        acts = [[*self.piece(s.action), self.end] for s in demo.steps]
        if window_of(WINDOWS, demo.suite) is not None:
            rows = []
            for i, act in enumerate(acts):
                context = self.prompt(demo.suite, demo.goal, seen[: i + 1], acts[:i])
                rows.append(Example(context + act, [0] * len(context) + [2] * len(act)))
            return rows
        head = [self.task, *self.piece(f"{demo.suite} {demo.goal}")]
        ids, marks = list(head), [0] * len(head)
        for text, act in zip(seen, acts, strict=True):
            shown = self.piece(text)
            ids += [self.obs, *shown, self.act, *act]
            marks += [0] + [1] * len(shown) + [0] + [2] * len(act)
        return [Example(ids, marks)]
