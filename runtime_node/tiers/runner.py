"""The interface of a tier: start an app somewhere, hand back something that answers requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.asgi import ASGIApp
from runtime_node.context import AppContext
from services.rpc.errors import SupervisorError


@dataclass(frozen=True, slots=True)
class Usage:
    """What a running app uses, where its tier can tell: None where it cannot."""

    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    loop_lag_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StopReport:
    """How a stop went: what had to be cut off, what was left behind and who holds it."""

    error: SupervisorError | None = None
    cancelled_tasks: int = 0
    leaks: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one instance. Callbacks may be called from any thread and must not block."""

    spec: InstanceSpec
    context: AppContext
    on_exit: Callable[[SupervisorError | None], None]
    """The app ended by itself after it was ready; None for an end without an error."""
    on_blocked: Callable[[str, float], None]
    """The app blocked its event loop: the stack as text, and for how many seconds so far."""


class RunningApp(Protocol):
    """A started app. `asgi` is called on the front's event loop, whatever the tier."""

    @property
    def asgi(self) -> ASGIApp:
        """The app as an ASGI 3 callable for `http` and `websocket` scopes."""
        ...

    def usage(self) -> Usage:
        """Return what the app uses now. Cheap; never blocks."""
        ...

    async def stop(self, timeout: float) -> StopReport:
        """Run the app's shutdown for at most `timeout` seconds, cut off what is left, release all of it.

        Called once, on the control loop, after the front has drained the app. Never raises for a
        fault of the app: that is in the report.
        """
        ...


class AppRunner(Protocol):
    """Starts apps in one isolation tier. Called on the control loop; never blocks it."""

    @property
    def tier(self) -> InstanceSpec.IsolationTier.ValueType:
        """The tier this tier gives."""
        ...

    async def start(self, launch: Launch) -> RunningApp:
        """Load the app's code, build it, run its ASGI startup, and return it ready to serve.

        Raises SupervisorError with a reason of the app (`ENTRYPOINT_*`, `APP_FACTORY_FAILED`,
        `APP_STARTUP_FAILED`, `ISOLATION_UNSUPPORTED`), its `metadata["detail"]` the traceback; then,
        and when cancelled (the caller keeps the start's time limit), nothing of the start is left.
        """
        ...

    async def close(self) -> None:
        """Release the tier itself, after all its apps were stopped."""
        ...
