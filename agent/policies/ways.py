"""What a server takes, learnt from what it refuses: each OpenAI-compatible one refuses other fields, in its own words.

A request is first spelt as OpenAI's documentation has it. Where the server refuses a field, the next spelling is tried,
and kept for all later requests: another name for the limit of tokens, seeds of 31 bits or under another name, one
draw a request, a looser form of a schema, the rules in the user's message. Fields that only help (log-probs, seeds)
are left out in the end. Nothing that changes what the user asked for is: such a refusal stays a fault.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from treewright.agent.policies.answers import Refused

__all__ = ["Ways"]

LIMITS = ("max_tokens", "max_completion_tokens")
SEEDS = ("seed", "random_seed")
REFUSES = re.compile(
    r"support|permit|allow|unknown|unrecogni[sz]ed|unexpected|invalid|extra|must|only|cannot|can't|at most|available|"
    r"out of range|less than|greater than|enabled|alternate|not found",
    re.IGNORECASE,
)
TOO_LONG = re.compile(r"too large|too long|context length|context window|maximum context|exceed", re.IGNORECASE)
UNKNOWN = re.compile(r"extra|unknown|unrecogni[sz]ed|unexpected|cannot find", re.IGNORECASE)
RANGE = re.compile(r"int32|range|less than|greater than|maximum|must be|between|too large|2147483647", re.IGNORECASE)
WORDS = {
    "max_tokens": r"\bmax_tokens\b",
    "max_completion_tokens": r"\bmax_completion_tokens\b",
    "logprobs": r"\blog[ _-]?prob(abilitie)?s\b",
    "n": r"['\"`]n['\"`]|\bn\s*(must|should|is|>|=|!=)|(completion|one) choice|multiple (choices|completions)|"
    r"number of (choices|completions)|num_return_sequences",
    "seed": r"\bseed\b",
    "random_seed": r"\brandom_seed\b",
    "temperature": r"\btemperature\b",
    "response_format": r"response_format|json_schema|json_object|structured output|schema",
    "system": r"system\b.*\b(role|message|prompt|instruction)|(role|message|instruction)\b.*\bsystem|"
    r"roles must alternate",
}
NAMED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in WORDS.items()}


@dataclass(slots=True)
class Ways:
    """A server's ways as far as they are known.

    limit    the name of the field that limits the tokens of an answer
    seed     the name of the field for seeds, of `seed_bits` bits
    choices  most drafts it gives for one request; None: as many as asked for, as far as known
    system   it takes a message of the role system; else the rules stand before the first user message
    form     0 a strict schema, 1 a schema, 2 any JSON object (for response_format)
    left_out fields that it does not take
    kept     fields of the user's own (`extra`), which are never changed
    reasons  what was learnt → the server's own words
    """

    limit: str = "max_tokens"
    seed: str = "seed"
    seed_bits: int = 63
    choices: int | None = None
    system: bool = True
    form: int = 0
    left_out: set[str] = field(default_factory=set)
    kept: frozenset[str] = frozenset()
    reasons: dict[str, str] = field(default_factory=dict)

    def spell(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The request as this server takes it."""
        body = {self._name(key): value for key, value in asked.items() if not self._spared(key, asked)}
        if self.seed in body and "seed" not in self.kept:
            body[self.seed] &= (1 << self.seed_bits) - 1
        if not self.system and "messages" in body:
            body["messages"] = _folded(body["messages"])
        schema = body.get("response_format")
        if self.form and "response_format" not in self.kept and isinstance(schema, dict):
            inner = {k: v for k, v in schema["json_schema"].items() if k != "strict"}
            loose = {"type": "json_schema", "json_schema": inner}
            body["response_format"] = loose if self.form == 1 else {"type": "json_object"}
        return body

    def _spared(self, key: str, asked: Mapping[str, Any]) -> bool:
        """Left out. A temperature only where it says what the server does anyway, or where nothing is sampled."""
        if key in self.kept:
            return False
        if key == "temperature" and asked[key] != 1.0 and "top_logprobs" not in asked:
            return False
        return ("logprobs" if key == "top_logprobs" else key) in self.left_out

    def _name(self, key: str) -> str:
        return self.limit if key == "max_tokens" else self.seed if key == "seed" and key not in self.kept else key

    def learn(self, sent: Mapping[str, Any], refused: Refused) -> str | None:
        """What a refusal of `sent` teaches, in one line; None where it teaches nothing new."""
        for name in WORDS:
            if name not in self.kept and _blames(name, sent, refused):
                learnt = self._lesson(name, sent, refused.reason)
                if learnt is not None:
                    self.reasons[learnt] = refused.reason
                    return f"{learnt} (it said: {' '.join(refused.reason.split())[:200]})"
        return None

    def gives(self, choices: int, asked: int) -> str | None:
        """What an answer with fewer drafts than asked for teaches."""
        if choices >= asked or (self.choices is not None and self.choices <= choices):
            return None
        self.choices = choices
        learnt = f"it gives {choices} of {asked} drafts asked for; asking for {choices} a request"
        self.reasons[learnt] = ""
        return learnt

    def _lesson(self, name: str, sent: Mapping[str, Any], reason: str) -> str | None:
        match name:
            case "max_tokens" | "max_completion_tokens":
                other = LIMITS[1 - LIMITS.index(name)]
                if TOO_LONG.search(reason) or (self.limit == other) or f"limit {other}" in self.reasons:
                    return None
                self.reasons[f"limit {name}"] = reason  # refused once: not gone back to
                self.limit = other
                return f"its limit of tokens is called {other}"
            case "seed" | "random_seed":
                return self._seed(name, reason)
            case "n":
                self.choices = 1
                return "one draw a request"
            case "system":
                self.system = False
                return "the rules go out in the user's message, without a system message"
            case "response_format":
                return self._looser()
            case "temperature" if sent["temperature"] != 1.0 and not sent.get("top_logprobs"):
                return None
        self.left_out.add(name)
        return f"asked without {name} from now on"

    def _seed(self, name: str, reason: str) -> str:
        if RANGE.search(reason) and self.seed_bits > 31 and not UNKNOWN.search(reason):
            self.seed_bits = 31
            return "seeds are cut to 31 bits"
        if UNKNOWN.search(reason) and name == "seed":
            self.seed = "random_seed"
            return "seeds go out as random_seed"
        self.left_out.add("seed")
        return "seeds are left out; the same seed will not give the same draw"

    def _looser(self) -> str:
        self.form += 1
        if self.form > 2:
            self.left_out.add("response_format")
            return "answers are not held to actions"
        return "answers are held to a schema that is not strict" if self.form == 1 else "answers are held to be JSON"


def _blames(name: str, sent: Mapping[str, Any], refused: Refused) -> bool:
    """Whether the refusal is about this part of the request."""
    if name == "system":
        messages = sent.get("messages") or []
        there = bool(messages) and messages[0].get("role") == "system"
    else:
        there = name in sent and (name != "n" or sent["n"] > 1)
    if not there:
        return False
    if name in refused.named:
        return True
    if any(other in sent and other != "messages" for other in refused.named):
        return False  # it says which field it means, and that is another one
    return bool(NAMED[name].search(refused.reason) and REFUSES.search(refused.reason))


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the system's text before the first user's."""
    if not messages or messages[0].get("role") != "system":
        return messages
    rules, *rest = messages
    for i, message in enumerate(rest):
        if message["role"] == "user":
            rest[i] = {**message, "content": f"{rules['content']}\n\n{message['content']}"}
            return rest
    return [{"role": "user", "content": rules["content"]}, *rest]
