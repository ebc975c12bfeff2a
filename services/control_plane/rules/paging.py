"""Pages and the opaque tokens that lead on: page tokens (AIP-158) and resume tokens of watches.

A page token holds the position of the last element, not a count, so it outlives restarts and is not
disturbed by what is inserted or removed meanwhile. Tokens carry no rights and are not secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from services.rpc.errors import SupervisorError, Violation, invalid_field

Position = tuple[str | int, ...]

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

# A position holds at most a display name and a name or two; more is not ours.
_MAX_TOKEN_LENGTH = 4096
_CHECKSUM_BYTES = 6
_PAGE = "p1"
_RESUME = "r2"


def page_size(value: int, field: str = "page_size") -> int:
    """Return the number of elements of a page for what a request asks; raises INVALID_FIELD below 0."""
    if value < 0:
        raise invalid_field(field, "must not be negative")
    return min(value, MAX_PAGE_SIZE) if value else DEFAULT_PAGE_SIZE


def encode_page_token(position: Position, digest: str) -> str:
    """Return the token that continues after `position`.

    `digest` stands for the request fields that must stay as they were; the page size is not one of them
    (AIP-158).
    """
    return _encode([_PAGE, digest, *position])


def decode_page_token(token: str, digest: str) -> Position:
    """Return the position after which to continue.

    Raises INVALID_PAGE_TOKEN for what is not a page token, or one of a request with another digest. What
    the position is made of is not checked: a caller can forge a token, but gains nothing by it.
    """
    payload = _decode(token)
    if payload is None or len(payload) < 3 or payload[0] != _PAGE:
        raise _invalid("INVALID_PAGE_TOKEN", "page_token", "is not a next_page_token of this service")
    if payload[1] != digest:
        raise _invalid(
            "INVALID_PAGE_TOKEN",
            "page_token",
            "belongs to a request with other fields; repeat them, or start again without a token",
        )
    return tuple(payload[2:])


def encode_resume_token(catalog_id: str, history: str, revision: int, digest: str = "") -> str:
    """Return the token that resumes a watch of that catalog after `revision` of a history of it.

    `digest` stands for what the watch selects by: resumed under another filter, a stream without a
    snapshot would miss apps in silence.
    """
    return _encode([_RESUME, catalog_id, digest, history, revision])


def decode_resume_token(token: str, catalog_id: str, digest: str = "") -> tuple[str, int]:
    """Return the history and the revision of it after which to resume.

    Raises INVALID_RESUME_TOKEN for what is not a resume token, one of another catalog, or one of a watch
    with another digest.
    """
    payload = _decode(token)
    well_formed = payload is not None and len(payload) == 5 and payload[0] == _RESUME
    if not well_formed or payload is None or not isinstance(payload[4], int) or payload[4] < 0:
        raise _invalid("INVALID_RESUME_TOKEN", "resume_token", "is not a resume_token of this service")
    if payload[1] != catalog_id:
        raise _invalid(
            "INVALID_RESUME_TOKEN", "resume_token", "belongs to another catalog; start without a token"
        )
    if payload[2] != digest:
        raise _invalid(
            "INVALID_RESUME_TOKEN",
            "resume_token",
            "belongs to a watch with another filter; repeat it, or start without a token",
        )
    return str(payload[3]), payload[4]


def _encode(payload: list[str | int]) -> str:
    body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(_checksum(body) + body).rstrip(b"=").decode()


def _decode(token: str) -> list[Any] | None:
    """Return a token's payload, or None if it was not made by `_encode`."""
    if len(token) > _MAX_TOKEN_LENGTH:
        return None
    try:
        raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        checksum, body = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
        if checksum != _checksum(body):
            return None
        payload = json.loads(body)
    except (ValueError, binascii.Error, RecursionError):
        return None
    plain = isinstance(payload, list) and all(type(part) in (str, int) for part in payload)
    return payload if plain else None


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=b"appsupervisor").digest()


def _invalid(reason: str, field: str, rule: str) -> SupervisorError:
    return SupervisorError(reason, f"{field} {rule}.", violations=(Violation(field, rule),))
