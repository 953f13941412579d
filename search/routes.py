"""Which experts a model sent the tokens of a draw to, as text: `Completion.routes`.

A router of a mixture-of-experts layer picks K of its experts for each token. What a sampler picked can be replayed in
training ("rollout routing replay", arXiv 2510.11370), so it is kept with the draw. The text is a header and base64:

    48x8u1:AAECAwQFBgc…    48 layers, 8 experts a token, 1 byte each; then integers [n, 48, 8], little endian

The n tokens are the last ones that the model had read when it drew the answer's last token: of the prompt and the
answer without its last token, which nobody has read yet. A draw keeps what it added: the last token of the answer
before it, what the prompt has behind that, and its own tokens but the last; and a few tokens before, where the sampler
computed them once more. An empty text: nothing is known.
"""

from __future__ import annotations

import base64
import binascii
import re

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError

__all__ = ["MOST_EXPERTS", "decode_routes", "encode_routes", "fresh_routes", "routes_before"]

MOST_EXPERTS = 1 << 15
"""Experts are numbered below this, so that int16 holds them beside −1 for unknown."""

HEADER = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,3})u([12]):")


def encode_routes(routes: NDArray[np.generic]) -> str:
    """The text of whole numbers [n, L, K]; "" where n is 0.

    Raises TreewrightError for another shape or type, and for experts below 0 or from MOST_EXPERTS on.
    """
    if routes.ndim != 3 or routes.dtype.kind not in "iu" or 0 in routes.shape[1:]:
        raise TreewrightError(f"routes are whole numbers [tokens, layers, experts], not {routes.dtype} {routes.shape}")
    if not len(routes):
        return ""
    low, high = int(routes.min()), int(routes.max())
    if low < 0 or high >= MOST_EXPERTS:
        raise TreewrightError(f"routes name expert {low if low < 0 else high}; experts are numbered 0 to 32767")
    kind = np.dtype("<u1" if high < 256 else "<u2")
    data = base64.b64encode(np.ascontiguousarray(routes, kind).tobytes()).decode()
    return f"{routes.shape[1]}x{routes.shape[2]}u{kind.itemsize}:{data}"


def decode_routes(text: str) -> NDArray[np.int16]:
    """Experts int16 [n, L, K] of the last n tokens that were read. Raises TreewrightError for a text that is none."""
    head = HEADER.match(text)
    if head is None:
        raise TreewrightError(f"routes begin with LAYERSxEXPERTSuBYTES: such as 48x8u1:, not with {text[:16]!r}")
    layers, each, width = (int(part) for part in head.groups())
    try:
        data = base64.b64decode(text[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise TreewrightError(f"routes are not base64 behind {head[0]!r}: {error}") from None
    if len(data) % (layers * each * width):
        raise TreewrightError(
            f"routes of {layers} layers with {each} experts of {width} bytes: {len(data)} bytes are no whole tokens"
        )
    found = np.frombuffer(data, f"<u{width}").reshape(-1, layers, each)
    if found.size and int(found.max()) >= MOST_EXPERTS:
        raise TreewrightError(f"routes name expert {int(found.max())}; experts are numbered 0 to 32767")
    return found.astype(np.int16)


def fresh_routes(routes: NDArray[np.generic] | None, delta: int, drawn: int) -> str:
    """The text of what a draw added, of the routes [n, L, K] of the last n tokens that were read.

    delta, drawn  how many tokens the prompt has behind the last answer, and the draw
    """
    return "" if routes is None else encode_routes(routes[max(len(routes) - delta - drawn, 0) :])


def routes_before(text: str, tokens: int) -> str:
    """The routes of a draw whose last `tokens` tokens are left out."""
    if not text or not tokens:
        return text
    routes = decode_routes(text)
    return encode_routes(routes[: max(len(routes) - tokens, 0)])
