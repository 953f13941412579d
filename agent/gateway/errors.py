"""What a server says where it cannot answer, in the words of each API."""

from __future__ import annotations

from typing import Any

from treewright.envs.errors import TreewrightError

__all__ = ["ApiError", "HalfPair", "body_of"]

OPENAI = {401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error"}
ANTHROPIC = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip


class ApiError(TreewrightError):
    """A request that is refused or could not be answered: HTTP status, words, and the field to blame."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class HalfPair(ApiError):
    """A request with half of a surrogate pair, which no text has: what a policy's answer may have led to."""


def body_of(error: ApiError, api: str, label: str) -> dict[str, Any]:
    """The body of the response, as the API that was called writes it: chat, responses or messages."""
    if api == "messages":
        kind = ANTHROPIC.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        words = f"{error.param}: {error.message}" if error.param else error.message
        return {"type": "error", "error": {"type": kind, "message": words}, "request_id": f"req_{label}"}
    kind = OPENAI.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
