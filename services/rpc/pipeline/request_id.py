"""Gives each call an id: its caller's own, from `x-request-id`, or else a new one.

The id stands in the log beside an internal error, and in the trailers of every refused call.
"""

from __future__ import annotations

import re
import secrets
from itertools import count
from typing import Any

from services.rpc.pipeline.call import Call

REQUEST_ID_KEY = "x-request-id"
MAX_LENGTH = 64

_PLAIN = re.compile(r"[!-~]+")

_process = secrets.token_hex(6)
_numbers = count(1)


def assign_request_id(call: Call) -> None:
    """Set `metadata` and `request_id`; an id that is too long or not printable ASCII is replaced."""
    pairs: Any = call.transport.invocation_metadata()
    if pairs:
        call.metadata = metadata = dict(pairs)
        told = metadata.get(REQUEST_ID_KEY)
        if isinstance(told, str) and len(told) <= MAX_LENGTH and _PLAIN.fullmatch(told):
            call.request_id = told
            return
    call.request_id = f"{_process}-{next(_numbers):x}"
