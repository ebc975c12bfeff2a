"""Gives each call an id: its caller's own, from `x-request-id`, or else a new one.

The id stands in the log beside an internal error, and in the trailers of every refused call.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from itertools import count

REQUEST_ID_KEY = "x-request-id"
MAX_LENGTH = 64

_PLAIN = re.compile(r"[!-~]+")

_process = secrets.token_hex(6)
_numbers = count(1)


def request_id(metadata: Mapping[str, str | bytes]) -> str:
    """Return the id of a call with this metadata; one that is too long or not printable ASCII is replaced."""
    told = metadata.get(REQUEST_ID_KEY)
    if isinstance(told, str) and len(told) <= MAX_LENGTH and _PLAIN.fullmatch(told):
        return told
    return f"{_process}-{next(_numbers):x}"
