"""The outermost layer of an app: what it does counts as its own, and it cannot end the loop it shares."""

from __future__ import annotations

import contextlib
from typing import Any

from runtime_node.asgi import ASGIApp, Receive, Scope, Send
from runtime_node.isolation.current import CURRENT_INSTANCE


class AppExitError(RuntimeError):
    """Raised instead of an app's SystemExit or KeyboardInterrupt, which would end the loop it shares."""


class ContainedApp:
    """An ASGI 3 callable around an app of one instance. After `detach` it answers nothing."""

    __slots__ = ("_app", "_instance")

    def __init__(self, app: ASGIApp, instance: str) -> None:
        self._app: ASGIApp | None = app
        self._instance = instance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope. Raises AppExitError if the app wants to end the process."""
        if self._app is None:
            raise RuntimeError("the instance was released")
        token = CURRENT_INSTANCE.set(self._instance)
        try:
            await self._app(scope, receive, send)
        except (SystemExit, KeyboardInterrupt) as fault:
            raise AppExitError(f"the app raised {type(fault).__name__}") from fault
        finally:
            # ValueError: closed from another context, as an abandoned coroutine is; nothing to restore.
            with contextlib.suppress(ValueError):
                CURRENT_INSTANCE.reset(token)

    def detach(self) -> Any:
        """Give up the app, so that whoever still holds this does not hold the app; return it."""
        app, self._app = self._app, None
        return app
