"""Which instance the running code serves, and the exception that interrupts a request."""

from __future__ import annotations

from contextvars import ContextVar

CURRENT_INSTANCE: ContextVar[str] = ContextVar("appsupervisor_current_instance", default="")
"""Resource name of the instance whose request runs in this context; empty outside of requests.

It is set in a context made for each request, so nothing that a request sets is seen by another.
"""


class RequestInterrupted(BaseException):
    """Raised inside a request's code to break it off: it is answered 504 `APP_BLOCKED_LOOP`.

    Not an Exception, so that an app's `except Exception` does not swallow it.
    """
