"""Says whether a caller may make a call with this request. So far everyone may do everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.rpc.pipeline.call import Call

Authorize = Callable[[Call, Any], None]
"""Takes the call and its request; raises SupervisorError if it is not allowed."""


def allow_all(call: Call, request: Any) -> None:
    """Allow a call."""
