"""What a server and an app hand to each other: the types of ASGI (https://asgi.readthedocs.io)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from services.rpc.errors import SupervisorError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class UndeliveredError(SupervisorError):
    """Raised by an app's callable for a request that never reached the app, which has ended by `cause`."""

    def __init__(self, cause: SupervisorError) -> None:
        super().__init__(cause.reason, cause.message, resource=cause.resource, metadata=cause.metadata)
