"""The node's end of a guest's control socket: what it tells the guest, and what it lets itself be told.

A guest says little, and nothing it says is believed before it was looked at: whoever sends anything else is
reported once, and not read from any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from runtime_node.loader.failures import redact
from runtime_node.tiers.process import wire
from services.rpc.errors import SupervisorError

MAX_REPORTS: Final = 16
"""A guest reports how its start went, that it ends, and how it ended; never more than a few times."""
MAX_MESSAGE_CHARACTERS: Final = 2_000
MAX_DETAIL_CHARACTERS: Final = 16 << 10

REASONS: Final = frozenset(
    {
        "ENTRYPOINT_MALFORMED",
        "ENTRYPOINT_MODULE_NOT_FOUND",
        "ENTRYPOINT_ATTRIBUTE_NOT_FOUND",
        "ENTRYPOINT_IMPORT_FAILED",
        "ENTRYPOINT_NOT_AN_APP",
        "APP_FACTORY_FAILED",
        "APP_STARTUP_FAILED",
        "APP_BLOCKED_LOOP",
        "APP_SHUTDOWN_FAILED",
        "ISOLATION_UNSUPPORTED",
    }
)
"""What a guest can know of itself. All else is not its to say."""


class GuestLink:
    """Lives on the control loop; `connect` alone may be called elsewhere.

    `on_report` gets each report; `on_malformed` and `on_closed` are called at most once, and nothing after.
    """

    def __init__(
        self,
        on_report: Callable[[dict[str, Any]], None],
        on_malformed: Callable[[str], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_report = on_report
        self._on_malformed = on_malformed
        self._on_closed = on_closed
        self._reports = 0
        self._over = False
        self.handed_over = 0
        """Connections sent so far."""
        self._ours, self.guest_end = wire.pair()
        self._ours.setblocking(False)
        self.guest_end.setblocking(False)
        wire.refuse_descriptors(self._ours)
        self._loop.add_reader(self._ours.fileno(), self.read)

    def connect(self, theirs: socket.socket) -> None:
        """Hand one end of a connection to the guest.

        Raises ConnectionError when the guest is gone, BlockingIOError when it has not taken those before.
        """
        try:
            wire.send(self._ours, {"op": "connect"}, [theirs.fileno()])
        except wire.ClosedError as error:
            raise ConnectionError("the app's process is gone") from error
        self.handed_over += 1

    def stop(self, timeout: float) -> None:
        """Ask the guest to end within `timeout` seconds."""
        with contextlib.suppress(wire.ClosedError, BlockingIOError):
            wire.send(self._ours, {"op": "stop", "timeout": timeout})

    def read(self) -> None:
        """Take what the guest has told so far."""
        while not self._over:
            try:
                message, descriptors = wire.receive(self._ours)
            except BlockingIOError:
                return
            except wire.ClosedError:
                self._end()
                self._on_closed()
                return
            except wire.WireError as error:
                self._refuse(str(error))
                return
            wire.discard(descriptors)
            self._reports += 1
            if descriptors or self._reports > MAX_REPORTS:
                self._refuse("a message has descriptors" if descriptors else "it reports without end")
                return
            self._on_report(message)

    def close_guest_end(self) -> None:
        """Close the end that the guest has by now. Repeats do nothing."""
        self.guest_end.close()

    def close(self) -> None:
        """Close both ends. Repeats do nothing."""
        self._end()
        self._ours.close()
        self.guest_end.close()

    def _refuse(self, why: str) -> None:
        self._end()
        self._on_malformed(why)

    def _end(self) -> None:
        self._over = True
        if self._ours.fileno() >= 0:
            self._loop.remove_reader(self._ours.fileno())


def error_told(told: object, *, resource: str, secrets: Sequence[str]) -> SupervisorError:
    """Return the failure that a guest reports, secrets blanked out; APP_CRASHED for a reason not its own."""
    fields: Mapping[str, Any] = told if isinstance(told, dict) else {}
    reason = fields.get("reason")
    message = redact(wire.text(fields.get("message"), MAX_MESSAGE_CHARACTERS), secrets)
    detail = redact(wire.text(fields.get("detail"), MAX_DETAIL_CHARACTERS), secrets)
    return SupervisorError(
        reason if isinstance(reason, str) and reason in REASONS else "APP_CRASHED",
        message or "The app's process did not say what was wrong.",
        resource=resource,
        metadata={"detail": detail} if detail else {},
    )
