"""Secrets of this process never reach a file.

Covered: the values of environment variables whose names look secret, passwords in addresses that variables hold, and
what was learned since (`treewright.envs.secrecy`); as they are and url-, JSON-, HTML-, hex- or base64-encoded, alone or
inside longer base64. Not covered: token ids that decode to a secret, secrets that were compressed, encrypted or split,
and those that this process was never told: pass a list of your own for these.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from treewright.envs.secrecy import MASK, SHORTEST, hidden_url, in_url, learned, learned_count, named_secret

__all__ = ["Redactor", "drop_masked", "hide", "without_secrets"]

JSON_LEVELS = 4


class Redactor:
    """Replaces every known secret in a text or in bytes by '[redacted]'.

    secrets  what to look for, and nothing else; by default the secret-looking values of `environ` of at least 8
             characters, the passwords of its addresses, and whatever this process learns later
    """

    def __init__(self, secrets: Iterable[str] | None = None, environ: Mapping[str, str] = os.environ) -> None:
        self._follows, self._known = secrets is None, 0
        if secrets is None:
            secrets = [value for name, value in environ.items() if named_secret(name)]
            secrets += [secret for value in environ.values() if "://" in value for secret in in_url(value)]
        self._secrets = tuple(secrets)
        self._look_for(self._secrets)

    def _look_for(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if len(secret) >= SHORTEST for form in _forms(secret)}
        # Longest first, or a part of one form would be cut out of another and leave its rest.
        self._needles = sorted((form for form in forms if len(form) >= SHORTEST), key=lambda form: (-len(form), form))
        self._byte_needles = [needle.encode("utf-8", "surrogatepass") for needle in self._needles]

    @property
    def needles(self) -> list[str]:
        """Every form that is looked for, the longest first."""
        if self._follows and (known := learned_count()) != self._known:
            self._look_for((*self._secrets, *learned()))
            self._known = known
        return self._needles

    def text(self, value: str) -> str:
        for needle in self.needles:
            if needle in value:
                value = value.replace(needle, MASK)
        return value

    def bytes(self, value: bytes) -> bytes:
        _ = self.needles
        for needle in self._byte_needles:
            if needle in value:
                value = value.replace(needle, MASK.encode())
        return value


def _forms(secret: str) -> set[str]:
    raw = secret.encode("utf-8", "surrogateescape")
    text = raw.decode("utf-8", "replace")
    forms = {secret, quote(raw, safe=""), quote_plus(raw), html.escape(text), raw.hex(), raw.hex().upper()}
    forms |= {quote(raw), quote(quote(raw, safe=""), safe=""), html.escape(text, quote=False)}
    forms |= {re.sub("%[0-9A-F]{2}", lambda sign: sign[0].lower(), form) for form in tuple(forms)}
    shown = (text, html.escape(text), html.escape(text, quote=False))
    once = {json.dumps(form, ensure_ascii=ascii)[1:-1] for form in shown for ascii in (True, False)}
    # Some write / as \\/, and what means something in HTML as \\u00XX, in either case.
    once |= {form.replace("/", "\\/") for form in once}
    once |= {re.sub("[<>&'=+]", escape, form) for form in tuple(once) for escape in (_escaped, _escaped_upper)}
    for _ in range(JSON_LEVELS):  # JSON in a text of JSON: an action's argument, a tool's result in a request
        forms |= once
        once = {json.dumps(form, ensure_ascii=ascii)[1:-1] for form in once for ascii in (True, False)}
    for alphabet in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            forms.add(_inner(alphabet, raw, shift))
    return forms


def _escaped(sign: re.Match[str]) -> str:
    return f"\\u{ord(sign[0]):04x}"


def _escaped_upper(sign: re.Match[str]) -> str:
    return f"\\u{ord(sign[0]):04X}"


def _inner(encode: Callable[[bytes], bytes], raw: bytes, shift: int) -> str:
    """The characters that only the secret decides when `shift` other bytes stand before it in its base64 group."""
    coded = encode(bytes(shift) + raw).decode().rstrip("=")
    start = (shift * 8 + 5) // 6
    end = (shift + len(raw)) * 8 // 6
    return coded[start:end]


@functools.lru_cache(maxsize=1)
def _standing() -> Redactor:
    return Redactor()


def hide(text: str) -> str:
    """A text as it may be shown, without what was secret when the first one was shown and what was learned since."""
    return _standing().text(text)


def without_secrets(value: Any) -> Any:
    """A text, or nested settings: passwords of addresses left out, other secrets of this process masked."""
    redact = Redactor()

    def plain(inner: Any) -> Any:
        if isinstance(inner, Mapping):
            return {key: plain(one) for key, one in inner.items()}
        if isinstance(inner, list | tuple):
            return [plain(one) for one in inner]
        return redact.text(hidden_url(inner)) if isinstance(inner, str) else inner

    return plain(value)


def drop_masked(data: dict[str, Any], prefix: str = "") -> list[str]:
    """Takes out of settings what was masked when they were written down; the keys."""
    gone = []
    for key, value in list(data.items()):
        if isinstance(value, dict):
            gone += drop_masked(value, f"{prefix}{key}.")
        elif MASK in json.dumps(value, default=str):
            del data[key]
            gone.append(prefix + key)
    return gone
