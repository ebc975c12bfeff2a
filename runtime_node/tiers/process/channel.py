"""One connection to a guest, on the loop that opened it: bytes in, frames out, bounded both ways.

It knows nothing of what the frames say; that is `proxy`'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from runtime_node.tiers.process import frames
from runtime_node.tiers.process.frames import Frame, frame

BUFFER_BYTES: Final = 2 * frames.MAX_FRAME_BYTES
"""What is read ahead of a slow client, per exchange."""

Batch = list[tuple[int, bytes]]


class BrokenOffError(Exception):
    """The guest closed the connection in the middle of an exchange."""


class Channel(asyncio.Protocol):
    """One connection to a guest, on the loop that opened it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[Channel], None],
        on_malformed: Callable[[str], object],
    ) -> None:
        self.loop = loop
        self.lost = False
        self.idle = False
        self._on_lost = on_lost
        self._on_malformed = on_malformed
        self._reader = frames.Reader(frames.MAX_FRAME_BYTES)
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.lost = True
        self._on_lost(self)
        self.resume_writing()
        self._wake()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.idle:
            self.transport.abort()
            self._on_malformed("an answer comes to no request")
            return
        self._reader.feed(data)
        if self._reader.waiting_bytes > BUFFER_BYTES and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def has_more(self) -> bool:
        """Whether the guest has sent more than was read."""
        return self._reader.waiting_bytes > 0

    def write(self, data: bytes) -> None:
        """Queue bytes for the guest; it asks for each event, so little is ever queued."""
        if not self.lost:
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the guest has read most of what was queued: it may ask for more than it reads."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    async def read(self) -> Batch:
        """Return the next frames, at least one and not many.

        Raises BrokenOffError at the end of the stream, MalformedFrameError for what is no frame.
        """
        while not (batch := self._reader.take()):
            if self._error is not None:
                raise self._error
            if self.lost:
                raise BrokenOffError
            self._waiter = self.loop.create_future()
            await self._waiter
        if self._paused and self._reader.waiting_bytes <= BUFFER_BYTES // 2:
            self._paused = False
            if not self.lost:
                self.transport.resume_reading()
        return batch

    def fail(self, error: BaseException) -> None:
        """Make the reader of this channel raise `error`."""
        self._error = error
        self._wake()

    def give_up(self) -> None:
        """End the exchange from this side: the app's task is cancelled, the connection is closed."""
        if self.lost:
            return
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()
        else:
            self.transport.write(frame(Frame.CANCEL))
            self.transport.close()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
