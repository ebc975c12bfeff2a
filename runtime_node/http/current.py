"""The exception that interrupts a request; which instance a request serves is `isolation.current`'s."""

from __future__ import annotations

from runtime_node.isolation.current import CURRENT_INSTANCE

__all__ = ["CURRENT_INSTANCE", "RequestInterrupted"]


class RequestInterrupted(BaseException):
    """Raised inside a request's code to break it off: it is answered 504 `APP_BLOCKED_LOOP`.

    Not an Exception, so that an app's `except Exception` does not swallow it.
    """
