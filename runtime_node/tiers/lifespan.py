"""Runs the ASGI lifespan of one app on the running loop: startup, the wait between, shutdown.

Follows version 2.0 of the ASGI lifespan protocol. Time limits of the startup are the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from runtime_node.asgi import ASGIApp, Message
from runtime_node.loader.failures import bounded, failure, one_line, redact, with_refusal
from runtime_node.watchdog.interruption import is_interruption
from services.rpc.errors import SupervisorError

CANCEL_GRACE = 1.0
"""Seconds that a cancelled lifespan gets to run its `finally` blocks."""


class _Phase(Enum):
    FRESH = auto()
    STARTING = auto()
    STARTED = auto()
    STOPPING = auto()
    STOPPED = auto()
    UNSUPPORTED = auto()


class Lifespan:
    """The lifespan of one app. `state` is what the app put there; requests get a copy of it."""

    __slots__ = (
        "_app", "_failure", "_on_crash", "_phase", "_secrets", "_settled", "_shutdown", "_task", "state",
    )  # fmt: skip

    def __init__(
        self,
        app: ASGIApp,
        secrets: tuple[str, ...] = (),
        on_crash: Callable[[SupervisorError], None] | None = None,
    ) -> None:
        """`on_crash` is called, on this loop, when the lifespan raises between startup and shutdown."""
        self._app = app
        self._secrets = secrets
        self._on_crash = on_crash
        self._phase = _Phase.FRESH
        self._failure: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._settled: asyncio.Future[None] | None = None
        self._shutdown: asyncio.Event | None = None
        self.state: dict[str, Any] = {}

    @property
    def supported(self) -> bool:
        """Whether the app takes part in the protocol; known after `startup`."""
        return self._phase not in {_Phase.FRESH, _Phase.UNSUPPORTED}

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that the app's lifespan runs in, while it runs."""
        return self._task

    async def startup(self) -> None:
        """Run the app's startup. An app that knows no lifespan is fine.

        Raises SupervisorError APP_STARTUP_FAILED with the traceback as its detail. Then, and when
        cancelled, the lifespan's task is gone.
        """
        loop = asyncio.get_running_loop()
        # A future, not an event: that is waited for by a task, which would outlive a cancelled startup.
        self._settled = loop.create_future()
        self._shutdown = asyncio.Event()
        self._task = loop.create_task(self._run(), name="lifespan")
        try:
            await asyncio.wait({self._task, self._settled}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._cut_off()
            raise
        if self._failure is None and not self._task.done():
            self._task.add_done_callback(self._ended_early)
            return
        task = self._task
        fault = await self._end(CANCEL_GRACE)
        # Of something that it waited for: nobody else has cancelled it.
        from_within = self._failure is None and task.cancelled()
        if is_interruption(fault):
            text = "The app's startup blocked its event loop and was interrupted."
            raise failure("APP_BLOCKED_LOOP", text, fault, secrets=self._secrets)
        if self._phase is _Phase.FRESH or (self._failure is None and fault is None and not from_within):
            # It raised before it looked at a single message, or just returned: it knows no lifespan.
            self._phase = _Phase.UNSUPPORTED
            return
        if self._phase is _Phase.STARTED:
            raise failure(
                "APP_STARTUP_FAILED",
                "The app's lifespan ended right after its startup.",
                fault,
                secrets=self._secrets,
            )
        raise self._startup_failed(fault)

    async def shutdown(self, timeout: float) -> SupervisorError | None:
        """Run the app's shutdown for at most `timeout` seconds; return what went wrong, or None.

        Afterwards, and when cancelled, the lifespan's task is gone unless it ignores cancellation.
        """
        if self._task is None or self._shutdown is None:
            return None
        early = self._task.done()
        if self._phase is _Phase.STARTED:
            self._phase = _Phase.STOPPING
        self._shutdown.set()
        try:
            await asyncio.wait({self._task}, timeout=max(timeout, 0.0))
        except asyncio.CancelledError:
            await self._cut_off()
            raise
        late = not self._task.done()
        fault = await self._end(0.0)
        if late:
            return SupervisorError(
                "APP_SHUTDOWN_FAILED", f"The app's shutdown took longer than {timeout:g} s and was cut off."
            )
        if self._failure is not None or (fault is not None and not early):
            text = self._failure or ("" if fault is None else one_line(fault, self._secrets))
            return failure(
                "APP_SHUTDOWN_FAILED",
                f"The app's shutdown failed: {_first_line(text)}",
                fault,
                secrets=self._secrets,
            )
        return None

    def _ended_early(self, task: asyncio.Task[None]) -> None:
        if self._phase is not _Phase.STARTED or task.cancelled() or self._on_crash is None:
            return
        fault = task.exception()
        if fault is not None:
            text = f"The app's lifespan ended with an error: {with_refusal(fault, self._secrets)}"
            self._on_crash(failure("APP_CRASHED", text, fault, secrets=self._secrets))

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        assert self._shutdown is not None
        if self._phase is _Phase.FRESH:
            self._phase = _Phase.STARTING
            return {"type": "lifespan.startup"}
        await self._shutdown.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete" and self._phase in {_Phase.FRESH, _Phase.STARTING}:
            self._phase = _Phase.STARTED
            self._settle()
        elif kind == "lifespan.startup.failed" and self._phase in {_Phase.FRESH, _Phase.STARTING}:
            self._phase = _Phase.STARTING
            self._failure = self._told(message)
            self._settle()
        elif kind == "lifespan.shutdown.complete":
            self._phase = _Phase.STOPPED
        elif kind == "lifespan.shutdown.failed":
            self._failure = self._told(message)
        else:
            raise RuntimeError(f"{kind} was sent out of its turn in the lifespan")

    def _told(self, message: Message) -> str:
        return redact(str(message.get("message", "")), self._secrets) or "no message"

    def _settle(self) -> None:
        # An app may take back a failure that it told; the first word settles it.
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _startup_failed(self, fault: BaseException | None) -> SupervisorError:
        if fault is not None:
            return failure(
                "APP_STARTUP_FAILED",
                f"The app's startup failed: {with_refusal(fault, self._secrets)}",
                fault,
                secrets=self._secrets,
            )
        if self._failure is not None:
            error = failure(
                "APP_STARTUP_FAILED",
                f"The app's startup failed: {_first_line(self._failure)}",
                secrets=self._secrets,
            )
            error.metadata["detail"] = bounded(self._failure)
            return error
        return SupervisorError("APP_STARTUP_FAILED", "The app's startup was cancelled from within.")

    async def _end(self, patience: float) -> BaseException | None:
        """Wait `patience` seconds for the task's end, cut it off if need be; return what it raised."""
        assert self._task is not None
        if not self._task.done() and patience:
            await asyncio.wait({self._task}, timeout=patience)
        await self._cut_off()
        task, self._task = self._task, None
        if not task.done() or task.cancelled():
            return None
        return task.exception()

    async def _cut_off(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({self._task}, timeout=CANCEL_GRACE)


def _first_line(text: str) -> str:
    # A traceback sent as the message says what happened in its last line.
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
