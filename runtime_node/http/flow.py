"""Flow control of one connection: who waits for a slow client, and when it is not read from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TURN_SECONDS = 0.002
"""How long what one client sent may keep the loop, before the others have their turn."""


class Flow:
    """Whether a transport is read from and can be written to."""

    __slots__ = ("_loop", "_resting", "_transport", "_writable", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._resting = False
        self._writable: asyncio.Event | None = None
        self.read_paused = False
        self.write_paused = False

    def pause_reading(self) -> None:
        """Read no more for now."""
        if not self.read_paused:
            self.read_paused = True
            if not self._resting:
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self.read_paused:
            self.read_paused = False
            if not self._resting:
                self._transport.resume_reading()

    def end_turn(self, go_on: Callable[[], bool]) -> None:
        """Read nothing until the others had their turn. Then `go_on` is called, once each turn while it
        returns True, and reading goes on.

        Without it libuv reads from a client that sends fast thirty-two times in a row.
        """
        if not self._resting:
            self._resting = True
            if not self.read_paused:
                self._transport.pause_reading()
            self._loop.call_soon(self._next_turn, go_on)

    def _next_turn(self, go_on: Callable[[], bool]) -> None:
        if self._transport.is_closing():
            return
        if go_on():
            self._loop.call_soon(self._next_turn, go_on)
            return
        self._resting = False
        if not self.read_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """Make `drain` wait."""
        self.write_paused = True
        if self._writable is not None:
            self._writable.clear()

    def resume_writing(self) -> None:
        """Let `drain` return."""
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()

    async def drain(self) -> None:
        """Wait until the client has taken enough of what is buffered for it, or is gone."""
        if self.write_paused:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()
